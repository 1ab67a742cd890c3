"""Measures jbn and its peers on a GPU, in pieces: python -m experiments.benchmarks.gpu."""
