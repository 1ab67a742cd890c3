"""Mean and variance of a batch: exact under masks and shards, at any offset."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from jbn._core.export import exportable
from jbn._core.layout import Axes, Layout, Mask, vary_like
from jbn._core.shards import AxisName, Groups, Shards, freeze_groups
from jbn._core.shifted_means import shifted_means

SAVE_POINT = "jbn.save_point"
"""The name of the arrays that `jbn.save_norm_inputs` saves."""


@exportable
class Moments(NamedTuple):
    """Statistics of a batch, for each feature.

    Attributes:
      mean: `[*features]` mean, in float32 or wider.
      var: `[*features]` biased variance, E[(x - mean)^2], in the same dtype.
      count: `[]` number of valid values of each feature, in the same dtype. If it is 0, the mean
        and the variance are 0.
      examples: `[]` number of examples, in the same dtype: the count divided by the number of
        values that an example has for each feature.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    examples: jax.Array


def moments(
    x: ArrayLike,
    axis: Axes = -1,
    *,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Groups | None = None,
) -> Moments:
    """Returns the mean, the biased variance and the count of each feature.

    The variance is computed from the means of x - shift and of (x - shift)^2. Its relative error
    grows with ((mean - shift) / std)^2 (Chan, Golub & LeVeque 1983, "Algorithms for computing the
    sample variance"), so the shift must be near the mean. On a GPU, the shift is the mean of the
    first valid position and a random sample of sqrt(n) / 4 of the n positions. On a CPU and a TPU,
    the shift is 0 at first. If a mean is more than 3 standard deviations from 0, a second pass over
    x follows. Its shift is the mean of such a sample on a CPU, and the first mean on a TPU.

    >>> import jax.numpy as jnp
    >>> batch = jbn.moments(jnp.array([[1.0], [3.0], [8.0]]))
    >>> print(batch.mean, batch.count)
    [4.] 3.0

    Args:
      x: `[...]` array of a real floating-point dtype. The arithmetic for float16 and bfloat16 is
        in float32.
      axis: the feature axis or axes of x; all other axes are reduced.
      mask: boolean array, True at valid positions, as in `Norm.train`. Masked positions never enter
        the computation, so they may hold NaN.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread. The
        moments equal those of the whole batch, even when shards hold different numbers of valid
        values, or none.
      axis_index_groups: a partition of the shards; each group of shards is a separate batch.

    Returns:
      The `Moments`. They are differentiable in forward and reverse mode, to any order.

    Raises:
      TypeError: `x` has no real floating-point dtype, or `mask` is not boolean.
      ValueError: `axis`, `mask` or `axis_index_groups` does not fit `x` or the shards.
      NameError: `axis_name` is not bound.
    """
    x = jnp.asarray(x)
    shards = Shards(axis_name, freeze_groups(axis_index_groups))
    shards.size()
    layout = Layout.of(x, axis, mask)
    return _moments_once(layout.where_valid(x), layout, shards)


def merge(a: Moments, b: Moments) -> Moments:
    """Returns the moments of the union of two disjoint batches.

    The formulas are those of Chan, Golub & LeVeque (1983), with the sums of squared deviations
    divided by the count.

    >>> import jax.numpy as jnp
    >>> a, b = jbn.moments(jnp.array([[1.0], [3.0]])), jbn.moments(jnp.array([[8.0]]))
    >>> print(jbn.merge(a, b).mean)
    [4.]

    Args:
      a: the moments of one batch, which may be empty.
      b: the moments of the other batch, with the same shapes.
    """
    count = a.count + b.count
    share = b.count / _or_one(count)
    delta = b.mean - a.mean
    return Moments(
        mean=a.mean + delta * share,
        var=a.var + (b.var - a.var) * share + delta**2 * share * (1 - share),
        count=count,
        examples=a.examples + b.examples,
    )


def moments_of(x: jax.Array, layout: Layout, shards: Shards) -> Moments:
    """Returns the moments of an `x` whose masked positions are 0."""
    shift, offset, var, count = shifted_moments(x, layout, shards)
    return Moments(shift + offset, var, count, layout.examples(count))


_moments_once = jax.jit(moments_of, static_argnums=2)


class ShiftedMoments(NamedTuple):
    """Moments whose mean is `shift + offset`, two parts, so that the mean loses no digits.

    Attributes:
      shift: `[*features]` values near the mean; they carry no gradient.
      offset: `[*features]` mean of x - shift.
      var: `[*features]` biased variance.
      count: `[]` number of valid values of each feature.
    """

    shift: jax.Array
    offset: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def shifted_moments(x: jax.Array, layout: Layout, shards: Shards) -> ShiftedMoments:
    """Returns the moments, over all shards, of an `x` whose masked positions are 0."""
    here = _moments_here(x, layout)
    return here if shards.axis_name is None else merge_rows(gather(here, shards))


@shifted_moments.defjvp
def _shifted_moments_jvp(shards, primals, tangents):
    """Returns dmean = sum(dx) / n and dvar = 2 sum((x - mean) dx) / n, summed over all shards."""
    x, layout = primals
    out = jax.tree.map(save_point, shifted_moments(x, layout, shards))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(dx, x, layout, mean, count):
        dx = dx.astype(mean.dtype)
        return sums_over_count((dx, 2 * layout.minus(x, mean) * dx), count, layout, shards)

    dmean, dvar = linear(tangents[0], x, layout, out.shift + out.offset, out.count)
    return out, ShiftedMoments(jnp.zeros_like(out.shift), dmean, dvar, jnp.zeros_like(out.count))


def save_point(x: jax.Array) -> jax.Array:
    """Returns `x` with the name `SAVE_POINT`."""
    # All derivative rules use the result of this identity, and the backward pass repeats it.
    # Without it, each rule would save its own copy. A product by 1 does not work: XLA removes it,
    # and then saves more.
    form = jnp.finfo(x.dtype)
    return lax.reduce_precision(checkpoint_name(x, SAVE_POINT), form.nexp, form.nmant)


def save_input(x: jax.Array) -> jax.Array:
    """Returns `x` with the name `SAVE_POINT`, such that XLA on a CPU can fuse it into sums."""
    form = jnp.finfo(x.dtype)
    return _rounded_elsewhere(checkpoint_name(x, SAVE_POINT), form.nexp, form.nmant)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _rounded_elsewhere(x: jax.Array, exponent_bits: int, mantissa_bits: int) -> jax.Array:
    """Returns `x`: unchanged on a CPU, elsewhere rounded to the precision that it already has."""
    rounded = functools.partial(
        lax.reduce_precision, exponent_bits=exponent_bits, mantissa_bits=mantissa_bits
    )
    return lax.platform_dependent(x, cpu=operator.pos, default=rounded)


@_rounded_elsewhere.defjvp
def _rounded_elsewhere_jvp(exponent_bits, mantissa_bits, primals, tangents):
    return _rounded_elsewhere(*primals, exponent_bits, mantissa_bits), *tangents


def merge_rows(rows: ShiftedMoments) -> ShiftedMoments:
    """Merges the moments of batches stacked on the first axis; some batches may be empty."""
    counts = jnp.expand_dims(rows.count, range(1, rows.var.ndim))
    count = jnp.sum(rows.count, 0)
    weight = counts / _or_one(count)
    first_valid = jnp.argmax(counts > 0, 0, keepdims=True)
    shift = jnp.take_along_axis(rows.shift, first_valid, 0)
    offsets = jnp.where(counts > 0, (rows.shift - shift) + rows.offset, 0)
    offset = jnp.sum(weight * offsets, 0)
    var = jnp.sum(weight * (rows.var + (offsets - offset[None]) ** 2), 0)
    return ShiftedMoments(shift[0], offset, var, count)


def gather(here: ShiftedMoments, shards: Shards) -> ShiftedMoments:
    """Stacks the moments of all shards on a new first axis, with one collective."""
    count = jnp.expand_dims(here.count, range(here.count.ndim, here.var.ndim))
    rows = jnp.stack([*here[:3], jnp.broadcast_to(count, here.var.shape)])
    shift, offset, var, count = jnp.moveaxis(shards.gather(rows), 1, 0)
    first_feature = (0,) * (here.var.ndim - here.count.ndim)
    return ShiftedMoments(shift, offset, var, count[(..., *first_feature)])


def sums_over_count(terms, count, layout: Layout, shards: Shards) -> list[jax.Array]:
    """Sums each term over the batch and divides it by the count, with one collective."""
    sums = [jnp.sum(term, layout.reduced) for term in terms]
    if shards.axis_name is not None:
        sums = shards.sum(jnp.stack(sums))
    return [total / jnp.maximum(count, 1) for total in sums]


@jax.jit  # The derivative rule calls it as well, and shares its trace.
def _moments_here(x, layout) -> ShiftedMoments:
    """Returns the moments of this shard alone."""
    count = layout.count(x)
    if x.size == 0:
        shift, offset, var = vary_like((jnp.zeros(layout.feature_shape, layout.dtype),) * 3, x)
        return ShiftedMoments(shift, offset, var, count)
    shift, offset, square = shifted_means(x, layout, jnp.maximum(count, 1))
    var = jnp.maximum(square - offset**2, 0)
    return ShiftedMoments(shift, offset, var, count)


def _or_one(count: jax.Array) -> jax.Array:
    return jnp.where(count > 0, count, jnp.ones((), count.dtype))
