"""Linen modules: variables in, a `jbn.Norm` called, variables out.

A model that calls Flax's BatchNorm runs on jbn without an edit, by any method:

    with jbn.linen.replace_batch_norm(jbn.ghost_batch_norm(group_size=32)):
        y, updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
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
        return _batch_norm(self, None, x, use_running_average, mask=mask)


@contextlib.contextmanager
def replace_batch_norm(norm: jbn.Norm | None = None) -> Iterator[None]:
    """Within it, jbn runs wherever a model calls `flax.linen.BatchNorm`, on the same variables.

    What was jitted outside is traced again inside, and the other way round.

    Args:
      norm: the method, whose own options (axis, axis_name, epsilon, dtype, ...) hold instead of the
        module's fields. Further fields of its state become variables of `batch_stats`; where they
        are missing, they start anew. By default what `jbn.linen.BatchNorm` would be with the
        fields of the module.

    Raises:
      ValueError: from the model, if the module has a scale or bias and the norm has none, or the
        other way round.
    """

    def run(module, call, x, use_running_average=None, *, mask=None):
        return _batch_norm(module, norm, x, use_running_average, mask=mask)

    with intercept_calls({nn.BatchNorm: run}, ("jbn", norm)):
        yield


_interceptors = jax.make_user_context(())


@contextlib.contextmanager
def intercept_calls(functions: Mapping[Any, Callable[..., Any]], key: Hashable) -> Iterator[None]:
    """Within it, modules of the given types are called through functions; the innermost context's.

    Args:
      functions: by type, `f(module, call, *args, **kwargs)`, where `call` is the module itself.
      key: what tells the functions from others, for the caches of `jax.jit`.
    """
    entry = frozenset(functions), key
    stack = (*_interceptors.value, entry)

    def interceptor(call, args, kwargs, context):
        kind = type(context.module)
        # Flax asks the outermost first.
        inner = _interceptors.value[len(stack) :]
        if context.method_name != "__call__" or any(kind in kinds for kinds, _ in inner):
            return call(*args, **kwargs)
        function = functions.get(kind)
        return (
            function(context.module, call, *args, **kwargs) if function else call(*args, **kwargs)
        )

    with _interceptors(stack), nn.intercept_methods(interceptor):
        yield


def _batch_norm(module, norm, x, use_running_average, *, mask):
    """The call of jbn's or Flax's BatchNorm, by its fields or by another norm."""
    x = jnp.asarray(x)
    shape = features.feature_shape(x, features.feature_axes(x, module.axis))
    params = jbn.BatchNormParams(
        scale=module.param("scale", module.scale_init, shape, module.param_dtype)
        if module.use_scale
        else None,
        bias=module.param("bias", module.bias_init, shape, module.param_dtype)
        if module.use_bias
        else None,
    )
    mask = flax_fields.position_mask(mask, x, module.axis)
    kept = ["mean", "var"]
    if norm is None:
        # Where variables are made, the named axis need not exist. Flax keeps no count, and a
        # constant decay needs none.
        alone = {"axis_name": None, "axis_index_groups": None} if module.is_initializing() else {}
        norm, state = flax_fields.norm_of(module, params, x, **alone), running.start(shape)
    else:
        wanted, state = norm.init(shape)
        flax_fields.require_same_params(module.path, params, wanted)
        if module.is_mutable_collection("batch_stats"):
            kept = state._fields
    kept = [
        name for name in state._fields if name in kept or module.has_variable("batch_stats", name)
    ]
    return _call(module, norm, shape, params, state, x, use_running_average, mask, kept)


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
