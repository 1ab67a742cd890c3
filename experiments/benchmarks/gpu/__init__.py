"""What jbn costs and reaches on a GPU, in pieces: python -m experiments.benchmarks.gpu."""
