"""The optimizer agrees with PyTorch's formulas of SGD; schedule and lookahead with own formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import OptimizerConfig
from experiments.optimizers import learning_rate, look_ahead, make_optimizer

CONFIG = OptimizerConfig(
    learning_rate=0.5,
    momentum=0.85,
    weight_decay=0.1,
    norm_bias_factor=64,
    schedule=((0.0, 0.2), (0.5, 1.0), (1.0, 0.0)),
)
STEPS, EPOCH = 8, 2


def rates():
    return 0.5 * np.interp(np.arange(STEPS) / STEPS, [0, 0.5, 1], [0.2, 1, 0])


def test_learning_rate_joins_its_points():
    schedule = learning_rate(CONFIG, STEPS)
    np.testing.assert_allclose(schedule(np.arange(STEPS)), rates(), rtol=1e-6)


def test_learning_rate_drops_at_a_repeated_share():
    config = OptimizerConfig(schedule=((0.0, 1.0), (0.5, 1.0), (0.5, 0.1), (1.0, 0.1)))
    schedule = learning_rate(config, 10)
    factors = np.asarray(schedule(np.arange(10))) / config.learning_rate
    np.testing.assert_allclose(factors[:5], 1, rtol=1e-6)
    np.testing.assert_allclose(factors[6:], 0.1, rtol=1e-6)


def torch_sgd(value, grads, rates, weight_decay):
    """Updates a value as PyTorch's documentation of SGD says, with Nesterov momentum."""
    buffer = 0.0
    for grad, rate in zip(grads, rates, strict=True):
        grad = grad + weight_decay * value
        buffer = CONFIG.momentum * buffer + grad
        value = value - rate * (grad + CONFIG.momentum * buffer)
    return value


def test_each_kind_of_parameter_moves_as_pytorch_would():
    rng = np.random.default_rng(0)
    like = {
        "whiten": {"kernel": 1.0, "bias": 2.0},
        "ConvNorm_0": {"Conv_0": {"kernel": 3.0}, "norm": {"scale": 1.0, "bias": 0.5}},
        "Dense_0": {"bias": -1.0},
    }
    start = jax.tree.map(jnp.float32, like)
    grads = [jax.tree.map(lambda _: jnp.float32(rng.normal()), like) for _ in range(STEPS)]
    optimizer = make_optimizer(CONFIG, learning_rate(CONFIG, STEPS), 2 * EPOCH)
    params, state = start, optimizer.init(start)
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = jax.tree.map(jnp.add, params, updates)

    def expected(*path, factor=1.0, steps=STEPS):
        def at(tree):
            for key in path:
                tree = tree[key]
            return float(tree)

        moving = rates() * factor * (np.arange(STEPS) < steps)
        return torch_sgd(at(like), [at(g) for g in grads], moving, CONFIG.weight_decay / factor)

    conv = params["ConvNorm_0"]
    assert params["whiten"]["kernel"] == 1.0
    for value, reference in [
        (params["Dense_0"]["bias"], expected("Dense_0", "bias")),
        (conv["Conv_0"]["kernel"], expected("ConvNorm_0", "Conv_0", "kernel")),
        (conv["norm"]["scale"], expected("ConvNorm_0", "norm", "scale")),
        (conv["norm"]["bias"], expected("ConvNorm_0", "norm", "bias", factor=64)),
        (params["whiten"]["bias"], expected("whiten", "bias", steps=2 * EPOCH)),
    ]:
        assert value == pytest.approx(reference, rel=1e-5)


def test_lookahead_follows_every_five_steps():
    slow, fast = {"w": jnp.float32(1.0), "count": jnp.int32(0)}, None
    for step in range(1, 11):
        fast = {"w": jnp.float32(step), "count": jnp.int32(step)}
        before = float(slow["w"])
        slow, fast = look_ahead(slow, fast, jnp.int32(step), 10)
        if step % 5:
            assert slow["w"] == before
            assert fast["w"] == step
        else:
            decay = 0.95**5 * (step / 10) ** 3
            assert slow["w"] == pytest.approx(decay * before + (1 - decay) * step, rel=1e-6)
            assert fast["w"] == slow["w"]
