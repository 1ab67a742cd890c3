"""Running batch norm: the same statistics in training and in inference."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jbn import running
from jbn.moments import Moments, merge
from jbn.norms.batch import require_decay_and_epsilon
from jbn.norms.method import Method, NormOptions, make_norm, statistics
from jbn.norms.norm import Norm

_WARM_UP = 20
"""Examples before which the variance is not trusted."""
_LEAST_VARIANCE = 0.01


class RunningBatchNormState(NamedTuple):
    """Running statistics of each feature, and what they rest on.

    Attributes:
      mean: `[*features]` running mean, float32 or wider; starts at 0.
      var: `[*features]` running variance, of the same dtype; starts at 1.
      count: `[]` int32 number of updates; starts at 0.
      weight: `[]` number of values behind the statistics, older ones discounted, of the dtype of
        the mean; starts at 0.
      examples: `[]` int32 number of examples seen, up to 20.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: jax.Array
    examples: jax.Array


def running_batch_norm(
    *,
    decay: float = 0.9,
    epsilon: float = 1e-5,
    group_size: int | None = None,
    **options: Unpack[NormOptions],
) -> Norm[RunningBatchNormState]:
    """Running batch norm (Howard 2019, fast.ai's course, lesson 10), for batches down to 1 example.

    Training and inference both normalise by the running statistics, in training after this batch
    has moved them. The batch's share in them carries gradient, the past does not. They are moments
    of the values seen, older ones discounted: the counts of the past are multiplied by keep, the
    batch's by 1 - keep, and both merged, where

        keep = decay / sqrt(max(examples - 1, 1))

    for a batch of so many examples: 0.9 for 2 of them, 0.16 for 32, from where on it is almost
    batch norm. The first step is batch norm. While fewer than 20 examples were seen, variances
    below 0.01 count as 0.01.

    Args:
      decay: the weight on the old statistics at 2 examples in a batch, at most 1.
      epsilon: added to the variance before its square root.
      group_size: see `GroupedNormOptions`. All groups meet the same past, and move it as if they
        came one after the other, each with the moments of the whole batch.
      **options: see `NormOptions`.

    Returns:
      The `Norm`, whose state has two fields more.

    Raises:
      ValueError: an argument is out of range.
    """
    require_decay_and_epsilon(decay, epsilon)

    def start(num_features):
        mean, var, count = running.start(num_features)
        return RunningBatchNormState(mean, var, count, jnp.float32(0), jnp.int32(0))

    def update(state, batch, examples):
        size = jnp.maximum(examples if group_size is None else jnp.minimum(examples, group_size), 1)
        groups = jnp.maximum(examples / size, 1)
        keep = (decay / jnp.sqrt(jnp.maximum(size - 1, 1))) ** groups
        past = Moments(state.mean, state.var, state.weight * keep)
        batch = batch._replace(count=batch.count / groups * (1 - keep))
        mean, var, weight = merge(past, batch)
        seen = jnp.minimum(state.examples + jnp.ceil(examples).astype(jnp.int32), _WARM_UP)
        return RunningBatchNormState(mean, var, state.count + 1, weight, seen)

    def recall(state):
        least = jnp.where((state.examples > 0) & (state.examples < _WARM_UP), _LEAST_VARIANCE, 0)
        return statistics(
            state.mean, jnp.maximum(state.var, least.astype(state.var.dtype)), epsilon
        )

    def choose(state, batch, examples):
        return recall(update(state, batch, examples))

    method = Method(start, choose, recall, update, takes_single_values=True)
    return make_norm(method, group_size=group_size, **options)
