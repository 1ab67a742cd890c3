"""States of several models or shards merged into one.

On a server of federated clients, for whole variables of Linen:

    variables = jbn.merge_states(clients, weights=num_examples)

Over the devices of a pmap or shard_map, before evaluation:

    stats = jbn.merge_states([stats], axis_name="data")
"""

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jbn._after.norm_states import fields_of, is_norm_state, norm_states, with_fields
from jbn._core.moments import ShiftedMoments, merge_rows
from jbn._core.shards import AxisName, Shards

State = TypeVar("State")


def merge_states(
    states: Sequence[State],
    *,
    weights: Sequence[ArrayLike] | jax.Array | np.ndarray | None = None,
    axis_name: AxisName | None = None,
) -> State:
    """Returns the state of all data together, from states of its parts.

    The variance of the whole is the mean of the variances plus the spread of the means, which an
    average of states, such as `lax.pmean(state, "data")`, leaves out. If each state holds the
    moments of its part, and the weights are the sizes of the parts, the result holds exactly the
    moments of the whole. A part with fewer than two valid values has left its state as it was: give
    it the weight 0.

    All leaves of floating dtypes are averaged: counts, other fields of a norm's state and whatever
    else is in the tree, such as parameters. Only the variances of norms get the spread. Counts are
    averaged, not added, so schedules and decays go on as for one part. Leaves of other dtypes are
    those of the first state.

    >>> import jax.numpy as jnp
    >>> _, state = jbn.batch_norm().init(1)
    >>> states = [state._replace(mean=jnp.array([mean])) for mean in (2.0, 6.0)]
    >>> print(jbn.merge_states(states).mean, jbn.merge_states(states).var)
    [4.] [5.]

    Args:
      states: pytrees of one structure with the states of norms: NamedTuples or mappings with at
        least mean and var, such as Linen's `batch_stats`. For NNX, take
        `nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))`, and write by `nnx.update`.
      weights: one for each state, numbers that are not negative; by default all are equal. A state
        of weight 0 does not count, and may hold NaN. If all weights are 0, the first state is
        returned.
      axis_name: the named axis or axes (pmap, shard_map, vmap) on whose shards there are more
        states, as many on each. They are gathered by one collective.

    Returns:
      A state of the same structure and dtypes. The arithmetic is in float32 or wider.

    Raises:
      TypeError: `states` is a single state, or arrays are boxed, as in an `nnx.State`.
      ValueError: `states` is empty or holds no norm's state, the structures or shapes of the states
        differ, `weights` has another length, or a weight is negative or not finite.
      NameError: `axis_name` is not bound.
    """
    if isinstance(states, Mapping) or hasattr(states, "_fields"):
        raise TypeError("states must be a sequence of states, got one of them: pass [state].")
    states = list(states)
    weights = [1.0] * len(states) if weights is None else list(weights)
    _require_states_and_weights(states, weights)
    if not norm_states(states[0]):
        raise ValueError("states have no norm's state: no NamedTuple or mapping with mean and var.")
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(states) if _is_floating(leaf)]
    wide = reduce(np.promote_types, dtypes, np.dtype(np.float32))

    def stack(*leaves: Any) -> jax.Array | None:
        floating = _is_floating(leaves[0])
        return jnp.stack([jnp.asarray(leaf, wide) for leaf in leaves]) if floating else None

    rows = jax.tree.map(stack, *states)
    counts = jnp.stack([jnp.asarray(weight, wide) for weight in weights])
    if axis_name is not None:
        rows, counts = _gather((rows, counts), Shards(axis_name))
    merged = jax.tree.map(partial(_merge, counts=counts), rows, is_leaf=is_norm_state)

    def narrow(leaf: Any, new: Any) -> Any:
        return leaf if new is None else new.astype(jnp.result_type(leaf))

    return jax.tree.map(narrow, states[0], merged)


def _require_states_and_weights(states: list, weights: list) -> None:
    if not states or len(weights) != len(states):
        raise ValueError(f"got {len(states)} states and {len(weights)} weights: pass one for each.")
    first, *others = (
        (jax.tree.structure(state), [*map(jnp.shape, jax.tree.leaves(state))]) for state in states
    )
    for i, other in enumerate(others, 1):
        if other != first:
            raise ValueError(
                f"states must have one structure and the same shapes: states[0] has {first}, "
                f"states[{i}] has {other}."
            )
    for weight in weights:
        known = not isinstance(weight, Tracer)
        if np.shape(weight) or (known and not 0 <= weight < np.inf):
            raise ValueError(f"weights={weights} must be finite numbers that are not negative.")


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), np.floating)


def _gather(tree: Any, shards: Shards) -> Any:
    """Returns a tree of rows with the rows of all shards, by one collective."""
    shards.size()
    here, unravel = ravel_pytree(tree)
    everywhere = jax.vmap(unravel)(shards.gather(here))
    return jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), everywhere)


def _merge(node: Any, counts: jax.Array) -> Any:
    """Merges the rows of a norm's state or of another leaf."""
    if not is_norm_state(node):
        return _mean_and_var(node, jnp.zeros_like(node), counts)[0]
    fields = fields_of(node)
    averages = {name: jax.tree.map(partial(_merge, counts=counts), fields[name]) for name in fields}
    mean, var = _mean_and_var(fields["mean"], fields["var"], counts)
    return with_fields(node, **{**averages, "mean": mean, "var": var})


def _mean_and_var(
    means: jax.Array, variances: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The moments of the whole from those of its parts, or of the first part if all are empty."""
    valid = jnp.expand_dims(counts > 0, range(1, means.ndim))
    variances = jnp.where(valid | ~jnp.any(valid), variances, 0)
    whole = merge_rows(ShiftedMoments(means, jnp.zeros_like(means), variances, counts))
    var = jnp.where(whole.count > 0, whole.var, variances[0])
    return whole.shift + whole.offset, var
