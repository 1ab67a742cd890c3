"""Running statistics: how they start and how a batch moves them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jbn import features
from jbn.moments import Moments

Decay = float | Callable[[jax.Array], jax.typing.ArrayLike]
"""The weight on the old statistics: a number, or a function of the number of updates so far."""


class BatchNormState(NamedTuple):
    """Running statistics of each feature.

    Attributes:
      mean: `[*features]` running mean, float32 or wider; starts at 0.
      var: `[*features]` running variance, of the same dtype; starts at 1.
      count: `[]` int32 number of updates; starts at 0.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def start(num_features: int | tuple[int, ...]) -> BatchNormState:
    """Returns the state before any batch, with which inference is the affine map alone."""
    return BatchNormState(
        mean=jnp.zeros(num_features, jnp.float32),
        var=jnp.ones(num_features, jnp.float32),
        count=jnp.zeros((), jnp.int32),
    )


def update(
    state: BatchNormState, batch: Moments, decay: Decay, *, unbiased: bool = False
) -> BatchNormState:
    """Returns decay * old + (1 - decay) * batch, or the old state after a bad batch.

    A batch is bad if it holds nothing valid or if any of its statistics is not finite.

    Args:
      state: the running statistics; their dtypes stay as they are.
      batch: the moments of the batch; no gradient flows back into them.
      decay: the weight on the old statistics, in [0, 1], or a function of `state.count`.
      unbiased: whether the running variance averages n / (n - 1) var, as in PyTorch.
    """
    new = average(widened(state, batch), batch, decay, unbiased=unbiased)
    return accepted(state, batch, new)


def average(
    state: BatchNormState, batch: Moments, decay: Decay, *, unbiased: bool = False
) -> BatchNormState:
    """The arithmetic of `update`."""
    var = batch.var
    if unbiased:
        var = var * (batch.count / jnp.maximum(batch.count - 1, 1))
    old = decay(state.count) if callable(decay) else decay
    keep, take = (jnp.asarray(weight, state.mean.dtype) for weight in (old, 1 - old))
    return BatchNormState(
        keep * state.mean + take * batch.mean, keep * state.var + take * var, state.count + 1
    )


State = TypeVar("State", bound=Any)


def widened(state: State, batch: Moments) -> State:
    """Returns the state in its own or the batch's dtype, the wider of the two; no gradient."""
    wide = features.statistics_dtype(state.mean, batch.mean)

    def widen(leaf):
        return leaf.astype(wide) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(widen, lax.stop_gradient(state))


@jax.jit
def accepted(state: State, batch: Moments, new: State) -> State:
    """Returns `new` in the dtypes of `state`, or `state` itself after a bad batch; no gradient."""
    good = (batch.count > 0) & jnp.all(jnp.isfinite(batch.mean) & jnp.isfinite(batch.var))

    def choose(old, new):
        return jnp.where(good, new.astype(old.dtype), old)

    return lax.stop_gradient(jax.tree.map(choose, state, new))


def cumulative_decay(count: jax.Array) -> jax.Array:
    """The decay t / (t + 1), with which the state is the plain mean over all batches so far.

    Args:
      count: `[]` number of updates so far, t.
    """
    return count / (count + 1)


def corrected_decay(decay: float) -> Callable[[jax.Array], jax.Array]:
    """Returns the decay with which an exponential average forgets where it started.

    The average of t batches then weighs them as decay^(t-1), ..., decay, 1, normalised: Adam's bias
    correction (Kingma & Ba 2015), folded into the update. The first batch replaces the start.

    Args:
      decay: the weight on the old statistics that it tends to.
    """

    def corrected(count: jax.Array) -> jax.Array:
        # 1 - decay^t, also where that is tiny.
        def mass(t):
            return -jnp.expm1(t * jnp.log(jnp.float32(decay)))

        count = count.astype(jnp.float32)
        return decay * mass(count) / mass(count + 1)

    return corrected
