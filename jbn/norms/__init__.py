"""Norms: each a choice of which statistics normalise and of what is remembered."""
