"""For data far from 0, statistics, outputs and gradients are as exact as float32 allows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from tests import reference
from tests.helpers import data, eight_shards, sharded_step, step

OFFSETS = [0, 1, 10, 100, 1e3, 1e4]


def first_step(x, dy, mask=None):
    norm = jbn.batch_norm(decay=0.0)
    return step(norm, *norm.init(x.shape[-1]), x, dy, mask)


def assert_exact(got, x, dy, mask=None):
    y, new, (_, dx) = got
    mean, var, _ = reference.moments(x, mask=mask)
    valid = np.ones(len(x), bool) if mask is None else mask
    np.testing.assert_allclose(new.var, var, rtol=1e-5)
    # The bound allows for the rounding of the mean to float32.
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
    assert_exact(first_step(x, dy, mask), x, dy, mask)


@pytest.mark.parametrize(
    ("offset", "platform"),
    [*((offset, "cpu") for offset in OFFSETS), (1e4, "gpu"), (1e4, "tpu")],
    indirect=["platform"],
)
def test_eight_shards(offset, platform):
    x, dy = data((4096, 4), 0, offset), data((4096, 4), 1)
    # The first of the shards has no valid rows.
    mask = np.arange(4096) % 512 < np.repeat(np.arange(0, 512, 64), 512)
    norm = jbn.batch_norm(decay=0.0, axis_name="d")
    got = jax.jit(sharded_step(norm, eight_shards()))(*norm.init(4), x, dy, mask)
    assert_exact(got, x, dy, mask)


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
    y, new, (_, dx) = first_step(x, np.ones_like(x))
    mean, var, _ = reference.moments(x)
    np.testing.assert_allclose(new.var, var, rtol=1e-5)
    assert np.isfinite(dx).all()
    # The error of the rounded mean is up to 5e-7, and the std with epsilon is 3e-3.
    np.testing.assert_allclose(y, reference.normalize(x, mean, var), rtol=1e-5, atol=2e-4)


def test_constant_features_give_the_bias():
    x = np.full((64, 3), 1e6, np.float32)
    y, new, (_, dx) = first_step(x, np.ones_like(x))
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


def _with_an_outlier(x, at):
    x[at] += np.sqrt(len(x))
    return x


def _with_a_border(x):
    """Returns images of 25 x 40 with 4 rows and columns of zeros on each side."""
    images = x.reshape(-1, 25, 40, 1)
    inside = np.pad(np.ones((17, 32)), 4)[..., None]
    return (images * inside).reshape(-1, 1).astype(np.float32)


HARD = {
    "first": functools.partial(_with_an_outlier, at=0),
    "middle": functools.partial(_with_an_outlier, at=500_000),
    "last": functools.partial(_with_an_outlier, at=-1),
    "sorted": functools.partial(np.sort, axis=0),
    "border": _with_a_border,
    "two blocks": lambda x: np.concatenate([np.zeros_like(x[::2]), 1 + x[::2]]),
}


@pytest.mark.parametrize("change", HARD.values(), ids=HARD)
@pytest.mark.parametrize(
    ("offset", "platform"),
    [(0, "cpu"), (1e4, "cpu"), (0, "gpu"), (1e4, "gpu"), (0, "tpu")],
    indirect=["platform"],
)
def test_data_whose_first_elements_are_unlike_the_others(change, offset, platform):
    x = change(data((1_000_000, 1), 0, offset))
    batch = jax.jit(lambda x: jbn.moments(x.reshape(-1, 25, 40, 1)))(x)
    np.testing.assert_allclose(batch.var, reference.moments(x)[1], rtol=1e-5)


@pytest.mark.parametrize("valid", [2, 3, 1000])
def test_rare_valid_values_far_from_0(valid):
    x, mask = data((200_000, 2), 0, 1e4), np.zeros(200_000, bool)
    mask[np.random.default_rng(1).choice(len(mask), valid, replace=False)] = True
    batch = jax.jit(lambda x, mask: jbn.moments(x, mask=mask))(x, mask)
    np.testing.assert_allclose(batch.var, reference.moments(x, mask=mask)[1], rtol=1e-5)
