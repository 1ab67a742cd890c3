"""Replaces the batch norms of a model by jbn's."""

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
    require_where,
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
    """Returns the modules of a model that run on jbn, by path.

    >>> from flax import nnx
    >>> model = nnx.Sequential(jbn.nnx.Norm(jbn.batch_norm(), 3))
    >>> list(jbn.nnx.norms(model))
    ['layers/0']

    Args:
      model: any NNX model.
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
    """Returns a copy of a model whose modules of type `nnx.BatchNorm` run on jbn.

    The copy has the same values, in its own variables. `jbn.nnx.norms(model)` lists the modules
    that run on jbn. Modules that `nnx.vmap` or `nnx.scan` stacked are replaced as well.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    >>> model = jbn.nnx.replace_batch_norm(model, jbn.batch_norm(decay=0.9))
    >>> y = model(jnp.ones((8, 3)))
    >>> list(jbn.nnx.norms(model))
    ['layers/0']

    Args:
      model: any NNX model; it does not change.
      norm: the norm to run. Its options (decay, epsilon, axis_name, dtype, ...) replace those of
        the modules, and Flax's modules become `Norm`. It also replaces the norm of jbn's own
        modules, and the norm of each domain of a `DomainNorm`. If the norm has an activation, the
        norm applies it: remove it from the model. By default, Flax's modules become `BatchNorm`
        with the same fields.
      where: `where(path)` returns whether to replace the module at a path, such as "blocks/1/norm".
      types: further types of modules to replace, such as copies of Flax's BatchNorm, and subclasses
        with their own `__call__`. They must have the same fields and the same call.

    Raises:
      TypeError: `norm` is not a `jbn.Norm`, or `where` is not a function.
      ValueError: a module has a scale or bias and the norm has none, or vice versa; their axes
        differ; a subclass of a BatchNorm has its own `__call__` and is not in `types`; or the model
        has no module to replace.
    """
    require_where(where)
    if norm is not None:
        require_module_norm(norm)
    # A shared module stays shared. The old modules are kept, so that their ids are not reused.
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
    """Returns a module that runs on jbn, with the fields of the old module or with a norm."""
    new: Any
    if norm is None and isinstance(old, NormModule):
        return old
    if not (calls_as_one_of(type(old), _REPLACEABLE) or isinstance(old, types)):
        raise ValueError(
            f"layer {path!r} of type {type(old).__name__} has a __call__ of its own: pass "
            f"types=({type(old).__name__},) to replace it, or exclude it with `where`."
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
