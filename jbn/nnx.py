"""NNX modules: variables in, a `jbn.Norm` called, variables out.

A model that has Flax's BatchNorm runs on jbn without an edit, by any method:

    model = jbn.nnx.convert(model, jbn.ghost_batch_norm(group_size=32))
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax.typing import ArrayLike, DTypeLike

import jbn
from jbn import features, flax_fields, running, shards

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class Norm(nnx.Module):
    """Any `jbn.Norm` as a module.

    The leaves of its parameters are `nnx.Param`, those of its state `nnx.BatchStat`, under the
    names of their fields.

    Args:
      norm: the method, such as `jbn.batch_norm(decay=0.9)`.
      num_features: what `norm.init` takes.
      use_running_average: whether to infer instead of to train; `train()` and `eval()` set it.
    """

    def __init__(
        self,
        norm: jbn.Norm,
        num_features: int | tuple[int, ...],
        *,
        use_running_average: bool | None = False,
    ):
        params, state = norm.init(num_features)
        self.norm = norm
        self.use_running_average = use_running_average
        self.params_type, self.state_type = type(params), type(state)
        for name, value in params._asdict().items():
            setattr(self, name, nnx.data(None) if value is None else nnx.Param(value))
        for name, value in state._asdict().items():
            setattr(self, name, nnx.BatchStat(value))

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalises `x`; in training mode, moves the state.

        Args:
          x: the input.
          use_running_average: whether to infer instead of to train; goes before the module's own.
          mask: boolean, broadcastable to x without its feature axes, True where x counts in
            training.
        """
        params = self.params_type(**{n: _read(self, n) for n in self.params_type._fields})
        state = self.state_type(**{n: _read(self, n) for n in self.state_type._fields})
        return _call(self, self.norm, params, state, x, use_running_average, mask)


class BatchNorm(nnx.Module):
    """Batch normalization with the fields, call and variables of `flax.nnx.BatchNorm`.

    A model switches by changing one import, and its checkpoint loads. Not taken are the fields that
    choose Flax's algorithm: `use_fast_variance` and `promote_dtype`. Arithmetic and running
    statistics are always in float32 or wider.

    Args:
      num_features: number of features; a tuple where `axis` is one.
      use_running_average: whether to normalise by the running statistics; `train()` and `eval()`
        set it.
      axis: the feature axis or axes of the input.
      momentum: the weight on the old running statistics, jbn's `decay`.
      epsilon: added to the variance before its square root.
      dtype: of the output; by default what the input and the parameters promote to.
      param_dtype: of the parameters.
      use_bias: whether a bias is learned.
      use_scale: whether a scale is learned.
      bias_init: initialiser of the bias.
      scale_init: initialiser of the scale.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread.
      axis_index_groups: a partition of the shards of `axis_name` into batches.
      rngs: where the initialisers' keys come from.
      bias_metadata: metadata of the bias variable.
      scale_metadata: metadata of the scale variable.
    """

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        use_running_average: bool | None = False,
        axis: features.Axes = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        axis_name: shards.AxisName | None = None,
        axis_index_groups: Any = None,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        scale_metadata: Mapping[str, Any] = _NO_METADATA,
    ):
        state = running.start(num_features)
        shape = state.mean.shape
        self.mean = nnx.BatchStat(state.mean)
        self.var = nnx.BatchStat(state.var)
        self.scale = self.bias = nnx.data(None)
        if use_scale:
            self.scale = nnx.Param(scale_init(rngs.params(), shape, param_dtype), **scale_metadata)
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), shape, param_dtype), **bias_metadata)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalises `x`; in training mode, moves the statistics.

        Args:
          x: the input.
          use_running_average: whether to normalise by the running statistics; goes before the
            module's own.
          mask: boolean, broadcastable to x, of size 1 on the feature axes; True where x counts in
            training.

        Returns:
          The output, of the shape of x; where the mask is False, it is the bias.
        """
        x = jnp.asarray(x)
        params = jbn.BatchNormParams(_read(self, "scale"), _read(self, "bias"))
        # Flax keeps no count, and a constant decay needs none.
        state = running.start(self.num_features)
        state = state._replace(**{n: _read(self, n) for n in state._fields if hasattr(self, n)})
        norm = flax_fields.norm_of(self, params, x)
        mask = flax_fields.position_mask(mask, x, self.axis)
        return _call(self, norm, params, state, x, use_running_average, mask)


Model = TypeVar("Model")


def convert(model: Model, norm: jbn.Norm | None = None) -> Model:
    """Returns the model with its modules of type `nnx.BatchNorm` replaced, values kept.

    Args:
      model: any NNX model, which stays as it is. The result has variables of its own.
      norm: the method, whose own options (axis, axis_name, epsilon, dtype, ...) hold instead of the
        module's; the modules become `Norm`. By default they become `BatchNorm` with the same
        fields.

    Raises:
      ValueError: a module has a scale or bias and the norm has none, or the other way round.
    """

    def replace(path, node):
        if type(node) is not nnx.BatchNorm:
            return node
        if norm is None:
            options = {name: getattr(node, name) for name in _SHARED_FIELDS}
            new = BatchNorm(node.num_features, rngs=nnx.Rngs(0), **options)
        else:
            new = Norm(norm, node.num_features, use_running_average=node.use_running_average)
            flax_fields.require_same_params(path, *map(_params, (node, new)))
        for name in ("mean", "var", "scale", "bias"):
            if getattr(node, name) is not None:
                setattr(new, name, getattr(node, name))
        return new

    return nnx.recursive_map(replace, nnx.clone(model))


_SHARED_FIELDS = (
    *("use_running_average", "axis", "momentum", "epsilon", "dtype", "param_dtype", "use_bias"),
    *("use_scale", "axis_name", "axis_index_groups"),
)


def _params(module: Any) -> Any:
    return jbn.BatchNormParams(module.scale, module.bias)


def _read(module, name) -> Any:
    variable = getattr(module, name)
    return None if variable is None else variable[...]


def _call(module, norm, params, state, x, use_running_average, mask):
    if use_running_average is None:
        use_running_average = module.use_running_average
    if use_running_average is None:
        raise ValueError(
            "use_running_average is not set: pass it at the call or to the constructor, or use "
            "`model.train()` and `model.eval()`."
        )
    if use_running_average:
        return norm.infer(params, state, x)
    y, state = norm.train(params, state, x, mask=mask)
    for name, value in state._asdict().items():
        if hasattr(module, name):
            getattr(module, name)[...] = value
    return y
