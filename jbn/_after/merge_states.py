"""Merges the states of several models or shards into one."""

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
    """Merges states that were computed on parts of the data into the state of all data.

    The variance of all data is the mean of the variances plus the variance of the means. An average
    of states, such as `lax.pmean(state, "data")`, leaves out the second term. If each state holds
    the moments of its part, and the weights are the sizes of the parts, the result holds exactly
    the moments of all data. A part with fewer than two valid values does not change its state: give
    this state the weight 0.

    All leaves with floating dtypes are averaged: counts, other fields of a norm's state, and all
    other leaves of the tree, such as parameters. Only the variances of norms get the variance of
    the means in addition. Counts are averaged and not added, so schedules and decays continue as
    for one part. Leaves with other dtypes are taken from the first state.

    >>> import jax.numpy as jnp
    >>> _, state = jbn.batch_norm().init(1)
    >>> states = [state._replace(mean=jnp.array([mean])) for mean in (2.0, 6.0)]
    >>> print(jbn.merge_states(states).mean, jbn.merge_states(states).var)
    [4.] [5.]

    On a server of federated clients, merge their whole Linen variables::

        variables = jbn.merge_states(clients, weights=num_examples)

    In a function under `jax.pmap` or `jax.shard_map`, merge the states of all devices before you
    evaluate the model::

        batch_stats = jbn.merge_states([batch_stats], axis_name="data")

    Args:
      states: pytrees of one structure with the states of norms: NamedTuples or mappings with at
        least mean and var, such as Linen's `batch_stats`. For NNX, pass
        `nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))`, and write the result with `nnx.update`.
      weights: one number for each state, not negative; by default all are equal. A state of weight
        0 is ignored, and may hold NaN. If all weights are 0, the first state is returned.
      axis_name: the named axis or axes (pmap, shard_map, vmap) whose shards hold further states,
        the same number on each shard. They are gathered with one collective.

    Returns:
      A state with the same structure and dtypes. The arithmetic is in float32 or wider.

    Raises:
      TypeError: `states` is a single state, or its arrays are boxed, as in an `nnx.State`.
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
        raise ValueError(
            "states hold no norm's state: no NamedTuple or mapping in them has a mean and a var."
        )
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
        raise ValueError(
            f"got {len(states)} states and {len(weights)} weights: pass at least one state, and "
            "one weight for each."
        )
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
    """Returns a tree with the rows of all shards, gathered with one collective."""
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
    """Merges the moments of parts; returns those of the first part if all are empty."""
    valid = jnp.expand_dims(counts > 0, range(1, means.ndim))
    variances = jnp.where(valid | ~jnp.any(valid), variances, 0)
    whole = merge_rows(ShiftedMoments(means, jnp.zeros_like(means), variances, counts))
    var = jnp.where(whole.count > 0, whole.var, variances[0])
    return whole.shift + whole.offset, var
