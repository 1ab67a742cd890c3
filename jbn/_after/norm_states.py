"""Finds and replaces the states of norms in a pytree."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def fields_of(node: Any) -> Mapping[str, Any]:
    """Returns the fields of a norm's state, a NamedTuple or a mapping, by name."""
    return node._asdict() if hasattr(node, "_asdict") else node


def with_fields(node: Any, **fields: jax.Array) -> Any:
    """Returns a state with other values of some fields, or with further fields."""
    if hasattr(node, "_replace"):
        return node._replace(**fields)
    return type(node)({**node, **fields})


def is_norm_state(node: Any) -> bool:
    """Returns whether a node of a pytree has a mean and a var that are arrays.

    Raises:
      TypeError: the mean is a boxed array, such as an `nnx.Variable`.
    """
    fields = fields_of(node)
    if not isinstance(fields, Mapping) or not {"mean", "var"} <= set(fields):
        return False
    mean, var = fields["mean"], fields["var"]
    if any(isinstance(value, Mapping | tuple | list) for value in (mean, var)):
        return False
    if not jax.tree_util.all_leaves([mean]):
        raise TypeError(
            f"a norm's state holds its arrays as {type(mean).__name__}: pass bare arrays, as from "
            "flax.nnx.to_pure_dict or flax.linen.unbox."
        )
    return isinstance(mean, jax.Array | np.ndarray)


def map_norm_states(f: Callable[[str, Any], Any], state: Any) -> Any:
    """Returns a pytree with f(path, node) in place of the state of each norm."""

    def replace(path, node):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        return f(path, node) if is_norm_state(node) else node

    return jax.tree.map_with_path(replace, state, is_leaf=is_norm_state)


def norm_states(state: Any) -> dict[str, Mapping[str, Any]]:
    """Returns the fields of the state of each norm, by path."""
    found = {}
    map_norm_states(lambda path, node: found.setdefault(path, fields_of(node)), state)
    return found
