"""Models with their batch norms replaced by jbn's."""

import dataclasses
from typing import Any, TypeVar

from flax import nnx

import jbn
from jbn._flax.fields import (
    Where,
    calls_as_one_of,
    everywhere,
    per_domain,
    require_module_norm,
    require_same_axis,
    require_same_params,
    stack_like,
)
from jbn.nnx._batch_norm import BatchNorm
from jbn.nnx._module import NormModule, modules_by_path
from jbn.nnx._norm import DomainNorm, Norm

Model = TypeVar("Model")
_REPLACEABLE = (nnx.BatchNorm, BatchNorm, Norm, DomainNorm)
_SHARED_FIELDS = (
    *("use_running_average", "axis", "momentum", "epsilon", "dtype", "param_dtype", "use_bias"),
    *("use_scale", "axis_name", "axis_index_groups"),
)


def norms(model: Any) -> dict[str, BatchNorm | Norm | DomainNorm]:
    """Returns by path the modules of a model that run on jbn.

    >>> from flax import nnx
    >>> model = nnx.Sequential(jbn.nnx.Norm(jbn.batch_norm(), 3))
    >>> list(jbn.nnx.norms(model))
    ['layers/0']
    """
    ours = BatchNorm | Norm | DomainNorm
    return {path: m for path, m in modules_by_path(model).items() if isinstance(m, ours)}


def replace_batch_norm(
    model: Model,
    norm: jbn.Norm | None = None,
    *,
    where: Where = everywhere,
    types: tuple[type[nnx.Module], ...] = (),
) -> Model:
    """Returns the model with its modules of type `nnx.BatchNorm` replaced; their values are kept.

    `jbn.nnx.norms(model)` lists what runs on jbn. Modules that `nnx.vmap` or `nnx.scan` stacked are
    replaced likewise.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    >>> model = jbn.nnx.replace_batch_norm(model, jbn.batch_norm(decay=0.9))
    >>> y = model(jnp.ones((8, 3)))

    Args:
      model: any NNX model, which does not change. The result has variables of its own.
      norm: the norm, whose options (decay, epsilon, axis_name, dtype, ...) replace those of the
        modules; Flax's modules become `Norm`. It also replaces the norm of jbn's own modules, and
        that of each domain of a `DomainNorm`. A norm with an activation applies it: leave it out of
        the model. By default Flax's modules become `BatchNorm` with the same fields.
      where: `where(path)` picks the modules to replace by their paths, such as "blocks/1/norm".
      types: further types of modules to replace, such as subclasses of Flax's BatchNorm with a
        `__call__` of their own, and copies. They must have its fields and call.

    Raises:
      TypeError: `norm` is not a `jbn.Norm`.
      ValueError: a module has a scale or bias and the norm has none, or the other way round; their
        axes differ; a subclass of a BatchNorm has a `__call__` of its own and is not in `types`; or
        the model has no module to replace.
    """
    if norm is not None:
        require_module_norm(norm)
    # A module that is shared stays shared. The old ones are kept, so that ids stay theirs.
    replaced: dict[int, tuple[Any, Any]] = {}

    def replace(path, node):
        name = "/".join(map(str, path))
        if not (isinstance(node, (*_REPLACEABLE, *types)) and where(name)):
            return node
        if id(node) not in replaced:
            replaced[id(node)] = node, _replaced(name, node, norm, types)
        return replaced[id(node)][1]

    model = nnx.recursive_map(replace, nnx.clone(model))
    if not replaced:
        raise ValueError(
            "no batch norm was replaced: name the types of the model's norms in `types`, and check "
            f"`where`. The model has {list(modules_by_path(model))}."
        )
    return model


def _replaced(path: str, old: Any, norm: jbn.Norm | None, types: tuple[type, ...]) -> Any:
    """One module that runs on jbn, by its own fields or by a norm."""
    new: Any
    if norm is None and isinstance(old, NormModule):
        return old
    if not (calls_as_one_of(type(old), _REPLACEABLE) or isinstance(old, types)):
        raise ValueError(
            f"layer {path!r} of type {type(old).__name__} has a __call__ of its own: pass "
            f"types=({type(old).__name__},) to replace it, or leave it out by `where`."
        )
    if norm is None:
        options: Any = {name: getattr(old, name) for name in _SHARED_FIELDS}
        new = BatchNorm(old.num_features, rngs=nnx.Rngs(0), **options)
    else:
        axis = per_domain(old.norm).axis if isinstance(old, Norm | DomainNorm) else old.axis
        require_same_axis(path, axis, norm)
        mode: Any = {"use_running_average": old.use_running_average}
        if isinstance(old, DomainNorm):
            new = DomainNorm(dataclasses.replace(old.norm, norm=norm), old.num_features, **mode)
        else:
            new = Norm(norm, old.num_features, **mode)
        require_same_params(path, _params(old), _params(new))
    feature_shape = new.mean.shape
    for name, value in list(vars(new).items()):
        if getattr(old, name, None) is not None and isinstance(value, nnx.Variable):
            setattr(new, name, getattr(old, name))
        elif isinstance(value, nnx.BatchStat):
            stacked = stack_like(old.mean[...], feature_shape, value[...])
            setattr(new, name, nnx.BatchStat(stacked))
    return new


def _params(module: Any) -> jbn.BatchNormParams:
    return jbn.BatchNormParams(module.scale, module.bias)
