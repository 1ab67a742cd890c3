"""Means of x - shift and of its square, with a shift that keeps the digits of the variance.

The relative error of a variance from such means grows with ((mean - shift) / std)^2 (Chan, Golub &
LeVeque 1983, "Algorithms for computing the sample variance"). Each platform has its own form.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jbn._core.layout import Layout, vary_like, with_automatic_axes

FAR = 3
"""The largest distance of a mean from 0, in standard deviations, that needs no shift."""


class ShiftedMeans(NamedTuple):
    """Means over the valid positions of a batch, for each feature.

    Attributes:
      shift: `[*features]` the values that were subtracted.
      mean: `[*features]` mean of x - shift.
      square: `[*features]` mean of (x - shift)^2.
    """

    shift: jax.Array
    mean: jax.Array
    square: jax.Array


def shifted_means(x: jax.Array, layout: Layout, size: jax.Array) -> ShiftedMeans:
    """Returns the means of an `x` whose masked positions are 0.

    Args:
      x: `[...]` array of a real floating-point dtype, not empty.
      layout: the layout of x.
      size: `[]` number of valid positions, or 1 if there are none.
    """
    return lax.platform_dependent(
        x,
        layout,
        size,
        cuda=_about_mean_of_sample,
        rocm=_about_mean_of_sample,
        default=_about_0_unless_far,
    )


def _about_0_unless_far(x, layout, size) -> ShiftedMeans:
    """Returns means of x and x^2 or, if a mean is far from 0, of x - shift and its square.

    The first sums need no element of x beforehand, so XLA on a TPU fuses them into the convolution
    that computes x.
    """
    first, second = _for_two_sums(x)
    mean = jnp.sum(first.astype(layout.dtype), layout.reduced) / size
    square = jnp.sum(second.astype(layout.dtype) ** 2, layout.reduced) / size
    var = square - mean**2
    close = (mean**2 <= FAR**2 * var) & (var < jnp.inf)

    def far(*_):
        by_slices = functools.partial(_about_mean_by_slices, mean)
        return lax.platform_dependent(x, layout, size, tpu=by_slices, default=_about_mean_of_sample)

    zero = jnp.zeros_like(mean)
    return lax.cond(_all_true(close), ShiftedMeans, far, zero, mean, square)


@jax.custom_batching.custom_vmap
def _all_true(condition) -> jax.Array:
    """Returns whether a condition holds for all features and, under `vmap`, for all members.

    If each member had its own condition, `lax.cond` would compute both of its branches.
    """
    return jnp.all(condition)


@_all_true.def_vmap
def _all_true_for_all_members(axis_size, is_batched, condition):
    return _all_true(condition), False


@jax.jit  # The branches of several platforms share its trace.
def _about_mean_of_sample(x, layout, size) -> ShiftedMeans:
    """Returns means of x - shift and its square, with the mean of a sample of x as the shift."""
    shift = with_automatic_axes(_mean_of_sample, x, layout.axes)(x, layout)
    sums = _sums(shift, x, layout)
    return ShiftedMeans(shift, sums[0] / size, sums[1] / size)


def _about_mean_by_slices(mean, x, layout, size) -> ShiftedMeans:
    """Returns means of x - mean and its square, on a TPU, which would copy x to gather a sample.

    The variance is not finite where the mean is so large (about 1e25 or more) that the square of
    its rounding error is infinite.
    """
    if len(layout.reduced) > 1 and isinstance(x.shape[layout.reduced[-1]], int):
        sums = _sums_by_slices(mean, x, layout)
    else:
        sums = _sums(mean, x, layout)
    return ShiftedMeans(mean, sums[0] / size, sums[1] / size)


@jax.jit
def _sums(shift, x, layout):
    """Returns the sums of x - shift and of its square."""
    (layout, *operands), (same_layout, *same) = _for_two_sums((layout, x, shift))
    total = jnp.sum(layout.minus(*operands), layout.reduced)
    return total, jnp.sum(same_layout.minus(*same) ** 2, layout.reduced)


def _for_two_sums(terms):
    """Returns terms twice; on a CPU, a barrier hides from XLA that both are the same.

    XLA on a CPU fuses the computation of terms into their sum. If the terms have another use, it
    writes them to memory first.
    """
    return lax.platform_dependent((terms, terms), cpu=lax.optimization_barrier, default=tuple)


def _sums_by_slices(shift, x, layout):
    """Returns the results of `_sums`, added up over slices of the innermost reduced axis.

    XLA on a TPU would copy x into another layout to reduce several axes at once.
    """
    inner = layout.reduced[-1]
    slices = math.gcd(x.shape[inner], 8)

    def add_up(x, shift, layout):
        def add(i, sums):
            width = x.shape[inner] // slices
            part: Any = functools.partial(
                lax.dynamic_slice_in_dim, start_index=i * width, slice_size=width, axis=inner
            )
            more = _sums(shift, part(x), jax.tree.map(part, layout))
            return jax.tree.map(jnp.add, sums, more)

        zeros = vary_like((jnp.zeros_like(shift),) * 2, x)
        return lax.fori_loop(0, slices, add, tuple(zeros))

    return with_automatic_axes(add_up, x, layout.axes, layout.axes)(x, shift, layout)


def _mean_of_sample(x, layout) -> jax.Array:
    """Returns the mean of the first valid element and a random sample; 0 if none is valid."""
    at = _sampled_positions(tuple(map(x.shape.__getitem__, layout.reduced)))
    if layout.mask is None:
        rows = _pick(x, layout.reduced, at).astype(layout.dtype)
        return rows[0] + jnp.mean(rows - rows[:1], 0)
    first = jnp.unravel_index(jnp.argmax(layout.mask), layout.mask.shape)
    first = [first[axis].astype(jnp.int32) for axis in layout.reduced]
    at = jnp.asarray(at).at[:, 0].set(jnp.stack(first)) if first else at
    rows = _pick(x, layout.reduced, at).astype(layout.dtype)
    valid = jnp.broadcast_to(_pick(layout.mask, layout.reduced, at), rows.shape)
    origin = jnp.where(valid[0], rows[0], jnp.zeros((), rows.dtype))[None]
    total = jnp.sum(jnp.where(valid, rows, origin) - origin, 0)
    return origin[0] + total / jnp.maximum(jnp.sum(valid, 0, dtype=rows.dtype), 1)


def _sampled_positions(shape) -> np.ndarray | jax.Array:
    """Returns the indices `[axes, samples]` of the first position and of random positions."""
    positions = math.prod(shape)
    samples = math.isqrt(positions) // 4 if isinstance(positions, int) else 1024
    # Random, since a fixed stride could match the rows of images; seeded, to be reproducible.
    shares = np.random.default_rng(0).random((len(shape), 1 + samples))
    shares[:, 0] = 0
    if isinstance(positions, int):
        return (shares * np.reshape(shape, (-1, 1))).astype(np.int32)
    sizes = jnp.stack([jnp.asarray(size, jnp.float32) for size in shape])[:, None]
    at = jnp.floor(jnp.asarray(shares, jnp.float32) * sizes)
    return jnp.minimum(at, sizes - 1).astype(jnp.int32)


def _pick(array, axes, at) -> jax.Array:
    """Returns the elements at indices along some axes, stacked on a new first axis."""
    if not axes:
        return array[None]
    index: list[Any] = [slice(None)] * array.ndim
    for axis, indices in zip(axes, at, strict=True):
        index[axis] = indices
    # With arrays of indices, each device gathers from its own part of a sharded x. A dynamic slice
    # would copy all of x to every device.
    picked = array.at[tuple(index)].get(mode="promise_in_bounds")
    adjacent = axes[-1] - axes[0] == len(axes) - 1
    return jnp.moveaxis(picked, axes[0] if adjacent else 0, 0)
