"""Training in groups and in place, and the checkpoint policy."""
