"""The module `BatchNorm`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import ArrayLike, DTypeLike

from jbn._core.layout import Axes, Layout, Mask
from jbn._core.shards import AxisName
from jbn._flax.fields import (
    as_floating,
    norm_from_fields,
    require_same_axis,
    require_same_params,
)
from jbn._norms.norm import BatchNormParams, Norm
from jbn.linen._apply import apply, num_features, path_of


class BatchNorm(nn.Module):
    """Batch normalization with the fields, call and variables of `flax.linen.BatchNorm`.

    To switch a model from Flax's module, change the import. Checkpoints load as before. Arithmetic
    and running statistics are always in float32 or wider, and the variance is always computed
    without cancellation, so `use_fast_variance` and `force_float32_reductions` have no effect.

    >>> import jax, jax.numpy as jnp
    >>> module = jbn.linen.BatchNorm(use_running_average=False, momentum=0.9)
    >>> x = jnp.array([[1.0], [3.0]])
    >>> variables = module.init(jax.random.key(0), x)
    >>> y, updates = module.apply(variables, x, mutable=["batch_stats"])
    >>> print(updates["batch_stats"]["mean"])
    [0.2]

    Attributes:
      use_running_average: whether to normalize by the running statistics; may be given in the call
        instead.
      axis: the feature axis or axes of the input.
      momentum: the weight on the old running statistics, which jbn's norms call `decay`.
      epsilon: added to the variance before its square root.
      dtype: the dtype of the output; by default the result of promoting the dtypes of the input and
        the parameters.
      param_dtype: the dtype of the parameters.
      use_bias: whether a bias is learned.
      use_scale: whether a scale is learned.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread; not
        needed while initializing.
      axis_index_groups: a partition of the shards of `axis_name` into batches.
      use_fast_variance: accepted as in Flax, without effect.
      force_float32_reductions: accepted as in Flax, without effect.
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
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(
        self, x: ArrayLike, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x`; in training mode, updates the statistics, except in `init`.

        Args:
          x: the input. Integers are converted to float32.
          use_running_average: whether to normalize by the running statistics.
          mask: boolean array, True at valid positions, as in `jbn.Norm.train`.

        Returns:
          The output, with the shape of x. At masked positions, it is the bias.
        """
        return apply_batch_norm(self, None, x, use_running_average, mask=mask)


def apply_batch_norm(
    module: Any,
    norm: Norm | None,
    x: ArrayLike,
    use_running_average: bool | None = None,
    *,
    mask: Mask = None,
) -> jax.Array:
    """Runs jbn's or Flax's BatchNorm with `norm`, or with its own fields if `norm` is None."""
    floating = as_floating(x)
    shape = Layout.of(floating, module.axis).feature_shape

    def param(name, used, initializer):
        return module.param(name, initializer, shape, module.param_dtype) if used else None

    scale = param("scale", module.use_scale, module.scale_init)
    params = BatchNormParams(scale, param("bias", module.use_bias, module.bias_init))
    by_fields = norm is None
    norm = norm_from_fields(module, params, x) if by_fields else norm
    wanted, start = norm.init(num_features(shape))
    if not by_fields:
        require_same_axis(path_of(module), module.axis, norm, floating.ndim)
        require_same_params(path_of(module), params, wanted)
    return apply(
        module, norm, params, start, floating, use_running_average=use_running_average, mask=mask
    )
