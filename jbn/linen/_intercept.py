"""A context that intercepts calls of modules, and in which jitted functions are traced again."""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax

Intercept = Callable[..., Any]
"""`f(context, call, *args, **kwargs)`: Flax's `InterceptorContext`, the call, and its arguments."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    key: Hashable
    intercept: Intercept = dataclasses.field(compare=False)


_entries = jax.make_user_context(())


@contextlib.contextmanager
def intercept_calls(intercept: Intercept, key: Hashable) -> Iterator[None]:
    """Runs a function instead of each `__call__` of a module; the innermost context comes first.

    Args:
      intercept: the function that runs instead.
      key: a key for the caches of `jax.jit`; functions with the same key share compiled functions.
    """
    outermost = not intercepted()
    with (
        _entries((*_entries.value, _Entry(key, intercept))),
        nn.intercept_methods(_dispatch) if outermost else contextlib.nullcontext(),
    ):
        yield


def intercepted() -> bool:
    """Returns whether calls of modules are intercepted here."""
    return bool(_entries.value)


def _dispatch(call, args, kwargs, context) -> Any:
    if context.method_name == "__call__":
        for entry in _entries.value:
            call = partial(entry.intercept, context, call)
    return call(*args, **kwargs)
