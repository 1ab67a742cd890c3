"""After training: exact statistics, statistics of other data, and folding."""
