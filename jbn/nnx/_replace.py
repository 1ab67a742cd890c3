"""Models with Flax's norms replaced by jbn's."""

from typing import Any, TypeVar

from flax import nnx

import jbn
from jbn._flax.fields import require_same_params
from jbn.nnx._modules import BatchNorm, Norm

Model = TypeVar("Model")
_SHARED_FIELDS = (
    *("use_running_average", "axis", "momentum", "epsilon", "dtype", "param_dtype", "use_bias"),
    *("use_scale", "axis_name", "axis_index_groups"),
)


def replace_batch_norm(model: Model, norm: jbn.Norm | None = None) -> Model:
    """Returns the model with its modules of type `nnx.BatchNorm` replaced; their values are kept.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    >>> model = jbn.nnx.replace_batch_norm(model, jbn.batch_norm(decay=0.9))
    >>> y = model(jnp.ones((8, 3)))

    Args:
      model: any NNX model, which does not change. The result has variables of its own.
      norm: the norm, whose options (axis, axis_name, epsilon, dtype, ...) replace those of the
        modules; the modules become `Norm`. By default they become `BatchNorm` with the same fields.

    Raises:
      ValueError: a module has a scale or bias and the norm has none, or the other way round.
    """

    def replace(path, node):
        if type(node) is not nnx.BatchNorm:
            return node
        if norm is None:
            options: Any = {name: getattr(node, name) for name in _SHARED_FIELDS}
            new = BatchNorm(node.num_features, rngs=nnx.Rngs(0), **options)
        else:
            new = Norm(norm, node.num_features, use_running_average=node.use_running_average)
            require_same_params(path, _params(node), _params(new))
        for name in ("mean", "var", "scale", "bias"):
            if getattr(node, name) is not None:
                setattr(new, name, getattr(node, name))
        return new

    return nnx.recursive_map(replace, nnx.clone(model))


def _params(module: Any) -> jbn.BatchNormParams:
    return jbn.BatchNormParams(module.scale, module.bias)
