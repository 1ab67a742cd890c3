"""The module `BatchNorm`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax.typing import ArrayLike, DTypeLike

from jbn._core.layout import Axes, Mask
from jbn._core.shards import AxisName
from jbn._flax.fields import as_floating, norm_from_fields
from jbn._norms.batch import batch_norm
from jbn.nnx._module import NO_METADATA, Metadata, NormModule


class BatchNorm(NormModule):
    """Batch normalization with the fields, call and variables of `flax.nnx.BatchNorm`.

    To switch a model from Flax's module, change the import. Checkpoints load as before. Arithmetic
    and running statistics are always in float32 or wider, and the variance is always computed
    without cancellation, so `use_fast_variance` has no effect. Flax's `promote_dtype` does not
    exist here.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> module = jbn.nnx.BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
    >>> y = module(jnp.array([[1.0], [3.0]]))
    >>> print(module.mean[...])
    [0.2]

    Args:
      num_features: number of features; a tuple of sizes if `axis` is a tuple.
      use_running_average: whether to normalize by the running statistics; `train()` and `eval()`
        set it.
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
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread.
      axis_index_groups: a partition of the shards of `axis_name` into batches.
      use_fast_variance: accepted as in Flax, without effect.
      rngs: the source of the initializers' keys.
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
        use_fast_variance: bool = True,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = NO_METADATA,
        scale_metadata: Metadata = NO_METADATA,
    ):
        self.num_features, self.axis = num_features, axis
        self.use_running_average = use_running_average
        self.momentum, self.epsilon = momentum, epsilon
        self.dtype, self.param_dtype = dtype, param_dtype
        self.use_bias, self.use_scale = use_bias, use_scale
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups
        self.use_fast_variance = use_fast_variance
        self._make_variables(
            batch_norm(axis=axis, use_scale=use_scale, use_bias=use_bias),
            rngs,
            param_dtype,
            # Like Flax's module, this one ignores initializers that it does not need.
            {"scale": scale_init if use_scale else None, "bias": bias_init if use_bias else None},
            {"scale": scale_metadata, "bias": bias_metadata},
        )

    def __call__(
        self, x: ArrayLike, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x`; in training mode, updates the statistics.

        Args:
          x: the input. Integers are converted to float32.
          use_running_average: whether to normalize by the running statistics; overrides the
            attribute of the module.
          mask: boolean array, True at valid positions, as in `jbn.Norm.train`.

        Returns:
          The output, with the shape of x. At masked positions, it is the bias.
        """
        norm = norm_from_fields(self, self._params(), x)
        return self._apply(norm, as_floating(x), use_running_average=use_running_average, mask=mask)
