"""Data far from 0: statistics, outputs and gradients as good as float32 can hold them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jbn
from tests import reference
from tests.test_moments import data

OFFSETS = [0, 1, 10, 100, 1e3, 1e4]


def step(norm, x, dy, mask=None):
    """Output, gradient of x and the next state, from the first training step on."""
    params, state = norm.init(x.shape[-1])

    def run(x):
        y, new = norm.train(params, state, x, mask=mask)
        return y, new

    y, pull, new = jax.vjp(run, jnp.asarray(x), has_aux=True)
    return y, pull(jnp.asarray(dy))[0], new


def assert_exact(got, x, dy, mask=None):
    y, dx, new = got
    mean, var, _ = reference.moments(x, mask=mask)
    valid = np.ones(len(x), bool) if mask is None else mask
    np.testing.assert_allclose(new.var, var, rtol=1e-5)
    # What rounding the mean itself to float32 brings.
    bound = 3e-7 * np.maximum(10, np.abs(mean) / np.sqrt(var)).max()
    expected = reference.normalize(x, mean, var)
    np.testing.assert_allclose(np.asarray(y)[valid], expected[valid], rtol=0, atol=bound)
    gradient = reference.gradients(x, np.ones(x.shape[-1]), dy, mask=mask)[0]
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(dx, gradient, rtol=0, atol=bound * scale)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("masked", [False, True])
def test_one_device(offset, masked):
    x, dy = data((3000, 4), 0, offset), data((3000, 4), 1)
    mask = np.arange(3000) % 7 > 2 if masked else None
    norm = jbn.batch_norm(decay=0.0)
    assert_exact(jax.jit(lambda x: step(norm, x, dy, mask))(x), x, dy, mask)


@pytest.mark.parametrize("offset", OFFSETS)
def test_eight_shards(offset):
    x, dy = data((4096, 4), 0, offset), data((4096, 4), 1)
    mask = np.arange(4096) % 512 < np.repeat(np.arange(0, 512, 64), 512)  # One shard has nothing.
    norm = jbn.batch_norm(decay=0.0, axis_name="d")
    f = jax.shard_map(
        lambda x, dy, mask: step(norm, x, dy, mask),
        mesh=jax.make_mesh((8,), ("d",), (AxisType.Auto,)),
        in_specs=P("d"),
        out_specs=(P("d"), P("d"), P()),
    )
    assert_exact(jax.jit(f)(x, dy, mask), x, dy, mask)


@pytest.mark.parametrize("offset", [0, 1e4])
def test_ten_million_values(offset):
    x = data((10_000_000, 1), 0, offset)
    batch = jax.jit(jbn.moments)(x)
    mean, var, _ = reference.moments(x)
    np.testing.assert_allclose(batch.var, var, rtol=1e-5)
    np.testing.assert_allclose(batch.mean, mean, rtol=1e-7, atol=1e-6)


def test_one_value_has_its_own_mean_and_no_variance():
    batch = jbn.moments(jnp.array([[1e4, -3.0]]))
    np.testing.assert_array_equal(batch.mean, [1e4, -3.0])
    np.testing.assert_array_equal(batch.var, 0)


def test_nearly_constant_features():
    x = (13 + 1e-4 * data((4096, 3))).astype(np.float32)
    norm = jbn.batch_norm(decay=0.0)
    y, dx, new = jax.jit(lambda x: step(norm, x, jnp.ones_like(x)))(x)
    mean, var, _ = reference.moments(x)
    np.testing.assert_allclose(new.var, var, rtol=1e-5)
    assert np.isfinite(dx).all()
    # The rounded mean is off by up to 5e-7, the standard deviation with epsilon is 3e-3.
    np.testing.assert_allclose(y, reference.normalize(x, mean, var), rtol=1e-5, atol=2e-4)


def test_constant_features_give_the_bias():
    norm = jbn.batch_norm(decay=0.0)
    y, dx, new = jax.jit(lambda x: step(norm, x, jnp.ones_like(x)))(
        np.full((64, 3), 1e6, np.float32)
    )
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(new.var, 0)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("offset", OFFSETS[:4])
def test_bfloat16_statistics_are_those_of_the_rounded_values(offset):
    x = jnp.asarray(data((3000, 4), 0, offset)).astype(jnp.bfloat16)
    batch = jax.jit(jbn.moments)(x)
    mean, var, _ = reference.moments(np.asarray(x))
    np.testing.assert_allclose(batch.mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(batch.var, var, rtol=1e-5)
