"""Ghost batch norm: batch norm on groups of consecutive examples."""

from dataclasses import field

from jbn._norms.batch import batch_norm
from jbn._train.groups import require_group_size


class ghost_batch_norm(batch_norm):
    """Ghost batch normalization (Hoffer et al. 2017, https://arxiv.org/abs/1705.08741).

    Training normalizes each group of consecutive examples by its own mean and variance, so that a
    large batch has the noise of small batches. The running statistics average the statistics of the
    whole batch, which are merged exactly from those of the groups. Inference has no groups.

    >>> import jax.numpy as jnp
    >>> norm = jbn.ghost_batch_norm(group_size=2, epsilon=0.0)
    >>> params, state = norm.init(1)
    >>> y, state = norm.train(params, state, jnp.array([[1.0], [3.0], [10.0], [30.0]]))
    >>> print(y.ravel())
    [-1.  1. -1.  1.]

    Args:
      group_size: number of examples in a group. The last group of a batch may have fewer examples,
        but needs two values of each feature. Examples are counted over all shards, so the groups do
        not depend on the number of shards. The examples are on the first axis of x that is not a
        feature axis.
      decay: the weight on the old running statistics, or a function of the number of updates.
      epsilon: added to the variance before its square root.
      unbiased: whether the running variance averages the unbiased variances of the batches, as in
        PyTorch.
      axis: the feature axis or axes of x; all other axes are reduced.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread. Not
        needed under jit with sharded inputs.
      axis_index_groups: must be None, since `group_size` already defines the groups.
      activation: must be None.
      use_scale: whether a scale is learned.
      use_bias: whether a bias is learned.
      dtype: the dtype of y; by default the dtype of x. Arithmetic and statistics are in float32
        or wider.

    Raises:
      ValueError: an argument is out of range, or `axis_index_groups` or `activation` is given.
    """

    group_size: int = field()  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]

    def __post_init__(self):
        super().__post_init__()
        require_group_size(self.group_size, self.axis_index_groups, self.activation)
