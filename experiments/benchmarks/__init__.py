"""Benchmarks of jbn and its peers."""
