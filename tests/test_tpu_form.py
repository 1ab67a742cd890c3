"""The sums in the form for a TPU, run on the CPU: as exact as those of other platforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
import jbn.testing
from tests import reference
from tests.helpers import data

pytestmark = pytest.mark.usefixtures("on_a_tpu")


@pytest.mark.parametrize("mean", [0, 7, 9, 100, 1e4])
@pytest.mark.parametrize("masked", [False, True])
def test_moments_at_any_offset(mean, masked):
    x = data((5000, 3), mean=mean)
    mask = np.arange(5000) % 3 > 0 if masked else None
    batch = jax.jit(lambda x: jbn.moments(x, mask=mask))(x)
    wanted = reference.moments(x, mask=mask)
    np.testing.assert_allclose(batch.var, wanted[1], rtol=1e-5)
    np.testing.assert_allclose(batch.mean, wanted[0], rtol=1e-6, atol=1e-6)


def test_a_second_pass_only_where_a_mean_is_far_from_zero():
    f = jax.jit(jbn.moments)
    for mean, shifted in ((7, False), (9, True)):
        x = data((5000, 3), mean=mean)
        x[:, 1:] -= mean  # One feature is enough.
        plain = jnp.sum(x, 0) / len(x)
        assert (f(x).mean[0] != plain[0]) == shifted


@pytest.mark.parametrize("spread", [None, AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("width", [16, 24, 7])
def test_images(width, spread):
    x, mask = data((4, 6, width, 3), mean=1000), data((4, 6, width), 1) > 0
    wanted = reference.moments(x, mask=mask)
    mesh = jax.make_mesh((1 if width % 8 else 8,), ("d",), (spread or AxisType.Auto,))
    if spread:  # Over the axis that is cut into slices.
        x, mask = jax.device_put((x, mask), NamedSharding(mesh, P(None, None, "d")))
    with jax.set_mesh(mesh):
        batch = jax.jit(lambda x, mask: jbn.moments(x, mask=mask))(x, mask)
    np.testing.assert_allclose(batch.var, wanted[1], rtol=1e-5)
    np.testing.assert_allclose(batch.mean, wanted[0], rtol=1e-6)


@pytest.mark.parametrize("value", [0, 1e4, 1e25])
def test_constant_features(value):
    batch = jax.jit(jbn.moments)(jnp.full((64, 2), value, jnp.float32))
    np.testing.assert_allclose(batch.mean, value, rtol=1e-6)
    np.testing.assert_array_equal(batch.var, 0)


@pytest.mark.slow
@pytest.mark.parametrize("make", [jbn.batch_norm, jbn.batch_renorm, jbn.running_batch_norm])
def test_laws(make):
    jbn.testing.check_norm(make)
