"""The modules `Norm` and `BatchNorm`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from
from flax.typing import Initializer
from jax.typing import ArrayLike, DTypeLike

import jbn
from jbn._core.layout import Axes, Mask
from jbn._core.shards import AxisName
from jbn._flax.fields import norm_from_fields, position_mask
from jbn._norms.norm import require_norm

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class Norm(nnx.Module):
    """Any `jbn.Norm` as a module.

    The leaves of its parameters are `nnx.Param`, those of its state `nnx.BatchStat`, under the
    names of their fields.

    >>> import jax.numpy as jnp
    >>> module = jbn.nnx.Norm(jbn.batch_norm(decay=0.9), 3)
    >>> y = module(jnp.ones((8, 3)))

    Args:
      norm: the norm, such as `jbn.batch_norm(decay=0.9)`.
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
        require_norm(norm)
        params, state = norm.init(num_features)
        self.norm = norm
        self.use_running_average = use_running_average
        self.params_type, self.state_type = type(params), type(state)
        for name, value in params._asdict().items():
            setattr(self, name, nnx.data(None) if value is None else nnx.Param(value))
        for name, value in state._asdict().items():
            setattr(self, name, nnx.BatchStat(value))

    def __call__(
        self, x: ArrayLike, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x`; in training mode, moves the state.

        Args:
          x: the input.
          use_running_average: whether to infer instead of to train; overrides the module's own.
          mask: boolean, broadcastable to the shape of x without its feature axes; True marks
            positions that are valid in training.

        Returns:
          The output, of the shape of x.
        """
        params, state = (
            kind(*(_read(self, name) for name in kind._fields))
            for kind in (self.params_type, self.state_type)
        )
        return _apply(self, self.norm, params, state, x, use_running_average, mask)


class BatchNorm(nnx.Module):
    """Batch normalization with the fields, call and variables of `flax.nnx.BatchNorm`.

    A model switches by changing one import, and its checkpoint loads. The arguments that choose
    Flax's algorithm, `use_fast_variance` and `promote_dtype`, do not exist here. Arithmetic and
    running statistics are always in float32 or wider.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> module = jbn.nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
    >>> y = module(jnp.ones((8, 3)))

    Args:
      num_features: number of features; a tuple where `axis` is one.
      use_running_average: whether to normalize by the running statistics; `train()` and `eval()`
        set it.
      axis: the feature axis or axes of the input.
      momentum: the weight on the old running statistics, jbn's `decay`.
      epsilon: added to the variance before its square root.
      dtype: of the output; by default what the input and the parameters promote to.
      param_dtype: of the parameters.
      use_bias: whether a bias is learned.
      use_scale: whether a scale is learned.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread.
      axis_index_groups: a partition of the shards of `axis_name` into batches.
      rngs: where the initializers' keys come from.
      bias_metadata: metadata of the bias variable.
      scale_metadata: metadata of the scale variable.
    """

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros,
        scale_init: Initializer = nnx.initializers.ones,
        axis_name: AxisName | None = None,
        axis_index_groups: Any = None,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        scale_metadata: Mapping[str, Any] = _NO_METADATA,
    ):
        state = jbn.batch_norm().init_vectors(num_features)
        shape = state.mean.shape
        self.mean = nnx.BatchStat(state.mean)
        self.var = nnx.BatchStat(state.var)
        self.scale = self.bias = nnx.data(None)
        if use_scale:
            self.scale = nnx.Param(scale_init(rngs.params(), shape, param_dtype), **scale_metadata)
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), shape, param_dtype), **bias_metadata)
        self.num_features, self.axis = num_features, axis
        self.use_running_average = use_running_average
        self.momentum, self.epsilon = momentum, epsilon
        self.dtype, self.param_dtype = dtype, param_dtype
        self.use_bias, self.use_scale = use_bias, use_scale
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups

    def __call__(
        self, x: ArrayLike, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x`; in training mode, moves the statistics.

        Args:
          x: the input.
          use_running_average: whether to normalize by the running statistics; overrides the
            module's own.
          mask: boolean, broadcastable to x, of size 1 on the feature axes; True marks positions
            that are valid in training.

        Returns:
          The output, of the shape of x; where the mask is False, it is the bias.
        """
        x = jnp.asarray(x)
        params = jbn.BatchNormParams(_read(self, "scale"), _read(self, "bias"))
        # Flax stores no count, and a constant decay needs none.
        state = jbn.batch_norm().init_vectors(self.num_features)
        state = state._replace(**{n: _read(self, n) for n in state._fields if hasattr(self, n)})
        norm = norm_from_fields(self, params, x)
        mask = position_mask(mask, x, self.axis)
        return _apply(self, norm, params, state, x, use_running_average, mask)


def modules_by_path(model: Any) -> dict[str, Any]:
    """Returns the modules of a model by their paths, joined by "/"."""
    return {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}


def _read(module, name) -> Any:
    variable = getattr(module, name)
    return None if variable is None else variable[...]


def _apply(module, norm, params, state, x, use_running_average, mask):
    hint = "use_running_average is not set: pass it, or use `model.train()` and `model.eval()`."
    if first_from(use_running_average, module.use_running_average, error_msg=hint):
        return norm.infer(params, state, x)
    y, state = norm.train(params, state, x, mask=mask)
    for name, value in state._asdict().items():
        if hasattr(module, name):
            getattr(module, name)[...] = value
    return y
