"""Benchmarks: jbn and its peers side by side."""
