"""Norms: an initialiser, a training step and an inference step, as three pure functions."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jbn import features, running, shards
from jbn.moments import Moments, moments
from jbn.normalize import normalize
from jbn.running import BatchNormState


class BatchNormParams(NamedTuple):
    """What is learned of each feature.

    Attributes:
      scale: `[*features]` the factor after normalisation, or None where unused; starts at 1.
      bias: `[*features]` the offset after normalisation, or None where unused; starts at 0.
    """

    scale: jax.Array | None
    bias: jax.Array | None


class TrainFn(Protocol):
    """The type of `Norm.train`."""

    def __call__(
        self,
        params: BatchNormParams,
        state: BatchNormState,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
    ) -> tuple[jax.Array, BatchNormState]:
        """Returns the normalised `x` and the next state."""
        ...


class Norm(NamedTuple):
    """A normalisation method.

    Attributes:
      init: `init(num_features) -> (params, state)`; a tuple of sizes for several feature axes.
      train: `train(params, state, x, *, mask=None) -> (y, state)`.
      infer: `infer(params, state, x) -> y`, which treats each example for itself.
    """

    init: Callable[[int | tuple[int, ...]], tuple[BatchNormParams, BatchNormState]]
    train: TrainFn
    infer: Callable[[BatchNormParams, BatchNormState, ArrayLike], jax.Array]


def batch_norm(
    *,
    axis: features.Axes = -1,
    decay: running.Decay = 0.99,
    epsilon: float = 1e-5,
    axis_name: shards.AxisName | None = None,
    axis_index_groups: shards.Groups | None = None,
    use_scale: bool = True,
    use_bias: bool = True,
    unbiased: bool = False,
    dtype: DTypeLike | None = None,
) -> Norm:
    """Batch normalization (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167).

    Training normalises by the mean and the biased variance of the batch, inference by their running
    averages.

    Args:
      axis: the feature axis or axes of x; all others are reduced.
      decay: the weight on the old running statistics, new = decay * old + (1 - decay) * batch
        (PyTorch's momentum is 1 - decay); or a function of the number of updates so far, such as
        `cumulative_decay` or `corrected_decay(0.99)`.
      epsilon: added to the variance before its square root.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread. Not
        needed under jit with sharded inputs.
      axis_index_groups: a partition of the shards of `axis_name`; each group is a batch of its own.
      use_scale: whether a scale is learned.
      use_bias: whether a bias is learned.
      unbiased: whether the running variance averages the unbiased one, as in PyTorch.
      dtype: of y; by default that of x. Arithmetic and statistics are in float32 or wider.

    Returns:
      The `Norm`. Its functions take any leading `vmap` axes, and `train` a boolean `mask`,
      broadcastable to x without its feature axes, that marks what counts.

      `train` raises TypeError for an x that is not real floating point or a mask that is not
      boolean, ValueError for a shape that does not fit or for a batch of one value per feature,
      NameError for an unbound `axis_name`. A batch with nothing valid is normalised by the running
      statistics; neither it nor one with statistics that are not finite changes the state.

    Raises:
      ValueError: `decay` or `epsilon` is out of range.
    """
    if not callable(decay) and not 0 <= decay <= 1:
        raise ValueError(f"decay={decay} must be in [0, 1], or a function of the update count.")
    if not epsilon >= 0:
        raise ValueError(f"epsilon={epsilon} must not be negative.")
    groups = shards.freeze_groups(axis_index_groups)

    def init(num_features):
        params = BatchNormParams(
            scale=jnp.ones(num_features, jnp.float32) if use_scale else None,
            bias=jnp.zeros(num_features, jnp.float32) if use_bias else None,
        )
        return params, running.start(num_features)

    @jax.checkpoint
    def gain_of(var, scale):
        gain = lax.rsqrt(var + epsilon)
        return gain if scale is None else gain * scale.astype(gain.dtype)

    def apply(params, x, mean, var, mask=None):
        gain = gain_of(var, params.scale if use_scale else None)
        bias = params.bias if use_bias else jnp.zeros_like(mean)
        return normalize(x, mean, gain, bias, axis, mask=mask, dtype=dtype)

    def check(params, state, x):
        vectors = {"mean": state.mean, "var": state.var}
        if use_scale:
            vectors["scale"] = params.scale
        if use_bias:
            vectors["bias"] = params.bias
        features.require_feature_shape(x, features.feature_axes(x, axis), **vectors)

    def train(params, state, x, *, mask=None):
        x = jnp.asarray(x)
        check(params, state, x)
        _require_two_values(x, axis, axis_name, groups)
        batch = moments(x, axis, mask=mask, axis_name=axis_name, axis_index_groups=groups)
        mean, var = (batch.mean, batch.var) if mask is None else _or_running(batch, state)
        y = apply(params, x, mean, var, mask)
        return y, running.update(state, batch, decay, unbiased=unbiased)

    def infer(params, state, x):
        x, state = jnp.asarray(x), lax.stop_gradient(state)
        check(params, state, x)
        return apply(params, x, state.mean, state.var)

    return Norm(init, train, infer)


def _or_running(batch: Moments, state: BatchNormState) -> tuple[jax.Array, jax.Array]:
    """The batch's mean and variance, or the running ones where nothing in the batch is valid."""
    state = lax.stop_gradient(state)

    def choose(new, old):
        return jnp.where(batch.count > 0, new, old.astype(new.dtype))

    return choose(batch.mean, state.mean), choose(batch.var, state.var)


def _require_two_values(x, axis, axis_name, groups) -> None:
    axes = features.feature_axes(x, axis)
    values = features.values_per_feature(x, axes)
    if axis_name is not None:
        values *= shards.shard_count(axis_name, groups)
    if values == 1:
        raise ValueError(
            f"x of shape {x.shape} has one value per feature on axis={axis}: its variance is 0 and "
            "y would be the bias alone. Train on more examples, or use infer."
        )
