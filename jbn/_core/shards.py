"""Sums and gathers over named axes (pmap, shard_map, vmap), over all shards or within groups."""

import dataclasses
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

AxisName = Hashable | tuple[Hashable, ...]
Groups = Sequence[Sequence[int]]


def freeze_groups(groups: Groups | None) -> tuple[tuple[int, ...], ...] | None:
    """Returns `axis_index_groups` as nested tuples, which are hashable."""
    return None if groups is None else tuple(tuple(int(i) for i in group) for group in groups)


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards over which a batch is spread.

    Attributes:
      axis_name: the named axis or axes over which the batch is spread; None if it is not.
      groups: a partition of the shards, in which each group is a separate batch; None if all
        shards are one batch.
    """

    axis_name: AxisName | None = None
    groups: tuple[tuple[int, ...], ...] | None = None

    def bound(self) -> bool:
        """Returns whether `axis_name` is None or bound where this is called."""
        try:
            return self.axis_name is None or lax.axis_size(self.axis_name) > 0
        except NameError:
            return False

    def size(self) -> int:
        """Returns the number of shards that are normalized together.

        Raises:
          NameError: `axis_name` is not bound where this is called.
          ValueError: `groups` is not a partition of the shards into groups of one size.
        """
        if self.axis_name is None:
            return 1
        if not self.bound():
            raise NameError(
                f"axis_name={self.axis_name!r} is not bound here: call the norm inside a pmap, "
                "shard_map or vmap that binds it. Under jit with sharded inputs, statistics are "
                "global without it: leave axis_name=None."
            )
        size = lax.axis_size(self.axis_name)
        if self.groups is None:
            return size
        lengths = {len(group) for group in self.groups}
        if sorted(sum(self.groups, ())) != list(range(size)) or len(lengths) != 1:
            raise ValueError(
                f"axis_index_groups={self.groups} must place each of the {size} shards of "
                f"axis_name={self.axis_name!r} in exactly one group, and all groups must have the "
                "same size."
            )
        return lengths.pop()

    def index(self) -> jax.Array:
        """Returns the index of this shard among all shards."""
        return lax.axis_index(self.axis_name)

    def sum(self, x: jax.Array) -> jax.Array:
        """Returns the sum of `x` over the shards of this shard's group.

        `lax.psum` refuses `axis_index_groups` under `vmap` and under `shard_map` with `check_vma`,
        so each group is summed in its own slot.
        """
        if self.groups is None:
            return lax.psum(x, self.axis_name)
        group = self._group()
        return self._place(x, group, len(self.groups))[group]

    def gather(self, x: jax.Array) -> jax.Array:
        """Returns `x` of every shard of this shard's group, stacked on a new first axis.

        The shards place their values in slots, which are summed. Unlike the result of
        `lax.all_gather`, a sum is known to be the same on all shards by `shard_map` with
        `check_vma`; and it runs under `vmap` as well.
        """
        gathered = self._place(x, self.index(), lax.axis_size(self.axis_name))
        if self.groups is None:
            return gathered
        return gathered[jnp.asarray(self.groups)[self._group()]]

    def _group(self) -> jax.Array:
        group_of = np.empty(sum(map(len, self.groups or ())), np.int32)
        for index, group in enumerate(self.groups or ()):
            group_of[list(group)] = index
        return jnp.asarray(group_of)[self.index()]

    def _place(self, x: jax.Array, index: jax.Array, size: int) -> jax.Array:
        slots = jnp.arange(size, dtype=index.dtype).reshape((size,) + (1,) * x.ndim)
        zero = jnp.zeros((), x.dtype)
        return lax.psum(jnp.where(slots == index, x[None], zero), self.axis_name)
