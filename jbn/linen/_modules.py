"""The modules `Norm` and `BatchNorm`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer
from jax.typing import ArrayLike, DTypeLike

import jbn
from jbn._core.layout import Axes, Layout, Mask
from jbn._core.shards import AxisName
from jbn._flax.fields import norm_from_fields, position_mask, require_same_params
from jbn._norms.norm import require_norm


class Norm(nn.Module):
    """Any `jbn.Norm` as a module.

    The leaves of its parameters are variables of the collection `params`, those of its state of
    `batch_stats`, under the names of their fields.

    >>> import jax, jax.numpy as jnp
    >>> module = jbn.linen.Norm(jbn.batch_norm(decay=0.9), use_running_average=False)
    >>> variables = module.init(jax.random.key(0), jnp.ones((8, 3)))
    >>> y, updates = module.apply(variables, jnp.ones((8, 3)), mutable=["batch_stats"])

    Attributes:
      norm: the norm, such as `jbn.batch_norm(decay=0.9)`.
      use_running_average: whether to infer instead of to train; may be given at the call.
      num_features: what `norm.init` takes; by default the size of the last axis of x.
    """

    norm: jbn.Norm
    use_running_average: bool | None = None
    num_features: int | tuple[int, ...] | None = None

    @nn.compact
    def __call__(
        self, x: ArrayLike, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x`; in training mode, moves the state unless the module is initializing.

        Args:
          x: the input.
          use_running_average: whether to infer instead of to train.
          mask: boolean, broadcastable to the shape of x without its feature axes; True marks
            positions that are valid in training.

        Returns:
          The output, of the shape of x.
        """
        require_norm(self.norm)
        x = jnp.asarray(x)
        num_features = self.num_features or x.shape[-1]
        params, state = self.norm.init(num_features)
        for name, value in params._asdict().items():
            if value is not None:
                params = params._replace(**{name: self.param(name, lambda _, value=value: value)})
        return _apply(self, self.norm, params, state, state._fields, x, use_running_average, mask)


class BatchNorm(nn.Module):
    """Batch normalization with the fields, call and variables of `flax.linen.BatchNorm`.

    A model switches by changing one import, and its checkpoint loads. The fields that choose Flax's
    algorithm, `use_fast_variance` and `force_float32_reductions`, do not exist here. Arithmetic and
    running statistics are always in float32 or wider.

    >>> import jax, jax.numpy as jnp
    >>> module = jbn.linen.BatchNorm(use_running_average=False, momentum=0.9)
    >>> variables = module.init(jax.random.key(0), jnp.ones((8, 3)))
    >>> y, updates = module.apply(variables, jnp.ones((8, 3)), mutable=["batch_stats"])

    Attributes:
      use_running_average: whether to normalize by the running statistics; may be given at the call.
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
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Any = None

    @nn.compact
    def __call__(
        self, x: ArrayLike, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x`; in training mode, moves the statistics unless initializing.

        Args:
          x: the input.
          use_running_average: whether to normalize by the running statistics.
          mask: boolean, broadcastable to x, of size 1 on the feature axes; True marks positions
            that are valid in training.

        Returns:
          The output, of the shape of x; where the mask is False, it is the bias.
        """
        return apply_batch_norm(self, None, x, use_running_average, mask)


def apply_batch_norm(module, norm, x, use_running_average, mask) -> jax.Array:
    """Calls jbn's or Flax's BatchNorm by another norm, or by its own fields if that is None."""
    x = jnp.asarray(x)
    shape = Layout.of(x, module.axis).feature_shape

    def param(name, used, initializer):
        return module.param(name, initializer, shape, module.param_dtype) if used else None

    scale = param("scale", module.use_scale, module.scale_init)
    params = jbn.BatchNormParams(scale, param("bias", module.use_bias, module.bias_init))
    mask = position_mask(mask, x, module.axis)
    stored = ["mean", "var"]
    if norm is None:
        # While variables are made, the named axis need not exist. Flax stores no count, and a
        # constant decay needs none.
        alone = {"axis_name": None, "axis_index_groups": None} if module.is_initializing() else {}
        norm = norm_from_fields(module, params, x, **alone)
        state: Any = norm.init(shape)[1]
    else:
        wanted, state = norm.init(shape)
        require_same_params(module.path, params, wanted)
        if module.is_mutable_collection("batch_stats"):
            stored = state._fields
    stored = [n for n in state._fields if n in stored or module.has_variable("batch_stats", n)]
    return _apply(module, norm, params, state, stored, x, use_running_average, mask)


def _apply(module, norm, params, state, stored, x, use_running_average, mask) -> jax.Array:
    """Applies the norm; the `stored` fields of its state are variables of `batch_stats`."""
    infer = nn.merge_param("use_running_average", module.use_running_average, use_running_average)
    variables = {
        name: module.variable("batch_stats", name, lambda name=name: getattr(state, name))
        for name in stored
    }
    # Models are often initialized with one example, by which nothing can be normalized.
    single = x.size == np.size(state.mean)
    state = state._replace(**{name: variable.value for name, variable in variables.items()})
    if infer or (module.is_initializing() and single):
        return norm.infer(params, state, x)
    y, state = norm.train(params, state, x, mask=mask)
    if not module.is_initializing():
        for name, variable in variables.items():
            variable.value = getattr(state, name)
    return y
