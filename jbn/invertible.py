"""Activations that can be undone: input and slope follow from the output."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jbn import features


class InvertibleActivation(NamedTuple):
    """An activation z -> y of which y tells all.

    Attributes:
      apply: `apply(z) -> y`, strictly increasing, of the shape and dtype of z.
      invert: `invert(y) -> z` in float32 or wider, for y of any dtype; finite for every finite y.
      slope: `slope(y) -> dy/dz` in float32 or wider.
    """

    apply: Callable[[jax.Array], jax.Array]
    invert: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]


def _wide(y: jax.Array) -> jax.Array:
    return y.astype(features.statistics_dtype(y))


identity = InvertibleActivation(lambda z: z, _wide, lambda y: jnp.ones_like(_wide(y)))
"""No activation."""


def leaky_relu(negative_slope: float = 0.01) -> InvertibleActivation:
    """Returns z for z >= 0 and negative_slope * z below.

    Args:
      negative_slope: positive, so that nothing is lost.

    Raises:
      ValueError: it is not positive.
    """
    if not negative_slope > 0:
        raise ValueError(f"negative_slope={negative_slope} must be positive to be undone.")

    def slope(y):
        return jnp.where(y >= 0, 1, jnp.asarray(negative_slope, _wide(y).dtype))

    return InvertibleActivation(
        apply=lambda z: jax.nn.leaky_relu(z, negative_slope),
        invert=lambda y: _wide(y) / slope(y),
        slope=slope,
    )


def elu(alpha: float = 1.0) -> InvertibleActivation:
    """Returns z for z > 0 and alpha * (exp(z) - 1) below (Clevert et al. 2016).

    Where y has been rounded to -alpha, its z is taken to be what half a rounding step away gives:
    -5.5 in bfloat16, -16.6 in float32.

    Args:
      alpha: positive.

    Raises:
      ValueError: it is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be positive to be undone.")

    def invert(y):
        least = float(jnp.finfo(y.dtype).eps) / 2 - 1
        y = _wide(y)
        return jnp.where(y > 0, y, jnp.log1p(jnp.clip(y / alpha, least, 0)))

    return InvertibleActivation(
        apply=lambda z: jax.nn.elu(z, alpha),
        invert=invert,
        slope=lambda y: jnp.where(y > 0, 1, _wide(y) + alpha),
    )
