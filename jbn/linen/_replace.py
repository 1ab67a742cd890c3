"""A context in which jbn runs wherever a model calls a batch norm, and variables for it."""

import contextlib
import dataclasses
import functools
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

import jbn
from jbn._flax.fields import (
    Where,
    everywhere,
    require_module_norm,
    require_where,
    stack_like,
    stored_fields,
)
from jbn.linen._apply import num_features, path_of
from jbn.linen._batch_norm import BatchNorm, apply_batch_norm
from jbn.linen._intercept import intercept_calls
from jbn.linen._norm import DomainNorm, Norm, apply_domain_norm, apply_norm


def _function(kind: Any) -> Any:
    """Returns the `__call__` of a module type as interceptors see it, without Flax's wrapper."""
    return kind.__call__.__wrapped__


_FLAXS = {_function(nn.BatchNorm): apply_batch_norm}
_OURS = {
    _function(BatchNorm): apply_batch_norm,
    _function(Norm): apply_norm,
    _function(DomainNorm): apply_domain_norm,
}


@functools.lru_cache(1024)
def _found_before(key: Hashable) -> set[type]:
    """Returns the set of norm types that were called in contexts with a key, to add to it.

    Where equal contexts share a compiled function, no module is called in the later contexts.
    """
    return set()


@contextlib.contextmanager
def replace_batch_norm(
    norm: jbn.Norm | None = None,
    *,
    where: Where = everywhere,
    types: tuple[type[nn.Module], ...] = (),
) -> Iterator[dict[str, type[nn.Module]]]:
    """Context manager that runs jbn wherever a model calls `flax.linen.BatchNorm`.

    The variables stay the same. Call the model inside for training and for inference: outside, the
    model runs Flax's code again. Functions that were jitted outside are traced again inside, and
    vice versa; contexts with equal norms share a trace. Other threads do not see the context.

    Subclasses of Flax's BatchNorm are replaced if they call Flax's `__call__`. If `norm` is given,
    it also replaces the norm of jbn's own modules, and the norm of each domain of a `DomainNorm`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=False)])
    >>> variables = model.init(jax.random.key(0), jnp.ones((8, 3)))
    >>> with jbn.linen.replace_batch_norm(jbn.batch_norm(decay=0.9)) as replaced:
    ...     y, updates = model.apply(variables, jnp.ones((8, 3)), mutable=["batch_stats"])
    >>> list(replaced)
    ['layers_1']

    Args:
      norm: the norm to run. Its options (decay, epsilon, axis_name, dtype, ...) replace the fields
        of the module. Further fields of its state become variables in `batch_stats` (see
        `add_missing`); where they are missing, they start as before the first batch. If the norm
        has an activation, the norm applies it: remove it from the model. By default, each module
        runs as a `jbn.linen.BatchNorm` with its fields.
      where: `where(path)` returns whether to replace the module at a path, such as "block_1/norm".
        Contexts share compiled functions only if `where` is the same function.
      types: further types of modules to replace, such as copies of Flax's BatchNorm. They must have
        the same fields and the same call.

    Yields:
      A dictionary with the type of each replaced module, by path. It is filled as modules are
      called. A function that an equal context has compiled calls no modules.

    Raises:
      TypeError: `norm` is not a `jbn.Norm`, or `where` is not a function.
      ValueError: raised by the call of the model if a module has a scale or bias and the norm has
        none, or vice versa; if their axes differ; or if a subclass of Flax's BatchNorm has its own
        `__call__` that does not call Flax's (name it in `types`). Raised at the end of the context
        if modules were called, but no norm to replace was called in this context or in an equal one
        before it.
    """
    require_where(where)
    if norm is not None:
        require_module_norm(norm)
        norm = dataclasses.replace(norm)  # Options that are arrays become numbers.
    replacements = _FLAXS | {_function(kind): apply_batch_norm for kind in types}
    if norm is not None:
        replacements |= _OURS
    key = ("jbn", _hashable(norm), where, types)
    called, replaced, found = set(), {}, _found_before(key)

    def run(context, call, *args, **kwargs):
        module, function = context.module, context.orig_method.func
        path, kind = path_of(module), type(module)
        called.add(path)
        if not where(path):
            return call(*args, **kwargs)
        if function in replacements or function in _OURS:
            found.add(kind)
        if function in replacements:
            replaced[path] = kind
            return replacements[function](module, norm, *args, **kwargs)
        y = call(*args, **kwargs)
        if isinstance(module, nn.BatchNorm) and kind not in found:
            raise ValueError(
                f"layer {path!r} has a __call__ of its own that does not call that of "
                f"flax.linen.BatchNorm: pass types=({kind.__name__},) to replace it, or exclude it "
                "with `where`."
            )
        return y

    with intercept_calls(run, key):
        yield replaced
    if called and not found:
        raise ValueError(
            "no batch norm was replaced, though modules were called: name the types of the model's "
            f"norms in `types`, and check `where`. The called modules are {sorted(called)}."
        )


def add_missing(
    variables: Mapping[str, Any], norm: jbn.Norm, *, where: Where = everywhere
) -> dict[str, Any]:
    """Adds to the variables of Flax's norms the further fields of a norm's state.

    A training step in `replace_batch_norm(norm)` then returns variables with the same tree
    structure that it was given, as `lax.scan` and checkpoints need it.

    >>> import jax.numpy as jnp
    >>> variables = {"batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    >>> norm = jbn.batch_norm(decay=jbn.corrected_decay(0.9))
    >>> sorted(jbn.linen.add_missing(variables, norm)["batch_stats"])
    ['count', 'mean', 'var']

    Args:
      variables: the variables of a Linen model; they do not change.
      norm: the norm that is given to `replace_batch_norm`.
      where: the function that is given to `replace_batch_norm`.

    Returns:
      The variables with the missing fields, which have their values before the first batch.

    Raises:
      TypeError: `norm` is not a `jbn.Norm`, or `where` is not a function.
    """
    require_module_norm(norm)
    require_where(where)
    leaves: dict[Any, Any] = flatten_dict(variables.get("batch_stats", {}))
    for *path, name in list(leaves):
        if name != "mean" or (*path, "var") not in leaves or not where("/".join(path)):
            continue
        mean = leaves[*path, "mean"]
        rank = 1 if isinstance(norm.axis, int) else len(norm.axis)
        features = mean.shape[mean.ndim - rank :]
        for field, value in stored_fields(norm, norm.init(num_features(features))[1]).items():
            leaves.setdefault((*path, field), stack_like(mean, features, value))
    return {**variables, "batch_stats": unflatten_dict(leaves)}


def _hashable(norm: jbn.Norm | None) -> Hashable:
    """Returns a key that equal norms share; a norm with traced options equals no other."""
    try:
        hash(norm)
    except TypeError:
        return object()
    return norm
