"""In-place batch norm: batch norm and an activation that save only their output."""

from jbn._norms.batch import batch_norm
from jbn.activations import InvertibleActivation, leaky_relu


class inplace_batch_norm(batch_norm):
    """Batch norm and activation in one (Rota Bulo et al. 2018, https://arxiv.org/abs/1712.02616).

    The output is y = activation(batch norm of x). The backward pass recovers the normalized x from
    y. So reverse mode saves y, which the next layer saves anyway, and does not save x. Forward mode
    and higher derivatives work as for the other norms. At masked positions, y is activation(bias).

    >>> import jax.numpy as jnp
    >>> activation = jbn.activations.leaky_relu(0.5)
    >>> norm = jbn.inplace_batch_norm(activation=activation, epsilon=0.0)
    >>> params, state = norm.init(1)
    >>> y, state = norm.train(params, state, jnp.array([[1.0], [3.0]]))
    >>> print(y.ravel())
    [-0.5  1. ]

    To recover the normalized x, the backward pass divides by the scale. So a scale with an absolute
    value below 0.01 counts as 0.01 (or -0.01), in training and in inference. Its gradient is that
    of a scale of this size, so training can lead it away from 0 again. A scale that is initialized
    to 0 acts as 0.01. For the last norm of a residual branch that should start at 0, use
    `batch_norm`.

    The recovered x has the rounding error of y, multiplied by ``|bias / scale|``. In bfloat16, the
    relative error of the gradient of x is 0.2% if this factor is 0.5, 0.5% if it is 5, and 4.5% if
    it is 50. For `batch_norm`, it is 0.3%.

    Args:
      activation: one of `jbn.activations`, or your own `jbn.activations.InvertibleActivation`; by
        default `leaky_relu` with a negative slope of 0.01. The norm applies it: remove it from the
        network.
      decay: the weight on the old running statistics, or a function of the number of updates.
      epsilon: added to the variance before its square root.
      unbiased: whether the running variance averages the unbiased variances of the batches, as in
        PyTorch.
      axis: the feature axis or axes of x; all other axes are reduced.
      axis_name: the named axis or axes (pmap, shard_map, vmap) over which the batch is spread. Not
        needed under jit with sharded inputs.
      axis_index_groups: a partition of the shards of `axis_name`; each group is a separate batch.
      group_size: must be None.
      use_scale: whether a scale is learned.
      use_bias: whether a bias is learned.
      dtype: the dtype of y; by default the dtype of x. Arithmetic and statistics are in float32
        or wider.

    Raises:
      TypeError: `activation` is not an `InvertibleActivation`.
      ValueError: an argument is out of range, or `group_size` is given.
    """

    activation: InvertibleActivation | None = leaky_relu()
