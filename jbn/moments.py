"""Mean and variance of a batch: exact under masks and shards, in one pass, at any offset."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jbn import features, shards, sums
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
) -> list[jax.Array]:
    """Returns the sum of each term over the batch, divided by the count, by one collective."""
    totals = [jnp.sum(term, features.reduced_axes(term, axes)) for term in terms]
    if axis_name is not None:
        totals = shards.all_sum(jnp.stack(totals), axis_name, groups)
    return [total / jnp.maximum(count, 1) for total in totals]


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
    return ShiftedMoments(*sums.shift_offset_var(x, mask, jnp.maximum(count, 1), axes), count)


def _or_one(count: jax.Array) -> jax.Array:
    return jnp.where(count > 0, count, jnp.ones((), count.dtype))


def _count(x, mask, axes) -> jax.Array:
    if mask is None:
        return jnp.float32(math.prod(x.shape[a] for a in features.reduced_axes(x, axes)))
    return jnp.sum(mask, dtype=jnp.int32)
