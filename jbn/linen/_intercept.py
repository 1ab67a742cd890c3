"""A context in which calls of modules go through functions, and compiled functions notice."""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax

Intercept = Callable[..., Any]
"""`f(context, call, *args, **kwargs)`, with Flax's `InterceptorContext`; `call` goes on."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    key: Hashable
    intercept: Intercept = dataclasses.field(compare=False)


_entries = jax.make_user_context(())


@contextlib.contextmanager
def intercept_calls(intercept: Intercept, key: Hashable) -> Iterator[None]:
    """Runs each `__call__` of a module through a function; that of the innermost context is first.

    Args:
      intercept: what runs instead.
      key: what tells the function from others, for the caches of `jax.jit`.
    """
    outermost = not intercepted()
    with (
        _entries((*_entries.value, _Entry(key, intercept))),
        nn.intercept_methods(_dispatch) if outermost else contextlib.nullcontext(),
    ):
        yield


def intercepted() -> bool:
    """Returns whether other functions than the modules' own may run here."""
    return bool(_entries.value)


def _dispatch(call, args, kwargs, context) -> Any:
    if context.method_name == "__call__":
        for entry in _entries.value:
            call = partial(entry.intercept, context, call)
    return call(*args, **kwargs)
