"""In-place norms, compared with batch norm and the activation, and the arrays that they keep."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import jbn.linen
import jbn.nnx
import jbn.testing
from jbn import activations
from tests import reference
from tests.helpers import (
    DY,
    MASK,
    X,
    data,
    eight_shards,
    every_law,
    sharded_step,
    slow_but_for,
    step,
)

ACTIVATIONS = {
    "identity": (activations.identity(), lambda z: z),
    "leaky_relu": (activations.leaky_relu(0.2), lambda z: jax.nn.leaky_relu(z, 0.2)),
    "elu": (activations.elu(), jax.nn.elu),
}


class Followed(NamedTuple):
    """Batch norm and then the activation, as two functions."""

    norm: jbn.Norm
    activation: Callable[[jax.Array], jax.Array]

    def init(self, features):
        return self.norm.init(features)

    def train(self, params, state, x, *, mask=None):
        y, state = self.norm.train(params, state, x, mask=mask)
        return self.activation(y), state

    def infer(self, params, state, x, *, mask=None):
        return self.activation(self.norm.infer(params, state, x, mask=mask))


def pair(name, **options):
    """Returns an in-place norm, and the norm that it must equal."""
    inverse, plain = ACTIVATIONS[name]
    return (
        jbn.inplace_batch_norm(activation=inverse, **options),
        Followed(jbn.batch_norm(**options), plain),
    )


def params_of(features=3, dtype: Any = np.float32):
    scale, bias = np.linspace(-1.5, 2, features), np.linspace(-1, 0.7, features)
    return jbn.BatchNormParams(jnp.asarray(scale, dtype), jnp.asarray(bias, dtype))


def assert_close(got, wanted, tolerance):
    chex.assert_trees_all_close(got, wanted, rtol=tolerance, atol=tolerance, strict=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axis", slow_but_for([-1], [-1, 1]))
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.usefixtures("x64")
def test_values_state_and_gradients_to_twelve_digits(name, axis, masked):
    shape = (6, 3, 5) if axis == 1 else (6, 5, 3)
    x, dy = (jnp.asarray(data(shape, seed, 2, np.float64)) for seed in (0, 1))
    mask = data((6, 5), 2) > -0.5 if masked else None
    norm, wanted = pair(name, axis=axis)
    params, state = params_of(dtype=np.float64), norm.init(3)[1]
    # Where elu is flat, a logarithm recovers its input from y, which loses digits.
    got, expected = (step(n, params, state, x, dy, mask) for n in (norm, wanted))
    assert_close(got, expected, 1e-10)
    state = got[1]
    assert_close(norm.infer(params, state, x), wanted.infer(params, state, x), 1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.usefixtures("x64")
def test_gradient_agrees_with_the_oracle(name):
    inverse, _ = ACTIVATIONS[name]
    x, dy = data((40, 3), 0, 5, np.float64), data((40, 3), 1, dtype=np.float64)
    norm = jbn.inplace_batch_norm(activation=inverse)
    params, state = params_of(dtype=np.float64), norm.init(3)[1]
    _, _, (dparams, dx) = step(norm, params, state, jnp.asarray(x), jnp.asarray(dy))
    mean, var, _ = reference.moments(x)
    z = reference.normalize(x, mean, var, *params)
    slope = {
        "identity": 1,
        "leaky_relu": np.where(z >= 0, 1, 0.2),
        "elu": np.where(z > 0, 1, np.exp(z)),
    }[name]
    wanted = reference.gradients(x, params.scale, dy * slope)
    for a, b in zip((dx, *dparams), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@every_law
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_laws(name, law):
    if law == "starts_as_the_affine_map" and name != "identity":
        pytest.skip("the activation follows the affine map")
    inverse, _ = ACTIVATIONS[name]
    jbn.testing.LAWS[law](lambda **options: jbn.inplace_batch_norm(activation=inverse, **options))


@pytest.mark.parametrize("check_vma", [False, True])
def test_eight_shards(check_vma):
    norm, _ = pair("leaky_relu", axis_name="d")
    _, wanted = pair("leaky_relu")
    arguments = params_of(), norm.init(3)[1], X, DY, MASK
    sharded = sharded_step(norm, eight_shards(), check_vma)
    assert_close(jax.jit(sharded)(*arguments), step(wanted, *arguments), 3e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_reverse_mode_keeps_the_output_and_vectors(dtype):
    norm = jbn.inplace_batch_norm()
    params, state = norm.init(8)
    x = jnp.ones((16, 10, 10, 8), dtype)

    @jax.jit
    def pullback(params, x):
        y, pull = jax.vjp(lambda p, x: norm.train(p, state, x * 2)[0], params, x)
        return y, pull

    y, pull = pullback(params, x)
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(pull)]
    assert sizes.count(y.nbytes) == 1
    assert y.nbytes <= sum(sizes) <= y.nbytes + 10 * 8 * 4 + 64


@pytest.mark.parametrize(("scale", "bound"), [(1.0, 0.0025), (0.1, 0.006), (0.01, 0.055)])
@pytest.mark.parametrize("name", slow_but_for(["leaky_relu"], ACTIVATIONS))
def test_bfloat16_gradients_are_as_near_those_of_float32_as_stated(name, scale, bound):
    norm, wanted = pair(name)
    params, state = jbn.BatchNormParams(jnp.full(64, scale), jnp.full(64, 0.5)), norm.init(64)[1]
    x, dy = (jnp.asarray(data((8192, 64), seed)).astype(jnp.bfloat16) for seed in (0, 1))
    dy = dy + x / 2  # With this, all terms of the gradient matter.
    dx = step(norm, params, state, x, dy)[2][1].astype(jnp.float32)
    wide = (a.astype(jnp.float32) for a in (x, dy))
    exact = step(wanted, params, state, *wide)[2][1]
    assert 0 < jnp.linalg.norm(dx - exact) / jnp.linalg.norm(exact) < bound


def test_small_scales_are_raised_and_can_grow():
    norm, wanted = pair("leaky_relu")
    x, dy = data((64, 3)), data((64, 3), 1)
    bias = jnp.ones(3)
    small = jbn.BatchNormParams(jnp.array([0.0, 1e-3, -1e-3]), bias)
    raised = jbn.BatchNormParams(jnp.array([0.01, 0.01, -0.01]), bias)
    state = norm.init(3)[1]
    got = step(norm, small, state, x, dy)
    assert_close(got, step(norm, raised, state, x, dy), 1e-6)
    assert_close(got, step(wanted, raised, state, x, dy), 1e-4)
    assert np.all(np.asarray(got[2][0].scale) != 0)
    assert_close(norm.infer(small, state, x), wanted.infer(raised, state, x), 1e-6)


def test_in_the_modules_of_flax():
    norm, wanted = pair("elu")
    x = data((16, 3))
    expected, _ = wanted.train(*wanted.init(3), x)
    linen = jbn.linen.Norm(norm)
    variables = linen.init(jax.random.key(0), x, True)
    y, _ = linen.apply(variables, x, False, mutable=["batch_stats"])
    assert_close(y, expected, 1e-6)
    assert_close(jbn.nnx.Norm(norm, 3)(x), expected, 1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: activations.leaky_relu(0.0), "negative_slope=0.0"),
        (lambda: activations.elu(-1.0), "alpha=-1.0"),
        (lambda: jbn.inplace_batch_norm(decay=2), "decay=2"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_hessian_by_hand(x64):
    """The first row of the Hessian of sum(y^3) at x of 0, 1 and 3 is computed by hand."""
    norm = jbn.inplace_batch_norm(activation=jbn.activations.identity())
    params, state = norm.init(1)
    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(norm.train(params, state, x)[0] ** 3)))
    row = hessian(jnp.array([[0.0], [1.0], [3.0]]))[0, 0, :, 0]
    np.testing.assert_allclose(row, [0.126, 0.473, -0.600], atol=1e-3)
