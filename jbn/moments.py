"""Mean and variance of a batch: exact under masks and shards, in one pass, at any offset."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jbn import features, shards
from jbn.policy import kept


class Moments(NamedTuple):
    """What a batch says of each feature.

    Attributes:
      mean: `[*features]` mean, float32 or wider.
      var: `[*features]` biased variance, E[(x - mean)^2], of the same dtype.
      count: `[]` number of values behind each of them, of the same dtype. With 0 of them, mean and
        var are 0.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def moments(
    x: ArrayLike,
    axis: features.Axes = -1,
    *,
    mask: ArrayLike | None = None,
    axis_name: shards.AxisName | None = None,
    axis_index_groups: shards.Groups | None = None,
) -> Moments:
    """Returns mean, biased variance and count of each feature, in one pass over `x`.

    Sums are taken of `x - shift`, with the first valid element of each feature as the shift. So
    nothing cancels at any offset: relative errors grow with ((mean - shift) / std)^2, not with
    (mean / std)^2 (Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance").
    On a TPU the shift is 0, and only data with a mean over 8 deviations from 0 takes a second pass.

    Args:
      x: `[...]` of a real floating-point dtype; float16 and bfloat16 are computed in float32.
      axis: the feature axis or axes; all others are reduced.
      mask: boolean, broadcastable to `x` without its feature axes; True marks what counts. What it
        hides is never computed with, be it NaN.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread. The
        moments are those of the union of the shards, which may hold different numbers of valid
        elements, or none.
      axis_index_groups: a partition of the shards; each group is a batch of its own.

    Returns:
      The `Moments`, differentiable in both modes and to any order.

    Raises:
      TypeError: `x` is not real floating point, or `mask` is not boolean.
      ValueError: `axis`, `mask` or `axis_index_groups` does not fit `x` or the shards.
      NameError: `axis_name` is not bound.
    """
    parts = shifted_moments(
        x, axis, mask=mask, axis_name=axis_name, axis_index_groups=axis_index_groups
    )
    return parts.joined()


def merge(a: Moments, b: Moments) -> Moments:
    """Returns the moments of the union of two disjoint batches.

    Chan, Golub & LeVeque 1983, with the squared deviations divided by the count.

    Args:
      a: moments of one batch, possibly empty.
      b: moments of the other, of the same shapes.
    """
    count = a.count + b.count
    share = b.count / _or_one(count)
    delta = b.mean - a.mean
    return Moments(
        mean=a.mean + delta * share,
        var=a.var + (b.var - a.var) * share + delta**2 * share * (1 - share),
        count=count,
    )


class ShiftedMoments(NamedTuple):
    """Moments whose mean is `shift + offset`, two parts that together lose no digits.

    Attributes:
      shift: `[*features]` an element of the batch; carries no gradient.
      offset: `[*features]` mean of x - shift.
      var: `[*features]` biased variance.
      count: `[]` number of values behind each of them.
    """

    shift: jax.Array
    offset: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]

    def joined(self) -> Moments:
        """Returns them with the mean as one number."""
        return Moments(self.shift + self.offset, self.var, self.count)


def shifted_moments(
    x: ArrayLike,
    axis: features.Axes = -1,
    *,
    mask: ArrayLike | None = None,
    axis_name: shards.AxisName | None = None,
    axis_index_groups: shards.Groups | None = None,
) -> ShiftedMoments:
    """Returns the `moments` of `x` before the two parts of the mean are joined."""
    x = jnp.asarray(x)
    axes = features.feature_axes(x, axis)
    groups = shards.freeze_groups(axis_index_groups)
    if axis_name is not None:
        shards.shard_count(axis_name, groups)
    mask = features.along_positions(mask, x, axes)
    return _moments_traced_once(x, mask, axes, axis_name, groups)


def union(parts: ShiftedMoments) -> ShiftedMoments:
    """Returns the moments of the union of batches stacked on the first axis, some of them empty."""
    counts = jnp.expand_dims(parts.count, range(1, parts.var.ndim))
    count = jnp.sum(parts.count, 0)
    weight = counts / _or_one(count)
    filled = jnp.argmax(counts > 0, 0, keepdims=True)
    shift = jnp.take_along_axis(parts.shift, filled, 0)
    offsets = jnp.where(counts > 0, (parts.shift - shift) + parts.offset, 0)
    offset = jnp.sum(weight * offsets, 0)
    var = jnp.sum(weight * (parts.var + (offsets - offset) ** 2), 0)
    return ShiftedMoments(shift[0], offset, var, count)


def gathered(
    parts: ShiftedMoments, axis_name: shards.AxisName, groups: shards.Groups | None
) -> ShiftedMoments:
    """Returns the moments of all shards, stacked on a new first axis, by one collective."""
    count = jnp.expand_dims(parts.count, range(parts.count.ndim, parts.var.ndim))
    rows = jnp.stack([*parts[:3], jnp.broadcast_to(count, parts.var.shape)])
    shift, offset, var, count = jnp.moveaxis(shards.all_gather(rows, axis_name, groups), 1, 0)
    return ShiftedMoments(
        shift, offset, var, count[(..., *(0,) * (var.ndim - 1 - parts.count.ndim))]
    )


def means(
    terms: Sequence[jax.Array],
    count: jax.Array,
    axes: tuple[int, ...],
    axis_name: shards.AxisName | None,
    groups: shards.Groups | None,
) -> jax.Array:
    """Returns the sum of each term over the batch, divided by the count, by one collective."""
    sums = jnp.stack([jnp.sum(term, features.reduced_axes(term, axes)) for term in terms])
    if axis_name is not None:
        sums = shards.all_sum(sums, axis_name, groups)
    return sums / jnp.maximum(count, 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _moments(x, mask, axes, axis_name, groups) -> ShiftedMoments:
    batch = _local_moments(x, mask, axes)
    return batch if axis_name is None else union(gathered(batch, axis_name, groups))


@_moments.defjvp
def _moments_jvp(axes, axis_name, groups, primals, tangents):
    """The tangents: dmean = sum(dx) / n, dvar = 2 sum((x - mean) dx) / n, over all shards."""
    x, mask = primals
    out = kept(_moments(x, mask, axes, axis_name, groups))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(dx, x, mask, mean, count):
        mean = features.along_features(mean, x, axes)
        centred = features.where_valid(mask, x.astype(mean.dtype) - mean)
        dx = features.where_valid(mask, dx.astype(mean.dtype))
        return means((dx, 2 * centred * dx), count, axes, axis_name, groups)

    dmean, dvar = linear(tangents[0], x, mask, out.joined().mean, out.count)
    zero = jnp.zeros_like
    return out, ShiftedMoments(zero(out.shift), dmean, dvar, zero(out.count))


# The layers of a network share a trace where their shapes are the same.
_moments_traced_once = jax.jit(_moments, static_argnums=(2, 3, 4))


def _local_moments(x, mask, axes) -> ShiftedMoments:
    """Moments of this shard alone."""
    count = _count(x, mask, axes).astype(features.statistics_dtype(x))
    about_zero = functools.partial(_about_zero_if_close, axes=axes)
    about_first = functools.partial(_about_first_valid, axes=axes)
    size = shards.vary_like(jnp.maximum(count, 1), x)
    shift, offset, var = lax.platform_dependent(x, mask, size, tpu=about_zero, default=about_first)
    return ShiftedMoments(shift, offset, var, count)


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

    def deviation():
        # The barrier keeps the two sums from sharing one difference, which XLA would write to
        # memory on a CPU.
        origin = features.along_features(lax.optimization_barrier(shift), x, axes)
        return features.where_valid(mask, x.astype(shift.dtype) - origin)

    reduced = features.reduced_axes(x, axes)
    return jnp.sum(deviation(), reduced), jnp.sum(deviation() ** 2, reduced)


def _sums_by_slices(shift, x, mask, axes):
    """The same, added up over slices of the innermost of several reduced axes.

    As a whole, x would be copied into another layout first.
    """
    *outer, inner = features.reduced_axes(x, axes)
    slices = math.gcd(x.shape[inner], 8) if outer else 1

    def add_up(shift, x, mask):
        def add(i, sums):
            width = x.shape[inner] // slices
            part = [
                a if a is None else lax.dynamic_slice_in_dim(a, i * width, width, inner)
                for a in (x, mask)
            ]
            return jax.tree.map(jnp.add, sums, _sums(shift, *part, axes))

        zero = shards.vary_like(jnp.zeros_like(shift), x)
        return lax.fori_loop(0, slices, add, (zero, zero))

    vector = shards.spread_like(x, axes)
    return shards.with_automatic_axes(add_up, x, (vector, vector))(shift, x, mask)


def _or_one(count: jax.Array) -> jax.Array:
    return jnp.where(count > 0, count, jnp.ones((), count.dtype))


def _count(x, mask, axes) -> jax.Array:
    if mask is None:
        return jnp.float32(math.prod(x.shape[a] for a in features.reduced_axes(x, axes)))
    return jnp.sum(mask, dtype=jnp.int32)


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
