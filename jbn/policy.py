"""What of a norm is worth keeping where memory is short, and the policy that keeps it."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

Values = TypeVar("Values")
_NAME = "jbn.kept"

save_norm_inputs = jax.checkpoint_policies.save_only_these_names(_NAME)
"""A policy for `jax.checkpoint`: of what it wraps, keep only what norms are given.

    loss = jax.checkpoint(network, policy=jbn.save_norm_inputs)

Of each norm the input and the statistics are kept, of an in-place norm the output and the
statistics. What follows, such as the affine map and the activation, is computed again in the
backward pass, while convolutions, statistics and collectives are not. So a convolution, norm and
activation keep one activation, not two. Wrap many layers at once: each call of `jax.checkpoint`
keeps its own inputs as well.
"""


def kept(values: Values) -> Values:
    """Returns the values, named for `save_norm_inputs`."""

    def name(value: jax.Array) -> jax.Array:
        named = checkpoint_name(value, _NAME)
        # All who use the value use this identity, which the backward pass repeats: otherwise each
        # derivative rule would be handed a copy of its own. XLA would take a product by 1 away,
        # and then keeps more.
        form = jnp.finfo(value.dtype)
        return lax.reduce_precision(named, form.nexp, form.nmant)

    return jax.tree.map(name, values)
