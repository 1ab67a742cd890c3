"""Linen modules: variables in, a `jbn.Norm` called, variables out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer
from jax.typing import ArrayLike, DTypeLike

import jbn
from jbn import features, flax_fields, running, shards


class Norm(nn.Module):
    """Any `jbn.Norm` as a module.

    The leaves of its parameters are variables of the collection `params`, those of its state of
    `batch_stats`, under the names of their fields.

    Attributes:
      norm: the method, such as `jbn.batch_norm(decay=0.9)`.
      use_running_average: whether to infer instead of to train; may be given at the call.
      num_features: what `norm.init` takes; by default the size of the last axis of x.
    """

    norm: jbn.Norm
    use_running_average: bool | None = None
    num_features: int | tuple[int, ...] | None = None

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalises `x`; in training mode, moves the state unless the module is initialising.

        Args:
          x: the input.
          use_running_average: whether to infer instead of to train.
          mask: boolean, broadcastable to x without its feature axes, True where x counts in
            training.
        """
        x = jnp.asarray(x)
        num_features = self.num_features or x.shape[-1]
        params, state = self.norm.init(num_features)
        params = params._replace(
            **{
                name: self.param(name, lambda _, value=value: value)
                for name, value in params._asdict().items()
                if value is not None
            }
        )
        return _call(self, self.norm, num_features, params, state, x, use_running_average, mask)


class BatchNorm(nn.Module):
    """Batch normalization with the fields, call and variables of `flax.linen.BatchNorm`.

    A model switches by changing one import, and its checkpoint loads. Not taken are the fields that
    choose Flax's algorithm: `use_fast_variance` and `force_float32_reductions`. Arithmetic and
    running statistics are always in float32 or wider.

    Attributes:
      use_running_average: whether to normalise by the running statistics; may be given at the call.
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
    """

    use_running_average: bool | None = None
    axis: features.Axes = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: shards.AxisName | None = None
    axis_index_groups: Any = None

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalises `x`; in training mode, moves the statistics unless initialising.

        Args:
          x: the input.
          use_running_average: whether to normalise by the running statistics.
          mask: boolean, broadcastable to x, of size 1 on the feature axes; True where x counts in
            training.

        Returns:
          The output, of the shape of x; where the mask is False, it is the bias.
        """
        x = jnp.asarray(x)
        shape = features.feature_shape(x, features.feature_axes(x, self.axis))
        params = jbn.BatchNormParams(
            scale=self.param("scale", self.scale_init, shape, self.param_dtype)
            if self.use_scale
            else None,
            bias=self.param("bias", self.bias_init, shape, self.param_dtype)
            if self.use_bias
            else None,
        )
        # Where variables are made, the named axis need not exist.
        changes = {"axis_name": None, "axis_index_groups": None} if self.is_initializing() else {}
        norm = flax_fields.norm_of(self, params, x, **changes)
        mask = flax_fields.position_mask(mask, x, self.axis)
        # Flax keeps no count, and a constant decay needs none.
        state = running.start(shape)
        return _call(
            self, norm, shape, params, state, x, use_running_average, mask, ("mean", "var")
        )


def _call(module, norm, num_features, params, state, x, use_running_average, mask, kept=None):
    """Applies the norm with the state's fields `kept` (by default all) in `batch_stats`."""
    infer = nn.merge_param("use_running_average", module.use_running_average, use_running_average)
    variables = {
        name: module.variable("batch_stats", name, lambda value=value: value)
        for name, value in state._asdict().items()
        if kept is None or name in kept
    }
    state = state._replace(**{name: variable.value for name, variable in variables.items()})
    # Models are often initialised with one example, by which nothing can be normalised.
    single = x.size == np.prod(num_features)
    if infer or (module.is_initializing() and single):
        return norm.infer(params, state, x)
    y, state = norm.train(params, state, x, mask=mask)
    if not module.is_initializing():
        for name, variable in variables.items():
            variable.value = getattr(state, name)
    return y
