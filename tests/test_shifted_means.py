"""The forms of the means for all platforms, run on the CPU. All are equally exact."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
import jbn.testing
from jbn._core.layout import Layout
from jbn._core.shifted_means import shifted_means
from tests import reference
from tests.helpers import data

on_each_platform = pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"], indirect=True)
in_two_passes = pytest.mark.parametrize("platform", ["cpu", "tpu"], indirect=True)


def shift_of(x):
    return shifted_means(x, Layout.of(x, -1), jnp.asarray(len(x), jnp.float32)).shift


@on_each_platform
@pytest.mark.parametrize("mean", [0, 2.8, 3.2, 100, 1e4])
@pytest.mark.parametrize("masked", [False, True])
def test_moments_at_any_offset(mean, masked, platform):
    x = data((5000, 3), mean=mean)
    mask = np.arange(5000) % 3 > 0 if masked else None
    batch = jax.jit(lambda x: jbn.moments(x, mask=mask))(x)
    wanted = reference.moments(x, mask=mask)
    np.testing.assert_allclose(batch.var, wanted[1], rtol=5e-6)
    np.testing.assert_allclose(batch.mean, wanted[0], rtol=1e-6, atol=1e-6)


@in_two_passes
def test_a_second_pass_only_where_a_mean_is_far_from_zero(platform):
    for mean, is_far in ((2.8, False), (3.2, True)):
        x = data((5000, 3), mean=mean)
        x[:, 1:] -= mean  # One feature with a mean far from zero is enough.
        shift = jax.jit(shift_of)(x)
        assert (shift != 0).all() == is_far


@in_two_passes
def test_members_of_a_vmap_are_far_together(platform):
    x = np.stack([data((500, 3), mean=mean) for mean in (0, 10)])
    shift = jax.jit(jax.vmap(shift_of))
    np.testing.assert_array_equal(shift(x - x), 0)
    assert (shift(x) != 0).all()
    assert " conditional(" in (shift.lower(x).compile().as_text() or "")


@on_each_platform
def test_squares_that_overflow_where_squared_deviations_do_not(platform):
    x = 1e16 * data((100, 2), mean=1000)
    assert jnp.isinf(jnp.sum(x * x, 0)).all()
    batch = jax.jit(jbn.moments)(x)
    mean, var, _ = reference.moments(x)
    np.testing.assert_allclose(batch.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(batch.var, var, rtol=1e-5)


@on_each_platform
@pytest.mark.parametrize("spread", [None, AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("width", [16, 7, pytest.param(24, marks=pytest.mark.slow)])
def test_images(width, spread, platform):
    x, mask = data((4, 6, width, 3), mean=1000), data((4, 6, width), 1) > 0
    wanted = reference.moments(x, mask=mask)
    mesh = jax.make_mesh((1 if width % 8 else 8,), ("d",), (spread or AxisType.Auto,))
    if spread:  # The spread is along the axis that is cut into slices.
        x, mask = jax.device_put((x, mask), NamedSharding(mesh, P(None, None, "d")))
    with jax.set_mesh(mesh):
        batch = jax.jit(lambda x, mask: jbn.moments(x, mask=mask))(x, mask)
    np.testing.assert_allclose(batch.var, wanted[1], rtol=1e-5)
    np.testing.assert_allclose(batch.mean, wanted[0], rtol=1e-6)


SMALL, HUGE = [0, 1e4, 1e25], [1e30, 3e38, -1e37]


@pytest.mark.parametrize(
    ("value", "platform"),
    [*itertools.product(SMALL, ["cpu", "gpu", "tpu"]), *itertools.product(HUGE, ["cpu", "gpu"])],
    indirect=["platform"],
)
def test_constant_features(value, platform):
    batch = jax.jit(jbn.moments)(jnp.full((64, 2), value, jnp.float32))
    np.testing.assert_allclose(batch.mean, value, rtol=1e-6)
    np.testing.assert_array_equal(batch.var, 0)


@pytest.mark.parametrize("platform", ["tpu"], indirect=True)
@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("make", [jbn.batch_norm, jbn.batch_renorm, jbn.running_batch_norm])
def test_constant_features_too_large_for_a_tpu_do_not_poison_the_state(make, value, platform):
    norm = make()
    params, state = norm.init(2)
    _, new = jax.jit(norm.train)(params, state, jnp.full((63, 2), value, jnp.float32))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["gpu", "tpu"], indirect=True)
@pytest.mark.parametrize("make", [jbn.batch_norm, jbn.batch_renorm, jbn.running_batch_norm])
def test_laws(make, platform):
    jbn.testing.check_norm(make)
