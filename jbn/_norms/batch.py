"""Batch norm: normalize by the batch, and average the statistics of the batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jbn._core.export import exportable
from jbn._core.moments import Moments
from jbn._core.value import Number
from jbn._norms.decay import Decay, require_decay_and_epsilon
from jbn._norms.method import Method, Statistics, accept, promote


@exportable
class BatchNormState(NamedTuple):
    """Running statistics of each feature.

    Attributes:
      mean: `[*features]` running mean, float32 or wider; starts at 0.
      var: `[*features]` running variance, of the same dtype; starts at 1.
      count: `[]` number of updates; starts at 0. It is float32, so that states can be averaged.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


class batch_norm(Method[BatchNormState]):
    """Batch normalization (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167).

    Training normalizes by the mean and the biased variance of the batch. Inference normalizes by
    their running averages.

    >>> import jax
    >>> norm = jbn.batch_norm(decay=0.9)
    >>> params, state = norm.init(64)
    >>> x = jax.random.normal(jax.random.key(0), (32, 8, 8, 64))
    >>> y, state = norm.train(params, state, x)
    >>> y = norm.infer(params, state, x[:1])
    >>> y.shape
    (1, 8, 8, 64)

    Args:
      decay: the weight on the old running statistics, new = decay * old + (1 - decay) * batch
        (PyTorch's momentum is 1 - decay); or a function of the number of updates so far, such as
        `cumulative_decay` or `corrected_decay(0.99)`.
      epsilon: added to the variance before its square root.
      unbiased: whether the running variance averages the unbiased variances of the batches, as in
        PyTorch.
      axis: the feature axis or axes of x; all other axes are reduced.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread. Not
        needed under jit with sharded inputs.
      axis_index_groups: a partition of the shards of `axis_name`; each group is a separate batch.
      group_size: number of consecutive examples, counted over all shards, that are normalized
        together, as in `ghost_batch_norm`; by default all.
      activation: an activation to apply in place, as in `inplace_batch_norm`; by default none.
      use_scale: whether a scale is learned.
      use_bias: whether a bias is learned.
      dtype: the dtype of y; by default the dtype of x. Arithmetic and statistics are in float32
        or wider.

    Raises:
      ValueError: an argument is out of range, or `group_size` is combined with
        `axis_index_groups` or an activation.
    """

    decay: Decay = 0.99
    epsilon: Number = 1e-5
    unbiased: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_decay_and_epsilon(self.decay, self.epsilon)

    @property
    def needs_count(self) -> bool:
        return callable(self.decay)

    def init_vectors(self, num_features: int | tuple[int, ...]) -> BatchNormState:
        zeros, ones = jnp.zeros(num_features, jnp.float32), jnp.ones(num_features, jnp.float32)
        return BatchNormState(zeros, ones, jnp.zeros((), jnp.float32))

    def train_vectors(
        self, state: BatchNormState, batch: Moments
    ) -> tuple[Statistics, BatchNormState]:
        statistics = standardize(batch.mean, batch.var, self.epsilon)
        return statistics, average(state, batch, self.decay, self.unbiased)

    def infer_vectors(self, state: BatchNormState) -> Statistics:
        return standardize(state.mean, state.var, self.epsilon)


def standardize(mean: jax.Array, var: jax.Array, epsilon: Number) -> Statistics:
    """Returns the mean and 1 / sqrt(var + epsilon)."""
    return Statistics(mean, lax.rsqrt(var + jnp.asarray(epsilon, var.dtype)))


def average(
    state: BatchNormState, batch: Moments, decay: Decay, unbiased: bool = False
) -> BatchNormState:
    """Returns decay * old + (1 - decay) * batch."""
    var, dtype = batch.var, state.mean.dtype
    if unbiased:
        var = var * (batch.count / jnp.maximum(batch.count - 1, 1))
    old = at(decay, state.count)
    keep, take = jnp.asarray(old, dtype), jnp.asarray(1 - old, dtype)
    return BatchNormState(
        keep * state.mean + take * batch.mean, keep * state.var + take * var, state.count + 1
    )


def at(option: Decay, count: jax.Array) -> Any:
    """Returns an option after `count` updates: a number, or a function's value at the count."""
    return option(count) if callable(option) else option


def update(
    state: BatchNormState, batch: Moments, decay: Decay, *, unbiased: bool = False
) -> BatchNormState:
    """Returns running statistics after a batch: decay * old + (1 - decay) * batch.

    Returns the old state if the batch has fewer than two valid values of a feature, or if its
    moments or the new statistics are not finite.

    >>> import jax.numpy as jnp
    >>> _, state = jbn.batch_norm().init(1)
    >>> batch = jbn.moments(jnp.array([[1.0], [3.0]]))
    >>> print(jbn.update(state, batch, decay=0.5).mean)
    [1.]

    Args:
      state: the running statistics. The result has the same dtypes.
      batch: the moments of the batch. No gradient flows back into them.
      decay: the weight on the old statistics, in [0, 1], or a function of `state.count`.
      unbiased: whether the running variance averages the unbiased variances, n / (n - 1) * var, as
        in PyTorch.
    """
    new = average(promote(state, batch), batch, decay, unbiased)
    return accept(state, batch, new, batch.count > 1)
