"""The weight on the old running statistics, as a number or as a function of the update count."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jbn._core.value import Number, Value, require_number

Decay = Number | Callable[[jax.Array], ArrayLike]
"""The weight on the old statistics: a number, or a function of the number of updates so far."""


def cumulative_decay(count: jax.Array) -> jax.Array:
    """Returns the decay t / (t + 1), with which running statistics are the mean over all batches.

    >>> import jax.numpy as jnp
    >>> norm = jbn.batch_norm(decay=jbn.cumulative_decay)
    >>> print(jbn.cumulative_decay(jnp.int32(3)))
    0.75

    Args:
      count: `[]` number of updates so far, t.
    """
    return count / (count + 1)


class corrected_decay(Value):
    """A decay with which running averages do not depend on the initial statistics.

    The running statistics after t batches are then a weighted mean of the statistics of these
    batches, with weights proportional to decay^(t-1), ..., decay, 1. This is the bias correction of
    Adam (Kingma & Ba 2015) as a part of the update. The first batch replaces the initial
    statistics.

    >>> import jax.numpy as jnp
    >>> norm = jbn.batch_norm(decay=jbn.corrected_decay(0.9))
    >>> params, state = norm.init(1)
    >>> y, state = norm.train(params, state, jnp.array([[1.0], [3.0]]))
    >>> print(state.mean)
    [2.]

    Args:
      decay: the weight on the old statistics after many updates, in [0, 1]. With 0, only the last
        batch counts. With 1, the decay equals `cumulative_decay`.

    Raises:
      ValueError: `decay` is out of range.
    """

    decay: Number = dataclasses.field(kw_only=False)

    def __post_init__(self):
        super().__post_init__()
        require_number("decay", self.decay, lambda number: 0 <= number <= 1, "in [0, 1]")

    def __call__(self, count: ArrayLike) -> jax.Array:
        """Returns the weight on the old statistics after `count` updates."""
        count = jnp.asarray(count, jnp.float32)
        decay = jnp.asarray(self.decay, jnp.float32)
        inside = (decay > 0) & (decay < 1)
        log = jnp.log(jnp.where(inside, decay, jnp.float32(0.5)))
        # With expm1, 1 - decay^count is accurate even where it is tiny.
        ratio = jnp.expm1(count * log) / jnp.expm1((count + 1) * log)
        return decay * jnp.where(inside, ratio, cumulative_decay(count))


def require_decay_and_epsilon(decay: Decay, epsilon: Number) -> None:
    """Checks the decay and the epsilon of a method.

    Raises:
      ValueError: `decay` or `epsilon` is out of range.
    """
    wanted = "in [0, 1], or a function of the update count"
    require_number("decay", decay, lambda number: 0 <= number <= 1, wanted)
    require_number("epsilon", epsilon, lambda number: number >= 0, "a number that is not negative")
