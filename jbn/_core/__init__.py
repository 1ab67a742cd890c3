"""Code on arrays: the layout of x, its shards, its moments, and the affine map of a norm."""
