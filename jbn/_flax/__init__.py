"""What the Linen and the NNX modules share."""
