"""Batch norm, on whole batches and on groups."""

from typing import Unpack

from jbn import running
from jbn.norms.method import GroupedNormOptions, Method, NormOptions, make_norm, statistics
from jbn.norms.norm import Norm
from jbn.running import BatchNormState


def batch_norm(
    *,
    decay: running.Decay = 0.99,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    **options: Unpack[GroupedNormOptions],
) -> Norm[BatchNormState]:
    """Batch normalization (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167).

    Training normalises by the mean and the biased variance of the batch, inference by their running
    averages.

    Args:
      decay: the weight on the old running statistics, new = decay * old + (1 - decay) * batch
        (PyTorch's momentum is 1 - decay); or a function of the number of updates so far, such as
        `cumulative_decay` or `corrected_decay(0.99)`.
      epsilon: added to the variance before its square root.
      unbiased: whether the running variance averages the unbiased one, as in PyTorch.
      **options: see `GroupedNormOptions`: axis, axis_name, axis_index_groups, group_size,
        use_scale, use_bias, dtype.

    Returns:
      The `Norm`; see `make_norm` for what its functions take and raise.

    Raises:
      ValueError: `decay`, `epsilon` or an option is out of range.
    """
    return make_norm(batch_method(decay, epsilon, unbiased), **options)


def ghost_batch_norm(
    *,
    group_size: int,
    decay: running.Decay = 0.99,
    epsilon: float = 1e-5,
    **options: Unpack[NormOptions],
) -> Norm[BatchNormState]:
    """Ghost batch normalization (Hoffer et al. 2017, https://arxiv.org/abs/1705.08741).

    Training normalises each group of consecutive examples by its own mean and variance, so that
    batches of any size have the noise of small ones. The running averages are of the whole batch's
    statistics, merged exactly from the groups', and inference knows no groups.

    Args:
      group_size: number of examples in a group; the last of a batch may have fewer. Examples are
        counted over all shards, so that groups do not depend on how many there are.
      decay: the weight on the old running statistics, or a function of the number of updates.
      epsilon: added to the variance before its square root.
      **options: see `NormOptions`.

    Returns:
      The `Norm`.

    Raises:
      ValueError: an argument is out of range.
    """
    return batch_norm(decay=decay, epsilon=epsilon, group_size=group_size, **options)


def batch_method(decay: running.Decay, epsilon: float, unbiased: bool) -> Method:
    """Returns the method of `batch_norm`.

    Raises:
      ValueError: `decay` or `epsilon` is out of range.
    """
    require_decay_and_epsilon(decay, epsilon)

    def choose(state, batch, examples):
        return statistics(batch.mean, batch.var, epsilon)

    def recall(state):
        return statistics(state.mean, state.var, epsilon)

    def update(state, batch, examples):
        return running.average(state, batch, decay, unbiased=unbiased)

    return Method(running.start, choose, recall, update)


def require_decay_and_epsilon(decay: running.Decay, epsilon: float) -> None:
    """Checks what every method takes.

    Raises:
      ValueError: one of them is out of range.
    """
    if not callable(decay) and not 0 <= decay <= 1:
        raise ValueError(f"decay={decay} must be in [0, 1], or a function of the update count.")
    if not epsilon >= 0:
        raise ValueError(f"epsilon={epsilon} must not be negative.")
