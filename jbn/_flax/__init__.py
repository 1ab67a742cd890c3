"""Code that the Linen and the NNX modules share."""
