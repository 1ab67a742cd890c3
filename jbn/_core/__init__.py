"""The array: how x is laid out and sharded, its moments, and the affine map."""
