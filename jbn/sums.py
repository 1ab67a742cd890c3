"""Mean and variance of what one device holds, by sums that don't cancel."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jbn import features, shards


def shift_offset_var(
    x: jax.Array, mask: jax.Array | None, size: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns a shift, the mean of x - shift and the biased variance of each feature.

    Args:
      x: `[...]` of a real floating-point dtype.
      mask: what counts, of as many axes as x.
      size: `[]` how many values that is, or 1; of the dtype of the results.
      axes: the feature axes of x.
    """
    about_zero = functools.partial(_about_zero_if_close, axes=axes)
    about_first = functools.partial(_about_first_valid, axes=axes)
    (size,) = shards.vary_like((size,), x)
    return lax.platform_dependent(x, mask, size, tpu=about_zero, default=about_first)


def _about_first_valid(x, mask, size, axes):
    """Shift, offset and variance, with the first valid element of each feature as the shift."""
    first_valid = functools.partial(_first_valid, axes=axes)
    first_valid = shards.with_automatic_axes(first_valid, x, shards.spread_like(x, axes))
    shift = first_valid(x, mask).astype(size.dtype)
    return shift, *_about(shift, x, mask, size, axes)


def _about_zero_if_close(x, mask, size, axes):
    """Shift, offset and variance; the shift is 0 unless a mean is over 8 deviations away from it.

    A TPU sums what a convolution gives while it computes it, but not where an element of that has
    to be known first. Up to 8 deviations plain sums lose less than two digits of float32; beyond,
    a second pass takes them about their mean.
    """
    zero = jnp.zeros(features.feature_shape(x, axes), size.dtype)
    mean, var = _about(zero, x, mask, size, axes)

    def again():
        return mean, *_mean_and_variance(_sums_by_slices(mean, x, mask, axes), size)

    close = jnp.all(mean**2 <= 64 * var)
    return lax.cond(close, lambda: (jnp.zeros_like(mean), mean, var), again)


def _about(shift, x, mask, size, axes):
    """Mean of x - shift, and the variance."""
    return _mean_and_variance(_sums(shift, x, mask, axes), size)


def _mean_and_variance(sums, size):
    mean, square = sums[0] / size, sums[1] / size
    return mean, jnp.maximum(square - mean**2, 0)


def _sums(shift, x, mask, axes):
    """The sums of x - shift and of its square."""
    deviation = x.astype(shift.dtype) - features.along_features(shift, x, axes)
    deviation = features.where_valid(mask, deviation)
    reduced = features.reduced_axes(x, axes)
    return jnp.sum(deviation, reduced), jnp.sum(deviation**2, reduced)


def _sums_by_slices(shift, x, mask, axes):
    """The same, added up over slices of the innermost of several reduced axes.

    As a whole, x would be copied into another layout first.
    """
    reduced = features.reduced_axes(x, axes)
    if len(reduced) < 2:
        return _sums(shift, x, mask, axes)
    inner = reduced[-1]
    slices = math.gcd(x.shape[inner], 8)

    def add_up(shift, x, mask):
        def add(i, sums):
            width = x.shape[inner] // slices
            part = functools.partial(
                lax.dynamic_slice_in_dim, start_index=i * width, slice_size=width, axis=inner
            )
            more = _sums(shift, part(x), None if mask is None else part(mask), axes)
            return jax.tree.map(jnp.add, sums, more)

        zeros = shards.vary_like((jnp.zeros_like(shift),) * 2, x)
        return lax.fori_loop(0, slices, add, tuple(zeros))

    vector = shards.spread_like(x, axes)
    return shards.with_automatic_axes(add_up, x, (vector, vector))(shift, x, mask)


def _first_valid(x, mask, axes) -> jax.Array:
    """The first valid element of each feature; 0 if there is none."""
    if x.size == 0:
        return jnp.zeros(features.feature_shape(x, axes), x.dtype)
    if mask is None:
        return x[tuple(slice(None) if a in axes else 0 for a in range(x.ndim))]
    # Indexed by arrays, not scalars: a sharded x is then gathered from where it lies, while a
    # dynamic slice would copy all of it to every device.
    index = jnp.unravel_index(jnp.argmax(mask)[None], mask.shape)
    element = x[tuple(slice(None) if a in axes else i for a, i in enumerate(index))]
    element = element.reshape(features.feature_shape(x, axes))
    return jnp.where(jnp.any(mask), element, jnp.zeros((), x.dtype))
