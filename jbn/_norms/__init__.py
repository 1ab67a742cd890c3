"""Norms: their interface, the base class for methods, and the methods."""
