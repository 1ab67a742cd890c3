"""Batch renormalization: training that looks like inference."""

from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import lax

from jbn import running
from jbn.norms.batch import require_decay_and_epsilon
from jbn.norms.method import GroupedNormOptions, Method, Statistics, make_norm, statistics
from jbn.norms.norm import Norm
from jbn.running import BatchNormState

Limit = float | Callable[[jax.Array], jax.typing.ArrayLike]
"""A number, or a function of the number of updates so far, as optax's schedules are."""


def batch_renorm(
    *,
    r_max: Limit = 3.0,
    d_max: Limit = 5.0,
    decay: running.Decay = 0.99,
    epsilon: float = 1e-5,
    **options: Unpack[GroupedNormOptions],
) -> Norm[BatchNormState]:
    """Batch renormalization (Ioffe 2017, https://arxiv.org/abs/1702.03275).

    Training normalises by the batch's statistics and then corrects towards the running ones,

        (x - mean_B) / std_B * r + d,   r = clip(std_B / std, 1 / r_max, r_max),
                                        d = clip((mean_B - mean) / std, -d_max, d_max),

    where r and d carry no gradient and mean, std are the running statistics before this batch. With
    no limits the output is that of inference, with the gradient's projection of batch norm; with
    r_max = 1 and d_max = 0 it is batch norm. Inference normalises by the running statistics.

    The paper starts as batch norm and widens the limits, for instance

        r_max=optax.linear_schedule(1, 3, 35_000, 5_000)
        d_max=optax.linear_schedule(0, 5, 20_000, 5_000)

    of some 150,000 steps. Paper and Keras average the standard deviation; here the variance is
    averaged, so that the state is that of batch norm and either can go on where the other stopped.
    The average is then a little larger, by the variance of the batches' standard deviations.

    Args:
      r_max: limit of r, at least 1, or a schedule of the update count.
      d_max: limit of d, at least 0, or a schedule of the update count.
      decay: the weight on the old running statistics, or a function of the number of updates.
      epsilon: added to the variance before its square root.
      **options: see `GroupedNormOptions`.

    Returns:
      The `Norm`.

    Raises:
      ValueError: an argument is out of range.
    """
    require_decay_and_epsilon(decay, epsilon)
    for name, limit, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
        if not callable(limit) and not limit >= least:
            raise ValueError(f"{name}={limit} must be at least {least}, or a schedule.")

    def choose(state, batch, examples):
        rstd = statistics(batch.mean, batch.var, epsilon).rstd
        running_rstd = recall(state).rstd
        most, far = (_at(limit, state.count, rstd.dtype) for limit in (r_max, d_max))
        r = lax.stop_gradient(jnp.clip(running_rstd / rstd, 1 / most, most))
        d = lax.stop_gradient(jnp.clip((batch.mean - state.mean) * running_rstd, -far, far))
        return Statistics(batch.mean - d / (rstd * r), rstd * r)

    def recall(state):
        return statistics(state.mean, state.var, epsilon)

    def update(state, batch, examples):
        return running.average(state, batch, decay)

    return make_norm(Method(running.start, choose, recall, update), **options)


def _at(limit: Limit, count: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jnp.asarray(limit(count) if callable(limit) else limit, dtype)
