"""Groups of consecutive examples, each a batch of its own, alone and over shards.

Examples are cut into blocks of gcd(examples here, group size): no block is in two groups, and each
group is the union of whole blocks, on one shard or on several, a last one perhaps of fewer.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jbn import features, shards
from jbn.moments import Moments, moments, union


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


class Blocks(NamedTuple):
    """The examples here, in blocks.

    Attributes:
      x: x with its axis of examples split into `[blocks, size]`.
      mask: `[blocks, size, ...]`, or None.
      axis: the feature axes of x before it was split.
      examples: its axis of examples.
      per_group: blocks in a group.
    """

    x: jax.Array
    mask: jax.Array | None
    axis: tuple[int, ...]
    examples: int
    per_group: int


def split(x: jax.Array, mask: ArrayLike | None, axis: features.Axes, group_size: int) -> Blocks:
    """Returns the blocks of `x`.

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
    examples = reduced[0]
    count = x.shape[examples]
    size = math.gcd(count, group_size)

    def cut(array, at):
        return array.reshape(*array.shape[:at], count // size, size, *array.shape[at + 1 :])

    valid = features.along_positions(mask, x, axes)
    if valid is not None:
        valid = cut(jnp.squeeze(valid, axes), 0)
    return Blocks(cut(x, examples), valid, axes, examples, group_size // size)


def group_moments(blocks: Blocks, axis_name: shards.AxisName | None) -> tuple[Moments, Moments]:
    """Returns the moments `[blocks, *features]` of each block's group, and those of all groups."""
    axes = (blocks.examples, None if blocks.mask is None else 0)
    one = jax.vmap(lambda x, mask: moments(x, blocks.axis, mask=mask), axes)
    parts = one(blocks.x, blocks.mask)
    first, num_blocks = 0, len(parts.count)
    if axis_name is not None:
        first = lax.axis_index(axis_name) * num_blocks
        parts = _of_all_shards(parts, axis_name)

    groups = jax.vmap(union)(jax.tree.map(lambda a: _rows(a, blocks.per_group), parts))
    mine = (first + jnp.arange(num_blocks)) // blocks.per_group
    # As one array, whose cotangents are added up over the shards by one collective.
    values = shards.vary_like(jnp.stack(groups[:2]), blocks.x)[:, mine]
    mean, var = values
    return Moments(mean, var, groups.count[mine]), union(groups)


def join(blocks: Blocks, f: Callable[..., jax.Array], vectors: Any) -> jax.Array:
    """Returns `f(x, mask, vectors)` of each block, put together in the shape of x."""
    axes = (blocks.examples, None if blocks.mask is None else 0, 0)
    y = jax.vmap(f, axes, blocks.examples)(blocks.x, blocks.mask, vectors)
    at = blocks.examples
    return y.reshape(*y.shape[:at], -1, *y.shape[at + 2 :])


def _of_all_shards(parts: Moments, axis_name: shards.AxisName) -> Moments:
    count = jnp.broadcast_to(
        jnp.expand_dims(parts.count, range(1, parts.mean.ndim)), parts.mean.shape
    )
    rows = jnp.stack([parts.mean, parts.var, count])
    rows = shards.all_gather(rows, axis_name, None)
    mean, var, count = jnp.moveaxis(rows, 1, 0).reshape(3, -1, *parts.mean.shape[1:])
    return Moments(mean, var, count.reshape(len(count), -1)[:, 0])


def _rows(array: jax.Array, size: int) -> jax.Array:
    """Fills up the first axis with zeros and splits it into rows of `size`."""
    missing = -len(array) % size
    array = jnp.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1))
    return array.reshape(-1, size, *array.shape[1:])
