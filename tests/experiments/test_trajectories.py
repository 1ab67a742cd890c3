"""jbn agrees with peers where they are right, in training trajectories and PyTorch's gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jbn
from experiments.benchmarks import layers
from tests.helpers import data
from tests.peers import ask

STEPS = 50

pytestmark = pytest.mark.usefixtures("strict_promotion")


def batch(step):
    return data((8, 4), step, mean=np.sin(step))


def trajectory(library, **options):
    """Returns y, mean and variance of fifty steps, and the result of inference after them."""
    _, make = layers.installed()[library.__name__]
    layer = make(4, 0.9, **options)
    steps, state = [], layer.state
    for step in range(STEPS):
        y, state = layer.train(state, jnp.asarray(batch(step)))
        steps.append([np.array(a) for a in (y, *layer.running_statistics(state))])
    ys, means, variances = map(np.stack, zip(*steps, strict=True))
    inferred = np.asarray(layer.infer(state, jnp.asarray(batch(STEPS))))
    return {"y": ys, "mean": means, "var": variances, "inferred": inferred}


@pytest.mark.parametrize(
    ("their_trajectory", "options"),
    [
        (partial(trajectory, linen), {}),
        (partial(trajectory, nnx), {}),
        (partial(ask, "keras", trajectory), {}),
        (partial(ask, "haiku", trajectory), {"corrected": True}),
        (partial(ask, "torch", trajectory), {"unbiased": True}),
    ],
    ids=["linen", "nnx", "keras", "haiku", "torch"],
)
def test_fifty_steps_agree_in_each_convention(their_trajectory, options):
    ours = trajectory(jbn, **options)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = their_trajectory()
    for name in ("y", "mean", "var", "inferred"):
        tolerance = 2e-6 if name == "y" else 1e-6
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=tolerance)


def averages(torch):
    """Returns mean, variance and count of a cumulative average."""
    module = torch.nn.BatchNorm1d(4, momentum=None)
    for step in range(STEPS):
        module(torch.tensor(batch(step)))
    statistics = module.running_mean, module.running_var, module.num_batches_tracked
    return [tensor.numpy() for tensor in statistics]


def test_cumulative_average_is_pytorchs_without_momentum():
    norm = jbn.batch_norm(decay=jbn.cumulative_decay, unbiased=True)
    params, state = norm.init(4)
    for step in range(STEPS):
        _, state = norm.train(params, state, batch(step))
    mean, var, count = ask("torch", averages)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.var, var, rtol=1e-5)
    assert int(state.count) == count


def gradients(torch, x, dy, scale, bias):
    """Returns the gradients of x, scale and bias in float64."""
    module = torch.nn.BatchNorm2d(3).double()
    module.weight.data, module.bias.data = torch.tensor(scale), torch.tensor(bias)
    x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    module(x).backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    dx, dscale, dbias = (tensor.grad.numpy() for tensor in (x, module.weight, module.bias))
    return dx.transpose(0, 2, 3, 1), dscale, dbias


@pytest.mark.usefixtures("x64")
def test_gradients_are_those_of_pytorchs_batchnorm2d_in_float64():
    x, dy = data((3, 2, 4, 3), 0, 2, np.float64), data((3, 2, 4, 3), 1, dtype=np.float64)
    scale, bias = data(3, 2, 1, np.float64), data(3, 3, dtype=np.float64)
    norm = jbn.batch_norm()
    params = jbn.BatchNormParams(jnp.asarray(scale), jnp.asarray(bias))
    state = norm.init(3)[1]
    _, pull = jax.vjp(lambda p, x: norm.train(p, state, x)[0], params, jnp.asarray(x))
    dparams, dx = pull(jnp.asarray(dy))
    tolerances: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
    for ours, theirs in zip(
        (dx, *dparams), ask("torch", gradients, x, dy, scale, bias), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, **tolerances)
