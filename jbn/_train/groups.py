"""Groups of consecutive examples, each a separate batch, on one device and over shards.

The examples of a shard are cut into blocks of gcd(examples of the shard, group size) examples. Each
block belongs to one group. A group consists of whole blocks, on one shard or on several; the last
group may have fewer blocks.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jbn._core.layout import Layout, vary_like, with_automatic_axes
from jbn._core.moments import Moments, gather, merge_rows, save_input, save_point, shifted_moments
from jbn._core.normalize import apply
from jbn._core.shards import Groups, Shards
from jbn._core.value import require_positive_integer


def require_group_size(group_size: int, index_groups: Groups | None, activation: Any) -> None:
    """Checks a group size, and that no option is given that cannot be combined with it.

    Raises:
      ValueError: `group_size` is not positive, or groups of shards or an activation are given.
    """
    require_positive_integer("group_size", group_size)
    if index_groups is not None or activation is not None:
        raise ValueError(
            f"group_size={group_size} cannot be combined with axis_index_groups={index_groups} or "
            f"activation={activation}: choose one of them."
        )


def require_examples(x: jax.Array, layout: Layout, group_size: int) -> None:
    """Checks that x has a known number of examples, so that it can be cut into groups.

    Raises:
      ValueError: x has no axis of examples, or the number of examples is symbolic.
    """
    if not layout.reduced:
        raise ValueError(
            f"x of shape {x.shape} has no axis of examples, which group_size={group_size} needs: "
            "add one, of size 1 under a vmap over examples."
        )
    examples = x.shape[layout.reduced[0]]
    if not isinstance(examples, int):
        raise ValueError(
            f"x has a symbolic number of examples, {examples}, which cannot be cut into groups of "
            f"group_size={group_size} examples: export training with a fixed number."
        )


def by_groups(step, operands, x, scale, bias, layout, shards, norm) -> tuple[jax.Array, Any]:
    """Normalizes each group of `norm.group_size` examples by itself; see `whole` for the arguments.

    For a group on several shards, the moments are those of all its examples, and each shard
    normalizes the examples that it holds. The next state follows from the merged moments of all
    groups.
    """
    x = save_input(layout.where_valid(x))
    at = layout.reduced[0]
    size = math.gcd(x.shape[at], norm.group_size)

    def run(x, layout, operands, scale, bias):
        blocks = jax.tree.map(partial(_cut, at=at, size=size), (x, layout))
        rows = jax.vmap(lambda x, layout: shifted_moments(x, layout, Shards()), at)(*blocks)
        groups, all_groups = jax.tree.map(
            save_point, _merge_groups(rows, norm.group_size // size, shards, x)
        )

        def normalized(x, layout, *group):
            statistics, _ = step(operands, _batch(group, layout))
            return apply(statistics, scale, bias, x, layout, norm.dtype)

        y = jax.vmap(normalized, (at, at, 0, 0, 0), at)(*blocks, *groups)
        return y.reshape(x.shape), *all_groups

    run = with_automatic_axes(run, x, range(x.ndim), layout.axes, layout.axes, ())
    y, *all_groups = run(x, layout, operands, scale, bias)
    return y, step(operands, _batch(all_groups, layout))[1]


def _batch(parts, layout: Layout) -> Moments:
    mean, var, count = parts
    return Moments(mean, var, count, layout.examples(count))


def _cut(array: jax.Array, at: int, size: int) -> jax.Array:
    """Splits an axis into `[blocks, size]`."""
    return array.reshape(*array.shape[:at], -1, size, *array.shape[at + 1 :])


def _merge_groups(rows, per_group: int, shards: Shards, x: jax.Array):
    """Returns mean, variance and count of each block's group, and of all groups together."""
    blocks = jnp.arange(len(rows.count))
    if shards.axis_name is not None:
        blocks += shards.index() * len(blocks)
        rows = jax.tree.map(jnp.concatenate, gather(rows, shards))
    groups = jax.vmap(merge_rows)(jax.tree.map(partial(_split, size=per_group), rows))
    whole = merge_rows(groups)
    # Marked together, so that one collective sums their cotangents over the shards.
    mean, var = vary_like((groups.shift + groups.offset, groups.var), x)
    group = blocks // per_group
    of_blocks = mean[group], var[group], groups.count[group]
    return of_blocks, (whole.shift + whole.offset, whole.var, whole.count)


def _split(array: jax.Array, size: int) -> jax.Array:
    """Pads the first axis with zeros and splits it into rows of `size`."""
    missing = -len(array) % size
    array = jnp.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1))
    return array.reshape(-1, size, *array.shape[1:])
