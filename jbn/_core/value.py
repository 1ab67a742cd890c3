"""The base class of objects that are defined by their options, and checks of options."""

import functools
import inspect
import math
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

    Values are hashable, picklable and printable. Values with equal options are equal, so `jax.jit`
    compiles once for all of them. A value is also a pytree. Its leaves are the options that are
    traced, for instance the decay under `jax.vmap` over decays; usually there are none. NumPy and
    JAX scalars that are not traced become Python numbers, and lists become tuples.

    Raises:
      TypeError: an option is not hashable.
      ValueError: an option is an array of several numbers.
    """

    _traced: tuple[str, ...] = ()
    """The names of the fields that are traced, or that hold values with traced fields."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        inherited = getattr(cls, "__dataclass_fields__", {})
        # Where a subclass assigns an option without a type, the option gets a new default.
        assigned = {name: inherited[name].type for name in vars(cls) if name in inherited}
        cls.__annotations__ = assigned | vars(cls).get("__annotations__", {})
        dataclass(frozen=True, kw_only=True, repr=False)(cls)
        unflatten = functools.partial(_unflatten, cls)
        jax.tree_util.register_pytree_node(cls, _flatten, unflatten)  # pyright: ignore[reportArgumentType]

    def __post_init__(self):
        values = _fields(self)
        traced = tuple(name for name, value in values.items() if _is_traced(value))
        for name in values.keys() - traced:
            object.__setattr__(self, name, _frozen(name, values[name]))
        object.__setattr__(self, "_traced", traced)

    def __repr__(self) -> str:
        """Returns the expression that makes the value, without options that have their defaults."""
        defaults = inspect.signature(type(self)).parameters
        options = [
            f"{name}={_expression(value)}"
            for name, value in _fields(self).items()
            if name in defaults
            and (isinstance(value, jax.Array | np.ndarray) or value != defaults[name].default)
        ]
        return f"{_public_name(type(self))}({', '.join(options)})"


def require_number(name: str, value: Any, accept: Callable[[Any], bool], wanted: str) -> None:
    """Checks an option that must be a number; it may also be traced, or a function.

    Raises:
      ValueError: `value` is of another kind, or a number that `accept` refuses.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    unknown = callable(value) or isinstance(value, jax.Array)
    if not (accept(value) if is_number else unknown):
        raise ValueError(f"{name}={value!r} must be {wanted}.")


def require_positive_integer(name: str, value: Any) -> None:
    """Checks an option that must be a positive integer.

    Raises:
      ValueError: `value` is not an integer, or not positive.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be a positive integer.")


def require_scalars(value: Any) -> None:
    """Checks that the traced options of a value are single numbers.

    Raises:
      ValueError: an option holds several numbers, as the decays of a population do outside of the
        `jax.vmap` over them.
    """
    if any(map(jnp.ndim, jax.tree.leaves(value))):
        raise ValueError(f"{value} holds several numbers in one option: use it under jax.vmap.")


def _public_name(named: Any) -> str:
    module = named.__module__.split("._")[0]
    return named.__qualname__ if module.startswith("_") else f"{module}.{named.__qualname__}"


def _expression(value: Any) -> str:
    if inspect.isfunction(value):
        return _public_name(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    return repr(value)


def _fields(value: Any) -> dict[str, Any]:
    return {option.name: getattr(value, option.name) for option in fields(value)}


def _is_traced(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_traced, value))
    return isinstance(value, Tracer) or bool(getattr(value, "_traced", ()))


def _frozen(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        items = (_frozen(name, item) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        if not value.ndim:
            return value.item()
        if np.issubdtype(value.dtype, np.integer):
            return _frozen(name, value.tolist())
        raise ValueError(
            f"{name} must be a number, got an array of shape {value.shape}: to use several "
            "numbers, map over them with jax.vmap."
        )
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be hashable, such as a tuple.") from None
    return value


def _flatten(value: Value) -> tuple[tuple[Any, ...], Any]:
    if not value._traced:
        return (), value
    static = dict(vars(value))
    return tuple(static.pop(name) for name in value._traced), (value._traced, tuple(static.items()))


def _unflatten(cls: type[Value], static: Any, traced: tuple[Any, ...]) -> Value:
    if isinstance(static, Value):
        return static
    names, rest = static
    value = object.__new__(cls)
    for name, option in (*rest, *zip(names, traced, strict=True)):
        object.__setattr__(value, name, option)
    return value
