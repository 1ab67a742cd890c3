"""The affine map of every norm: y = (x - mean) * gain + bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jbn._core.layout import Axes, Layout, Mask, vary_like


def normalize(
    x: ArrayLike,
    mean: jax.Array,
    gain: jax.Array,
    bias: jax.Array,
    axis: Axes = -1,
    *,
    mask: Mask = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Returns (x - mean) * gain + bias, where gain = scale / sqrt(var + epsilon).

    >>> import jax.numpy as jnp
    >>> x, one = jnp.array([[1.0], [3.0]]), jnp.ones(1)
    >>> print(jbn.normalize(x, mean=2 * one, gain=2 * one, bias=one).ravel())
    [-1.  3.]

    Args:
      x: `[...]` of a real floating-point dtype.
      mean: `[*features]` what to subtract.
      gain: `[*features]` what to multiply by.
      bias: `[*features]` what to add.
      axis: the feature axis or axes of `x`.
      mask: boolean, broadcastable to the shape of `x` without its feature axes. Where it is False,
        y is `bias` and no gradient flows.
      dtype: the dtype of y; by default that of `x`. The arithmetic is in float32 or wider.

    Returns:
      y, of the shape of `x`, differentiable in both modes and to any order. Reverse mode saves `x`
      in its own dtype and vectors, nothing else.

    Raises:
      TypeError: `x` is not real floating point, or `mask` is not boolean.
      ValueError: `axis`, `mask`, `mean`, `gain` or `bias` does not fit `x`.
    """
    x = jnp.asarray(x)
    layout = Layout.of(x, axis, mask)
    layout.require_vectors(x, mean=mean, gain=gain, bias=bias)
    return affine(x, mean, gain, bias, layout, jnp.dtype(dtype or x.dtype))


def apply(statistics, scale, bias, x, layout, dtype) -> jax.Array:
    """Returns (x - mean) * rstd * scale + bias, for statistics with `mean` and `rstd`."""
    return affine(x, statistics.mean, _gain(statistics.rstd, scale), bias, layout, dtype)


# Layers of equal shapes share a trace.
@functools.partial(jax.jit, static_argnums=5)
def affine(x, mean, gain, bias, layout: Layout, dtype: DTypeLike | None) -> jax.Array:
    """Returns `normalize` of an `x` whose layout has been checked."""
    wide = np.result_type(layout.dtype, mean.dtype, gain.dtype, bias.dtype)
    mean, gain, bias = mean.astype(wide), gain.astype(wide), bias.astype(wide)
    return _affine(x, mean, gain, bias, layout, jnp.dtype(dtype or x.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _affine(x, mean, gain, bias, layout, dtype):
    # As (x - root) * gain, where root is the x that gives 0: an operation less on every element,
    # with which a GPU's compiler recomputes y in the backward pass rather than save a mask of it.
    gain = _away_from_zero(gain)
    root, gain, bias = layout.expand(mean - bias / gain, gain, bias)
    y = (x.astype(gain.dtype) - root) * gain
    return (y if layout.mask is None else jnp.where(layout.mask, y, bias)).astype(dtype)


@_affine.defjvp
def _affine_jvp(dtype, primals, tangents):
    """The tangent: dy = dx * gain + (x - mean) * dgain + (dbias - dmean * gain)."""
    x, mean, gain, _, layout = primals
    dx, *dvectors, _ = tangents

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(dx, dvectors, x, mean, gain, layout):
        dmean, dgain, dbias = vary_like(dvectors, x)
        offset = dbias - dmean * gain
        mean, gain, dgain, dbias, offset = layout.expand(mean, gain, dgain, dbias, offset)
        centered = layout.where_valid(x.astype(mean.dtype) - mean)
        dy = dx.astype(mean.dtype) * gain + centered * dgain + offset
        return (dy if layout.mask is None else jnp.where(layout.mask, dy, dbias)).astype(dtype)

    return _affine(*primals, dtype), linear(dx, dvectors, x, mean, gain, layout)


@jax.checkpoint
def _gain(rstd, scale):
    return rstd * scale.astype(rstd.dtype)


def _away_from_zero(gain):
    """Returns `gain`, with the least number whose inverse is finite by a margin in place of 0."""
    least = jnp.asarray(jnp.finfo(gain.dtype).tiny ** 0.5, gain.dtype)
    return jnp.where(jnp.abs(gain) < least, least, gain)
