"""Experiments with jbn: training runs, their reports, and benchmarks."""
