"""Batch renormalization: training that looks like inference."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jbn._core.moments import Moments
from jbn._core.value import Number, require_number
from jbn._norms.batch import BatchNormState, at, batch_norm
from jbn._norms.method import Statistics

Limit = Number | Callable[[jax.Array], ArrayLike]
"""A number, or a function of the number of updates so far, as optax's schedules are."""


class batch_renorm(batch_norm):
    """Batch renormalization (Ioffe 2017, https://arxiv.org/abs/1702.03275).

    Training normalizes by the batch's statistics and then corrects towards the running ones,

        (x - mean_B) / std_B * r + d,   r = clip(std_B / std, 1 / r_max, r_max),
                                        d = clip((mean_B - mean) / std, -d_max, d_max),

    where r and d carry no gradient, and mean and std are the running statistics before this batch.
    Without limits the output is that of inference, and the gradient is projected as in batch norm.
    With r_max = 1 and d_max = 0 it is batch norm. Inference normalizes by the running statistics.

    The paper starts as batch norm and widens the limits, for instance

        r_max=optax.linear_schedule(1, 3, 35_000, 5_000)
        d_max=optax.linear_schedule(0, 5, 20_000, 5_000)

    over some 150,000 steps. The paper and Keras average the standard deviation. Here the variance
    is averaged, so that the state is that of batch norm and either can continue from the other. The
    average is then a little larger, by the variance of the batches' standard deviations.

    >>> norm = jbn.batch_renorm(r_max=3.0, d_max=5.0)

    Args:
      r_max: limit of r, at least 1, or a schedule of the number of updates of the norm, of which
        values below 1 count as 1. By default 3 from the first step on, which lets data pass whose
        mean or scale is far from that of the initial statistics: start with a schedule at 1.
      d_max: limit of d, at least 0, or a schedule of the number of updates of the norm. By default
        5 from the first step on: start with a schedule at 0.
      decay: the weight on the old running statistics, or a function of the number of updates.
      epsilon: added to the variance before its square root.
      unbiased: whether the running variance averages the unbiased one, as in PyTorch.
      axis: the feature axis or axes of x; all other axes are reduced.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread. Not
        needed under jit with sharded inputs.
      axis_index_groups: a partition of the shards of `axis_name`; each group is a batch of its own.
      group_size: number of consecutive examples, counted over all shards, that are normalized
        together, as in `ghost_batch_norm`; by default all.
      activation: an activation to apply in place, as in `inplace_batch_norm`; by default none.
      use_scale: whether a scale is learned.
      use_bias: whether a bias is learned.
      dtype: the dtype of y; by default that of x. Arithmetic and statistics are in float32 or
        wider.

    Raises:
      ValueError: an argument is out of range, or `group_size` goes with `axis_index_groups` or an
        activation.
    """

    r_max: Limit = 3.0
    d_max: Limit = 5.0

    def __post_init__(self):
        super().__post_init__()
        require_number("r_max", self.r_max, lambda r: r >= 1, "at least 1, or a schedule")
        require_number("d_max", self.d_max, lambda d: d >= 0, "at least 0, or a schedule")

    @property
    def needs_count(self) -> bool:
        return any(map(callable, (self.decay, self.r_max, self.d_max)))

    def train_vectors(
        self, state: BatchNormState, batch: Moments
    ) -> tuple[Statistics, BatchNormState]:
        (_, rstd), new = super().train_vectors(state, batch)
        running_rstd = self.infer_vectors(state).rstd
        limits = at(self.r_max, state.count), at(self.d_max, state.count)
        r_max, d_max = (jnp.asarray(limit, rstd.dtype) for limit in limits)
        r_max, d_max = jnp.maximum(r_max, 1), jnp.maximum(d_max, 0)
        r = lax.stop_gradient(jnp.clip(running_rstd / rstd, 1 / r_max, r_max))
        d = lax.stop_gradient(jnp.clip((batch.mean - state.mean) * running_rstd, -d_max, d_max))
        return Statistics(batch.mean - d / (rstd * r), rstd * r), new
