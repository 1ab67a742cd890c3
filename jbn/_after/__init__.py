"""After training: exact statistics, adaptation to other data, folding and merged states."""
