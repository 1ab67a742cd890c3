"""SGD as PyTorch defines it, its schedule, and lookahead."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import OptimizerConfig

LOOKAHEAD_STEPS = 5
"""Number of steps between two moves of lookahead's slow weights."""


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0 to `total_steps` - 1.

    A point of the schedule that falls between two steps is moved to the first of them.
    """
    shares, factors = np.array(config.schedule).T
    points = jnp.asarray(np.floor(shares * total_steps), float), jnp.asarray(factors, float)
    return lambda step: config.learning_rate * jnp.interp(jnp.asarray(step, float), *points)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, whiten_steps: float = 0.0
) -> optax.GradientTransformation:
    """Returns SGD with momentum and coupled weight decay.

    The norms' biases have their own learning rate and weight decay. In a layer named `whiten` the
    kernel is frozen from the start, and the bias after `whiten_steps`.
    """

    def sgd(factor: float = 1.0) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay / factor),
            optax.trace(config.momentum, nesterov=config.nesterov),
            optax.scale_by_learning_rate(lambda step: factor * schedule(step)),
        )

    def until_frozen(step):
        return jnp.where(jnp.asarray(step, float) < whiten_steps, 1.0, 0.0)

    return optax.partition(
        {
            "plain": sgd(),
            "norm bias": sgd(config.norm_bias_factor),
            "whitening bias": optax.chain(sgd(), optax.scale_by_schedule(until_frozen)),
            "frozen": optax.set_to_zero(),
        },
        _kinds,
    )


def _kinds(params: Any) -> Any:
    def kind(path, _):
        *_, layer, leaf = (key.key for key in path)
        if layer == "whiten":
            return "frozen" if leaf == "kernel" else "whitening bias"
        return "norm bias" if (layer, leaf) == ("norm", "bias") else "plain"

    return jax.tree_util.tree_map_with_path(kind, params)


def look_ahead(slow: Any, fast: Any, step: jax.Array, total_steps: int) -> tuple[Any, Any]:
    """Returns the slow and the fast weights after a step of lookahead.

    Every `LOOKAHEAD_STEPS` steps the slow weights move toward the fast weights, and the fast
    weights are set to the slow ones. The method is that of Zhang et al. 2019
    (https://arxiv.org/abs/1907.08610), with airbench94's rising decay.

    Args:
      slow: pytree of slow weights. Integers in it are copied from the fast weights.
      fast: pytree of fast weights.
      step: `[]` number of steps done.
      total_steps: number of steps of the run.
    """
    decay = 0.95**LOOKAHEAD_STEPS * (jnp.asarray(step, float) / total_steps) ** 3
    due = step % LOOKAHEAD_STEPS == 0

    def move(old, new):
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        share = decay.astype(new.dtype)
        return jnp.where(due, share * old + (1 - share) * new, old)

    slow = jax.tree.map(move, slow, fast)
    return slow, jax.tree.map(lambda s, f: jnp.where(due, s, f), slow, fast)
