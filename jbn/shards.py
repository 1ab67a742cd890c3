"""Sums and gathers over named axes: pmap, shard_map or vmap, all of it or in groups."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes

AxisName = Hashable | tuple[Hashable, ...]
Groups = Sequence[Sequence[int]]


def freeze_groups(groups: Groups | None) -> tuple[tuple[int, ...], ...] | None:
    """Returns `axis_index_groups` as tuples, which a derivative rule can hash."""
    return None if groups is None else tuple(tuple(int(i) for i in group) for group in groups)


def shard_count(axis_name: AxisName, groups: Groups | None = None) -> int:
    """Returns how many shards are normalised together.

    Raises:
      NameError: `axis_name` is not bound where this is called.
      ValueError: `groups` is not a partition of the shards into groups of one size.
    """
    try:
        size = lax.axis_size(axis_name)
    except NameError:
        raise NameError(
            f"axis_name={axis_name!r} is not bound here: call the norm inside a pmap, shard_map or "
            "vmap that binds it. Under jit with sharded inputs statistics are global by "
            "themselves: leave axis_name=None."
        ) from None
    if groups is None:
        return size
    lengths = {len(group) for group in groups}
    if sorted(i for group in groups for i in group) != list(range(size)) or len(lengths) != 1:
        raise ValueError(
            f"axis_index_groups={groups} must place each of the {size} shards of "
            f"axis_name={axis_name!r} in one group, all groups of one size."
        )
    return lengths.pop()


def all_gather(x: jax.Array, axis_name: AxisName, groups: Groups | None) -> jax.Array:
    """Returns `x` of every shard of this shard's group, stacked on a new first axis.

    It is a sum of one-hot placed values rather than `lax.all_gather`, since only a sum is known
    to be the same on all shards (`shard_map` with `check_vma`) and runs under `vmap` too.
    """
    if groups is None:
        return _place(x, lax.axis_index(axis_name), lax.axis_size(axis_name), axis_name)
    gathered = _place(x, lax.axis_index(axis_name), lax.axis_size(axis_name), axis_name)
    return gathered[jnp.asarray(groups)[_group_index(axis_name, groups)]]


def all_sum(x: jax.Array, axis_name: AxisName, groups: Groups | None) -> jax.Array:
    """Returns the sum of `x` over the shards of this shard's group.

    `lax.psum` refuses `axis_index_groups` under `vmap` and under `shard_map` with `check_vma`, so
    each group adds up in a slot of its own.
    """
    if groups is None:
        return lax.psum(x, axis_name)
    index = _group_index(axis_name, groups)
    return _place(x, index, len(groups), axis_name)[index]


def vary_like(vectors: Sequence[jax.Array], like: jax.Array) -> Sequence[jax.Array]:
    """Marks vectors of one shape as varying over every axis that `like` varies over.

    `shard_map` with `check_vma` would do so for each; of a stack of them the transpose is one
    collective.
    """
    missing = _varying_axes(like) - _varying_axes(vectors[0])
    if not missing:
        return vectors
    return tuple(lax.pcast(jnp.stack(vectors), tuple(missing), to="varying"))


def spread_like(x: jax.Array, axes: Iterable[int]) -> NamedSharding:
    """Returns the sharding of an array whose axes are the given ones of `x`."""
    sharding = jax.typeof(x).sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*(sharding.spec[a] for a in axes)))


def with_automatic_axes(f: Callable, x: jax.Array, out_sharding: Any) -> Callable:
    """Lets `f(x, ...)` index and reshape sharded axes, which explicit mesh axes would refuse."""
    explicit = AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types
    return auto_axes(f, out_sharding=out_sharding) if explicit else f


def _varying_axes(x: jax.Array) -> frozenset[Hashable]:
    return jax.typeof(x).manual_axis_type.varying


def _group_index(axis_name: AxisName, groups: Groups) -> jax.Array:
    group_of = np.empty(sum(map(len, groups)), np.int32)
    for index, group in enumerate(groups):
        group_of[list(group)] = index
    return jnp.asarray(group_of)[lax.axis_index(axis_name)]


def _place(x: jax.Array, index: jax.Array, size: int, axis_name: AxisName) -> jax.Array:
    slots = jnp.arange(size, dtype=index.dtype).reshape((size,) + (1,) * x.ndim)
    return lax.psum(jnp.where(slots == index, x, jnp.zeros((), x.dtype)), axis_name)
