"""A checkpoint policy that saves only the inputs and the statistics of norms."""

import jax

from jbn._core.moments import SAVE_POINT

save_norm_inputs = jax.checkpoint_policies.save_only_these_names(SAVE_POINT)
"""A policy for `jax.checkpoint` that saves only the inputs and the statistics of norms.

    loss = jax.checkpoint(network, policy=jbn.save_norm_inputs)

Of an in-place norm it saves the output and the statistics. The backward pass computes the affine
map and the activation again, but no convolution, statistics or collective. So a convolution, norm
and activation save one activation, not two. Wrap many layers at once: each call of `jax.checkpoint`
saves its own inputs as well.
"""
