"""The affine map of every norm: y = (x - mean) * gain + bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
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
      x: `[...]` array of a real floating-point dtype.
      mean: `[*features]` values to subtract.
      gain: `[*features]` factors.
      bias: `[*features]` values to add.
      axis: the feature axis or axes of `x`.
      mask: boolean array, True at valid positions, as in `Norm.train`. At masked positions, y is
        `bias`, and the value of `x` is not used and has no gradient.
      dtype: the dtype of y; by default the dtype of `x`. The arithmetic is in float32 or wider.

    Returns:
      y, with the shape of `x`. It is differentiable in forward and reverse mode, to any order.
      Reverse mode saves only vectors and `x`, in its own dtype.

    Raises:
      TypeError: `x` has no real floating-point dtype, or `mask` is not boolean.
      ValueError: `axis`, `mask`, `mean`, `gain` or `bias` does not fit `x`.
    """
    x = jnp.asarray(x)
    layout = Layout.of(x, axis, mask)
    layout.require_vectors(x, mean=mean, gain=gain, bias=bias)
    dtype = jnp.dtype(dtype or x.dtype)
    return _affine_once(layout.where_valid(x), mean, gain, bias, layout, dtype)


def apply(statistics, scale, bias, x, layout, dtype) -> jax.Array:
    """Returns (x - mean) * rstd * scale + bias, for statistics with `mean` and `rstd`."""
    return affine(x, statistics.mean, _gain(statistics.rstd, scale), bias, layout, dtype)


def affine(x, mean, gain, bias, layout: Layout, dtype: DTypeLike | None) -> jax.Array:
    """Computes `normalize` of an `x` whose masked positions are 0."""
    wide = np.result_type(layout.dtype, mean.dtype, gain.dtype, bias.dtype)
    mean, gain, bias = mean.astype(wide), gain.astype(wide), bias.astype(wide)
    return _affine(x, mean, gain, bias, layout, jnp.dtype(dtype or x.dtype))


_affine_once = jax.jit(affine, static_argnums=5)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _affine(x, mean, gain, bias, layout, dtype):
    if layout.mask is not None:
        gain, bias = layout.expand(gain, bias)
        return (layout.minus(x, mean) * gain + bias).astype(dtype)
    # As (x - root) * gain, where y is 0 at x = root. This is one operation less per element, so
    # that XLA on a GPU recomputes y in the backward pass instead of saving a mask of it.
    gain = _away_from_zero(gain, bias)
    root = mean - bias / jnp.where(gain == 0, jnp.ones_like(gain), gain)
    root, gain = layout.expand(root, gain)
    return ((x.astype(root.dtype) - root) * gain).astype(dtype)


@_affine.defjvp
def _affine_jvp(dtype, primals, tangents):
    """Returns dy = dx * gain + (x - mean) * dgain + (dbias - dmean * gain)."""
    x, mean, gain, _, layout = primals
    dx, *dvectors, _ = tangents

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(dx, dvectors, x, mean, gain, layout):
        dmean, dgain, dbias = vary_like(dvectors, x)
        centered = Layout.minus(*_apart((layout, x, mean)))
        shifted = dmean * gain
        offset = dbias - shifted
        gain, dgain, dbias, shifted, offset = layout.expand(gain, dgain, dbias, shifted, offset)
        dy = dx.astype(gain.dtype) * gain + centered * dgain
        if layout.mask is None:
            return (dy + offset).astype(dtype)
        return (layout.where_valid(dy - shifted) + dbias).astype(dtype)

    return _affine(*primals, dtype), linear(dx, dvectors, x, mean, gain, layout)


def _apart(operands):
    """Returns the operands of a sum; on a CPU, barriers hide their other uses from XLA.

    XLA on a CPU fuses the computation of terms into their sum. If the terms have another use, it
    writes them to memory first.
    """
    # One barrier for each array: a common one would make all vary over the same named axes.
    barriers = functools.partial(jax.tree.map, lax.optimization_barrier)
    return lax.platform_dependent(operands, cpu=barriers, default=tuple)


@jax.checkpoint
def _gain(rstd, scale):
    return rstd * scale.astype(rstd.dtype)


def _away_from_zero(gain, bias):
    """Returns a gain that the bias can be divided by, with the same effect on y as `gain`.

    The least gain is the bias times a power of 2. The power is so small that x - root equals
    -bias / gain to the last digit, so y is exactly the bias where the scale is 0. Where the bias is
    0, every gain is allowed.
    """
    tiny = float(jnp.finfo(gain.dtype).tiny)
    bias = bias + jnp.zeros_like(gain)  # With the shardings of both.
    least = jnp.maximum(jnp.abs(bias) * (64 * tiny), jnp.asarray(tiny, gain.dtype))
    least = jnp.where(bias == 0, jnp.zeros_like(bias), least)
    return jnp.where(jnp.abs(gain) < least, least, gain)
