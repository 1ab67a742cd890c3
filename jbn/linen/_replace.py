"""A context in which jbn runs wherever a model calls a batch norm."""

import contextlib
import dataclasses
import functools
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

import jbn
from jbn._flax.fields import Where, everywhere, require_module_norm, stack_like, stored_fields
from jbn.linen._apply import num_features, path_of
from jbn.linen._batch_norm import BatchNorm, apply_batch_norm
from jbn.linen._intercept import intercept_calls
from jbn.linen._norm import DomainNorm, Norm, apply_domain_norm, apply_norm


def _function(kind: Any) -> Any:
    """The `__call__` of a type of modules as interceptors see it, without Flax's wrapper."""
    return kind.__call__.__wrapped__


_FLAXS = {_function(nn.BatchNorm): apply_batch_norm}
_OURS = {
    _function(BatchNorm): apply_batch_norm,
    _function(Norm): apply_norm,
    _function(DomainNorm): apply_domain_norm,
}


@functools.lru_cache(1024)
def _found_before(key: Hashable) -> set[type]:
    """The types of norms that were called in contexts with a key, to be added to.

    Where equal contexts share a compiled function, no module is called in the later ones.
    """
    return set()


@contextlib.contextmanager
def replace_batch_norm(
    norm: jbn.Norm | None = None,
    *,
    where: Where = everywhere,
    types: tuple[type[nn.Module], ...] = (),
) -> Iterator[dict[str, type[nn.Module]]]:
    """Runs jbn wherever a model calls `flax.linen.BatchNorm`, on the same variables.

    This is a context manager. Every call of the model, in training and in inference, belongs
    inside: outside, the model is Flax's again. Functions that were jitted outside are traced again
    inside, and the other way round; equal norms share a trace. Other threads do not see the
    context.

    Subclasses of Flax's BatchNorm are replaced where they call Flax's `__call__`. If a norm is
    given, it replaces that of jbn's own modules, too, and that of each domain of a `DomainNorm`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> model = nn.BatchNorm(use_running_average=False, name="norm")
    >>> variables = model.init(jax.random.key(0), jnp.ones((8, 3)))
    >>> with jbn.linen.replace_batch_norm(jbn.batch_norm(decay=0.9)) as replaced:
    ...     y, updates = model.apply(variables, jnp.ones((8, 3)), mutable=["batch_stats"])

    Args:
      norm: the norm, whose options (decay, epsilon, axis_name, dtype, ...) replace the module's
        fields. Further fields of its state become variables of `batch_stats` (see `add_missing`);
        where they are missing, they start anew. A norm with an activation applies it: leave it out
        of the model. By default the norm that `jbn.linen.BatchNorm` would be with the fields of the
        module.
      where: `where(path)` picks the modules to replace by their paths, such as "block_1/norm".
        Compiled functions are shared only for the same function.
      types: further types of modules to replace, such as copies of Flax's BatchNorm. They must have
        its fields and call.

    Yields:
      By path, the type of each module that was replaced. It fills as modules are called; a function
      that an equal context has compiled calls none.

    Raises:
      TypeError: `norm` is not a `jbn.Norm`.
      ValueError: from the model, if the module has a scale or bias and the norm has none, or the
        other way round, if their axes differ, or if a subclass of Flax's BatchNorm has a `__call__`
        of its own that does not call Flax's; name it in `types`. At the end, if modules were called
        and none was a norm to replace, in this context and in equal ones before it.
    """
    if norm is not None:
        require_module_norm(norm)
        norm = dataclasses.replace(norm)  # Arrays among its options become numbers.
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
                f"flax.linen.BatchNorm: pass types=({kind.__name__},) to replace it, or leave it "
                "out by `where`."
            )
        return y

    with intercept_calls(run, key):
        yield replaced
    if called and not found:
        raise ValueError(
            "no batch norm was replaced, though modules were called: name the types of the model's "
            f"norms in `types`, and check `where`. Called were {sorted(called)}."
        )


def add_missing(
    variables: Mapping[str, Any], norm: jbn.Norm, *, where: Where = everywhere
) -> dict[str, Any]:
    """Adds to the variables of Flax's norms what else the state of a norm has.

    With them, a training step in `replace_batch_norm(norm)` returns the tree of variables that it
    was given, as `lax.scan` and checkpoints want it.

    >>> import jax.numpy as jnp
    >>> variables = {"batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    >>> norm = jbn.batch_norm(decay=jbn.corrected_decay(0.9))
    >>> sorted(jbn.linen.add_missing(variables, norm)["batch_stats"])
    ['count', 'mean', 'var']

    Args:
      variables: of a Linen model; they do not change.
      norm: the norm of `replace_batch_norm`.
      where: likewise.

    Returns:
      The variables with what was missing, as before any batch.
    """
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
    """What tells norms apart; one with traced options is like no other."""
    try:
        hash(norm)
    except TypeError:
        return object()
    return norm
