"""Batch renormalization: training outputs that are close to those of inference."""

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
"""A number, or a function of the number of updates so far, such as an optax schedule."""


class batch_renorm(batch_norm):
    """Batch renormalization (Ioffe 2017, https://arxiv.org/abs/1702.03275).

    Training normalizes by the batch's statistics, and then corrects the result towards the running
    statistics::

        (x - mean_B) / std_B * r + d,   r = clip(std_B / std, 1 / r_max, r_max),
                                        d = clip((mean_B - mean) / std, -d_max, d_max)

    Here, mean_B and std_B are the statistics of the batch, and mean and std are the running
    statistics before this batch. r and d carry no gradient. Without limits, the output equals that
    of inference, and the gradient is projected as in batch norm. With r_max = 1 and d_max = 0,
    training equals that of batch norm. Inference normalizes by the running statistics.

    >>> import jax.numpy as jnp
    >>> norm = jbn.batch_renorm(r_max=2.0, d_max=1.0, epsilon=0.0)
    >>> params, state = norm.init(1)
    >>> y, state = norm.train(params, state, jnp.array([[1.0], [5.0]]))
    >>> print(y.ravel())
    [-1.  3.]

    The paper starts with the limits of batch norm and widens them, in a training of about 150,000
    steps for instance like this:

    >>> import optax
    >>> norm = jbn.batch_renorm(
    ...     r_max=optax.linear_schedule(1, 3, 35_000, 5_000),
    ...     d_max=optax.linear_schedule(0, 5, 20_000, 5_000),
    ... )

    The paper and Keras average the standard deviation. jbn averages the variance, so the state is
    that of `batch_norm`, and training can switch between the two norms. The average variance is a
    little larger than the square of the average standard deviation: the difference is the variance
    of the standard deviations of the batches.

    Args:
      r_max: the limit of r: a number of at least 1, or a function of the number of updates of the
        norm, such as an optax schedule. Values of a function below 1 count as 1. With the default
        limits, outputs of the first steps are far from normalized if the mean or scale of the data
        is far from the initial statistics (mean 0, variance 1). A schedule that starts at 1 avoids
        this.
      d_max: the limit of d: a number of at least 0, or a function of the number of updates of the
        norm. Let a schedule start at 0, for the same reason. Values of a function below 0 count as
        0.
      decay: the weight on the old running statistics, or a function of the number of updates.
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
