"""Agreement with peers where they are right: training trajectories and PyTorch's gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from experiments.benchmarks import layers
from tests.helpers import data

STEPS = 50

pytestmark = pytest.mark.usefixtures("strict_promotion")


@pytest.mark.parametrize(
    ("library", "maker", "options"),
    [
        ("flax", layers.make_linen, {"decay": 0.9}),
        ("flax", layers.make_nnx, {"decay": 0.9}),
        ("keras", layers.make_keras, {"decay": 0.9}),
        ("haiku", layers.make_haiku, {"decay": jbn.corrected_decay(0.9)}),
        ("torch", layers.make_torch, {"decay": 0.9, "unbiased": True}),
    ],
)
def test_fifty_steps_agree_in_each_convention(library, maker, options):
    pytest.importorskip(library, reason="an optional peer")
    norm = jbn.batch_norm(**options)
    params, state = norm.init(4)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        peer = maker(4, 0.9)
        theirs = peer.state
        for step in range(STEPS):
            x = jnp.asarray(data((32, 4), step, mean=np.sin(step)))
            y, state = norm.train(params, state, x)
            y_peer, theirs = peer.train(theirs, x)
            np.testing.assert_allclose(y, y_peer, rtol=1e-5, atol=2e-6)
            for ours, other in zip(state[:2], peer.running_statistics(theirs), strict=True):
                np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)
        x = jnp.asarray(data((5, 4), STEPS))
        expected = peer.infer(theirs, x)
    np.testing.assert_allclose(norm.infer(params, state, x), expected, rtol=1e-5, atol=1e-6)


def test_cumulative_average_is_pytorchs_without_momentum():
    torch: Any = pytest.importorskip("torch", reason="an optional peer")
    module = torch.nn.BatchNorm1d(4, momentum=None)
    norm = jbn.batch_norm(decay=jbn.cumulative_decay, unbiased=True)
    params, state = norm.init(4)
    for step in range(STEPS):
        x = data((32, 4), step, mean=np.sin(step))
        _, state = norm.train(params, state, x)
        module(torch.tensor(x))
    np.testing.assert_allclose(state.mean, module.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.var, module.running_var.numpy(), rtol=1e-5)
    assert state.count == module.num_batches_tracked.item()


@pytest.mark.usefixtures("x64")
def test_gradients_are_those_of_pytorchs_batchnorm2d_in_float64():
    torch: Any = pytest.importorskip("torch", reason="an optional peer")
    x, dy = data((6, 5, 4, 3), 0, 2, np.float64), data((6, 5, 4, 3), 1, dtype=np.float64)
    scale, bias = data(3, 2, 1, np.float64), data(3, 3, dtype=np.float64)
    module = torch.nn.BatchNorm2d(3).double()
    module.weight.data, module.bias.data = torch.tensor(scale), torch.tensor(bias)
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    module(x_torch).backward(torch.tensor(dy.transpose(0, 3, 1, 2)))

    norm = jbn.batch_norm()
    params = jbn.BatchNormParams(jnp.asarray(scale), jnp.asarray(bias))
    state = norm.init(3)[1]
    _, pull = jax.vjp(lambda p, x: norm.train(p, state, x)[0], params, jnp.asarray(x))
    dparams, dx = pull(jnp.asarray(dy))
    tolerances: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(dx.transpose(0, 3, 1, 2), x_torch.grad.numpy(), **tolerances)
    np.testing.assert_allclose(dparams.scale, module.weight.grad.numpy(), **tolerances)
    np.testing.assert_allclose(dparams.bias, module.bias.grad.numpy(), **tolerances)
