"""Options as values: equal, hashable, picklable and printable; numbers among them may be traced."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Number = float | np.number | jax.Array
"""A Python number, or a scalar of NumPy or JAX, which may be traced."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Value:
    """Base class of norms, methods, decays and activations: each subclass is a frozen dataclass.

    Equal options make equal values, so `jax.jit` compiles once for all of them. A value is also a
    pytree whose leaves are the options that are traced, as under `jax.vmap` over a decay; usually
    there are none. NumPy and JAX scalars that are not traced become Python numbers, and lists
    become tuples.
    """

    _traced: tuple[str, ...] = ()
    """The names of the fields that are traced, or that hold values with traced fields."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, kw_only=True, repr=False)(cls)
        unflatten = functools.partial(_unflatten, cls)
        jax.tree_util.register_pytree_node(cls, _flatten, unflatten)  # pyright: ignore[reportArgumentType]

    def __post_init__(self):
        traced = []
        for name, value in _fields(self).items():
            if isinstance(value, Tracer) or getattr(value, "_traced", ()):
                traced.append(name)
            else:
                object.__setattr__(self, name, _frozen(name, value))
        object.__setattr__(self, "_traced", tuple(traced))

    def __repr__(self) -> str:
        """The expression that makes the value, without options that have their defaults."""
        defaults = inspect.signature(type(self)).parameters
        options = [
            f"{name}={_public_name(value) if inspect.isfunction(value) else repr(value)}"
            for name, value in _fields(self).items()
            if isinstance(value, jax.Array | np.ndarray) or value != defaults[name].default
        ]
        return f"{_public_name(type(self))}({', '.join(options)})"


def require_number(name: str, value: Any, accept: Callable[[Any], bool], wanted: str) -> None:
    """Checks an option that is a number, unless it is traced or a function.

    Raises:
      ValueError: it is another kind of value, or a number that is not accepted.
    """
    unknown = callable(value) or isinstance(value, jax.Array)
    if not (accept(value) if isinstance(value, int | float) else unknown):
        raise ValueError(f"{name}={value!r} must be {wanted}.")


def require_scalars(value: Any) -> None:
    """Checks that the traced options of a value are single numbers.

    Raises:
      ValueError: one holds several numbers, as that of a population outside of its `jax.vmap`.
    """
    if any(map(jnp.ndim, jax.tree.leaves(value))):
        raise ValueError(f"{value} holds several numbers in one option: use it under jax.vmap.")


def _public_name(named: Any) -> str:
    module = named.__module__.split("._")[0]
    return named.__qualname__ if module.startswith("_") else f"{module}.{named.__qualname__}"


def _fields(value: Any) -> dict[str, Any]:
    return {option.name: getattr(value, option.name) for option in fields(value)}


def _frozen(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(name, item) for item in value)
    if not isinstance(value, np.generic | np.ndarray | jax.Array):
        return value
    if value.ndim and np.issubdtype(value.dtype, np.integer):
        return _frozen(name, value.tolist())
    if value.ndim:
        raise ValueError(
            f"{name} must be a number, got an array of shape {value.shape}: map over several "
            "numbers by jax.vmap."
        )
    return value.item()


def _flatten(value: Value) -> tuple[tuple[Any, ...], Any]:
    if not value._traced:
        return (), value
    static = _fields(value)
    return tuple(static.pop(name) for name in value._traced), (value._traced, tuple(static.items()))


def _unflatten(cls: type[Value], static: Any, traced: tuple[Any, ...]) -> Value:
    if isinstance(static, Value):
        return static
    names, rest = static
    value = object.__new__(cls)
    for name, option in (*rest, *zip(names, traced, strict=True), ("_traced", names)):
        object.__setattr__(value, name, option)
    return value
