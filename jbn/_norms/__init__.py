"""Norms: what a norm is, the methods, and what makes a norm of a method."""
