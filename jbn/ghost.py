"""Groups of consecutive examples, each a batch of its own, alone and over shards.

Examples are cut into blocks of gcd(examples here, group size): no block is in two groups, and each
group is the union of whole blocks, on one shard or on several, a last one perhaps of fewer.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jbn import features, shards
from jbn.moments import Moments, ShiftedMoments, gathered, shifted_moments, union
from jbn.policy import kept


def require_group_size(group_size: int, index_groups: shards.Groups | None) -> None:
    """Checks the options that say what is normalised together.

    Raises:
      ValueError: `group_size` is not positive, or goes with groups of shards.
    """
    if group_size < 1:
        raise ValueError(f"group_size={group_size} must be a positive number of examples.")
    if index_groups is not None:
        raise ValueError(
            f"group_size={group_size} and axis_index_groups={index_groups} both say what is "
            "normalised together: choose one."
        )


def by_groups(
    f: Callable[..., jax.Array],
    x: jax.Array,
    mask: ArrayLike | None,
    axis: features.Axes,
    group_size: int,
    axis_name: shards.AxisName | None,
    operands: Any,
) -> tuple[jax.Array, Moments]:
    """Returns `f(x, mask, moments, operands)` of each group, joined, and the moments of all groups.

    A group that lies on several shards has the moments of all of it, but each calls `f` with what
    it has of it; where the group size doesn't divide the examples here, with a block at a time.

    Args:
      f: what to do with a group; the result has the shape of its x.
      x: `[...]` with at least one axis that is not a feature axis; the first of them is that of
        examples.
      mask: boolean, broadcastable to x without its feature axes, or None.
      axis: the feature axis or axes.
      group_size: number of examples in a group, counted over all shards.
      axis_name: the named axis or axes over which the batch is spread.
      operands: what else `f` needs, a pytree of arrays.

    Raises:
      ValueError: x has no axis of examples.
    """
    axes = features.feature_axes(x, axis)
    reduced = features.reduced_axes(x, axes)
    if not reduced:
        raise ValueError(
            f"x of shape {x.shape} has no axis of examples for group_size={group_size} to count "
            "along: give it one, of size 1 under a vmap over examples."
        )
    at = reduced[0]
    size = math.gcd(x.shape[at], group_size)
    valid = features.along_positions(mask, x, axes)
    in_axes = (at, None if valid is None else 0)

    def run(x, valid, operands):
        blocks = (
            _cut(x, at, size),
            None if valid is None else _cut(jnp.squeeze(valid, axes), 0, size),
        )
        parts = jax.vmap(lambda x, mask: shifted_moments(x, axes, mask=mask), in_axes)(*blocks)
        groups, whole = kept(_unions(parts, group_size // size, axis_name, x))
        y = jax.vmap(f, (*in_axes, 0, None), at)(*blocks, groups, operands)
        return y.reshape(x.shape), *whole

    vector = shards.spread_like(x, axes)
    spread = shards.spread_like(x, range(x.ndim)), vector, vector, shards.spread_like(x, ())
    y, *whole = shards.with_automatic_axes(run, x, spread)(x, valid, operands)
    return y, Moments(*whole)


def _cut(array: jax.Array, at: int, size: int) -> jax.Array:
    """Splits an axis into `[blocks, size]`."""
    return array.reshape(*array.shape[:at], -1, size, *array.shape[at + 1 :])


def _unions(
    parts: ShiftedMoments, per_group: int, axis_name: shards.AxisName | None, x: jax.Array
) -> tuple[Moments, Moments]:
    """The moments of each block's group, and those of all groups, from those of the blocks here."""
    mine = jnp.arange(len(parts.count))
    if axis_name is not None:
        mine += lax.axis_index(axis_name) * len(mine)
        parts = jax.tree.map(jnp.concatenate, gathered(parts, axis_name, None))
    groups = jax.vmap(union)(jax.tree.map(lambda a: _rows(a, per_group), parts))
    mean, var, count = jax.vmap(ShiftedMoments.joined)(groups)
    # As one array, whose cotangents are added up over the shards by one collective.
    mean, var = (vectors[mine // per_group] for vectors in shards.vary_like((mean, var), x))
    return Moments(mean, var, count[mine // per_group]), union(groups).joined()


def _rows(array: jax.Array, size: int) -> jax.Array:
    """Fills up the first axis with zeros and splits it into rows of `size`."""
    missing = -len(array) % size
    array = jnp.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1))
    return array.reshape(-1, size, *array.shape[1:])
