"""Running batch norm: the same statistics in training and in inference."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jbn._core.export import exportable
from jbn._core.moments import Moments, merge
from jbn._core.value import Number
from jbn._norms.batch import batch_norm, standardize
from jbn._norms.decay import require_decay_and_epsilon
from jbn._norms.method import Method, Statistics

_WARM_UP = 20
"""Until this number of examples has been seen, small variances count as `_LEAST_VARIANCE`."""
_LEAST_VARIANCE = 0.01


@exportable
class RunningBatchNormState(NamedTuple):
    """Running statistics of each feature, and the number of values that they summarize.

    Attributes:
      mean: `[*features]` running mean, float32 or wider; starts at 0.
      var: `[*features]` running variance, of the same dtype; starts at 1.
      count: `[]` float32 number of updates; starts at 0.
      weight: `[]` number of values that the statistics summarize, with earlier values discounted,
        of the dtype of the mean; starts at 0.
      examples: `[]` float32 number of examples seen, at most 20.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: jax.Array
    examples: jax.Array


class running_batch_norm(Method[RunningBatchNormState]):
    """Running batch norm (Howard 2019, fast.ai's course, lesson 10), for batches of 1 or more.

    Training and inference both normalize by the running statistics. A training step first updates
    them with its batch, and then normalizes the batch by the result. The batch's share in the
    statistics carries a gradient; the share of earlier batches does not.

    The running statistics are the moments of all values seen so far, with earlier values
    discounted. A step multiplies the count of the earlier values by keep and the count of the batch
    by 1 - keep, and merges both. The factor depends on the number of examples in the batch::

        keep = decay / sqrt(max(examples - 1, 1))

    With the default decay, keep is 0.9 for a batch of 2 examples and 0.16 for 32 examples. For 32
    examples or more, the norm is almost batch norm. The first step equals that of batch norm. Until
    20 examples have been seen, variances below 0.01 count as 0.01. The state has two more fields
    than that of `batch_norm` (see `RunningBatchNormState`).

    >>> import jax.numpy as jnp
    >>> norm = jbn.running_batch_norm()
    >>> params, state = norm.init(3)
    >>> y, state = norm.train(params, state, jnp.array([[1.0, 2.0, 3.0]]))
    >>> print(state.mean)
    [1. 2. 3.]

    Args:
      decay: the weight on the old statistics for a batch of 2 examples, in [0, 1].
      epsilon: added to the variance before its square root.
      axis: the feature axis or axes of x; all other axes are reduced.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread. Not
        needed under jit with sharded inputs.
      axis_index_groups: a partition of the shards of `axis_name`; each group is a separate batch.
      group_size: number of consecutive examples, counted over all shards, that are normalized
        together; by default all. All groups start from the same state. The next state is as if they
        came one after another, each with the moments of the whole batch.
      activation: an activation to apply in place, as in `inplace_batch_norm`; by default none.
      use_scale: whether a scale is learned.
      use_bias: whether a bias is learned.
      dtype: the dtype of y; by default the dtype of x. Arithmetic and statistics are in float32
        or wider.

    Raises:
      ValueError: an argument is out of range, or `group_size` is combined with
        `axis_index_groups` or an activation.
    """

    decay: Number = 0.9
    epsilon: Number = 1e-5
    takes_single_values = True

    def __post_init__(self):
        super().__post_init__()
        require_decay_and_epsilon(self.decay, self.epsilon)

    def init_vectors(self, num_features: int | tuple[int, ...]) -> RunningBatchNormState:
        start = batch_norm().init_vectors(num_features)
        return RunningBatchNormState(*start, jnp.float32(0), jnp.float32(0))

    def train_vectors(
        self, state: RunningBatchNormState, batch: Moments
    ) -> tuple[Statistics, RunningBatchNormState]:
        size = jnp.clip(batch.examples, 1, self.group_size)
        groups = jnp.maximum(batch.examples / size, 1)
        keep = (self.decay / jnp.sqrt(jnp.maximum(size - 1, 1))) ** groups
        past = batch._replace(mean=state.mean, var=state.var, count=state.weight * keep)
        present = batch._replace(count=batch.count / groups * (1 - keep))
        mean, var, weight, _ = merge(past, present)
        seen = jnp.minimum(state.examples + jnp.ceil(batch.examples), _WARM_UP)
        new = RunningBatchNormState(mean, var, state.count + 1, weight, seen)
        return self.infer_vectors(new), new

    def infer_vectors(self, state: RunningBatchNormState) -> Statistics:
        young = (state.examples > 0) & (state.examples < _WARM_UP)
        least = jnp.where(young, _LEAST_VARIANCE, 0).astype(state.var.dtype)
        return standardize(state.mean, jnp.maximum(state.var, least), self.epsilon)
