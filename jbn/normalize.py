"""The affine map of every norm: y = (x - mean) * gain + bias."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jbn import features, shards


def normalize(
    x: ArrayLike,
    mean: jax.Array,
    gain: jax.Array,
    bias: jax.Array,
    axis: features.Axes = -1,
    *,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Returns (x - mean) * gain + bias, where gain = scale / sqrt(var + epsilon).

    Args:
      x: `[...]` of a real floating-point dtype.
      mean: `[*features]` what to subtract.
      gain: `[*features]` what to multiply by.
      bias: `[*features]` what to add.
      axis: the feature axis or axes of `x`.
      mask: boolean, broadcastable to `x` without its feature axes. Where it is False, y is `bias`
        and no gradient flows.
      dtype: of y; by default that of `x`. The arithmetic is in float32 or wider.

    Returns:
      y, of the shape of `x`, differentiable in both modes and to any order. Reverse mode keeps `x`
      in its own dtype and vectors, nothing else.

    Raises:
      TypeError: `x` is not real floating point, or `mask` is not boolean.
      ValueError: `axis`, `mask`, `mean`, `gain` or `bias` does not fit `x`.
    """
    x = jnp.asarray(x)
    axes = features.feature_axes(x, axis)
    features.require_feature_shape(x, axes, mean=mean, gain=gain, bias=bias)
    wide = features.statistics_dtype(x, mean, gain, bias)
    vectors = [vector.astype(wide) for vector in (mean, gain, bias)]
    mask = features.along_positions(mask, x, axes)
    return _normalize_traced_once(x, *vectors, mask, axes, jnp.dtype(dtype or x.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(5, 6))
def _normalize(x, mean, gain, bias, mask, axes, dtype):
    # As (x - root) * gain, where root is the x that gives 0: an operation less on every element,
    # with which a GPU's compiler recomputes y in the backward pass rather than keep a mask of it.
    gain = _away_from_zero(gain)
    root = mean - bias / gain
    root, gain, bias = (features.along_features(v, x, axes) for v in (root, gain, bias))
    y = (x.astype(gain.dtype) - root) * gain
    return (y if mask is None else jnp.where(mask, y, bias)).astype(dtype)


@_normalize.defjvp
def _normalize_jvp(axes, dtype, primals, tangents):
    """The tangent: dy = dx * gain + (x - mean) * dgain + (dbias - dmean * gain)."""
    x, mean, gain, _, mask = primals
    dx, *dvectors, _ = tangents

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(dx, dvectors, x, mean, gain, mask):
        dmean, dgain, dbias = shards.vary_like(dvectors, x)
        mean, gain, dgain, dbias, doffset = (
            features.along_features(v, x, axes)
            for v in (mean, gain, dgain, dbias, dbias - dmean * gain)
        )
        centred = features.where_valid(mask, x.astype(mean.dtype) - mean)
        dy = dx.astype(mean.dtype) * gain + centred * dgain + doffset
        return (dy if mask is None else jnp.where(mask, dy, dbias)).astype(dtype)

    return _normalize(*primals, axes, dtype), linear(dx, dvectors, x, mean, gain, mask)


# The layers of a network share a trace where their shapes are the same.
_normalize_traced_once = jax.jit(_normalize, static_argnums=(5, 6))


def _away_from_zero(gain):
    """Returns `gain`, with the least number whose inverse is finite by a margin in place of 0."""
    least = jnp.asarray(jnp.finfo(gain.dtype).tiny ** 0.5, gain.dtype)
    return jnp.where(jnp.abs(gain) < least, least, gain)
