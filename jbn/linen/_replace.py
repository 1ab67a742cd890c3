"""Contexts in which jbn runs wherever a model calls a module of Flax."""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

import jbn
from jbn._norms.norm import require_norm
from jbn.linen._modules import apply_batch_norm


@contextlib.contextmanager
def replace_batch_norm(norm: jbn.Norm | None = None) -> Iterator[None]:
    """Runs jbn wherever a model calls `flax.linen.BatchNorm`, on the same variables.

    This is a context manager. Every call of the model, in training and in inference, belongs
    inside: outside, the model is Flax's again. Functions that were jitted outside are traced again
    inside, and the other way round; equal norms share a trace.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> model = nn.BatchNorm(use_running_average=False)
    >>> variables = model.init(jax.random.key(0), jnp.ones((8, 3)))
    >>> with jbn.linen.replace_batch_norm(jbn.batch_norm(decay=0.9)):
    ...     y, updates = model.apply(variables, jnp.ones((8, 3)), mutable=["batch_stats"])

    Args:
      norm: the norm, whose options (axis, axis_name, epsilon, dtype, ...) replace the module's
        fields. Further fields of its state become variables of `batch_stats`; where they are
        missing, they start anew. By default the norm that `jbn.linen.BatchNorm` would be with the
        fields of the module.

    Raises:
      ValueError: from the model, if the module has a scale or bias and the norm has none, or the
        other way round.
    """
    if norm is not None:
        require_norm(norm)

    def run(module, call, x, use_running_average=None, *, mask=None):
        return apply_batch_norm(module, norm, x, use_running_average, mask)

    with intercept_calls({nn.BatchNorm: run}, ("jbn", norm)):
        yield


_interceptors = jax.make_user_context(())


@contextlib.contextmanager
def intercept_calls(functions: Mapping[Any, Callable[..., Any]], key: Hashable) -> Iterator[None]:
    """Calls modules of the given types through functions; the innermost context's functions count.

    Args:
      functions: by type, `f(module, call, *args, **kwargs)`, where `call` is the module itself.
      key: what tells the functions from others, for the caches of `jax.jit`.
    """
    entry = frozenset(functions), key
    stack = (*_interceptors.value, entry)

    def interceptor(call, args, kwargs, context):
        kind = type(context.module)
        # Flax asks the outermost first.
        inner = _interceptors.value[len(stack) :]
        replaced = kind in functions and not any(kind in kinds for kinds, _ in inner)
        if context.method_name != "__call__" or not replaced:
            return call(*args, **kwargs)
        return functions[kind](context.module, call, *args, **kwargs)

    with _interceptors(stack), nn.intercept_methods(interceptor):
        yield
