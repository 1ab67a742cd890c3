"""Properties of random batches, with any shape, axes, dtype, mask, number of shards and offset."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import jbn
from tests import reference

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
DTYPES = {"float16": np.float16, "bfloat16": jnp.bfloat16, "float32": np.float32}


@st.composite
def batches(draw):
    """Draws a batch `x` with its feature axes, a mask or None, and an output gradient."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 5]), min_size=1, max_size=4)))
    axes = draw(st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True))
    axis = tuple(a - len(shape) if draw(st.booleans()) else a for a in axes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(list(DTYPES)))
    largest = 4 if dtype == "float32" else 1
    offset = draw(st.sampled_from([0.0, 1.0, -(10.0**largest)]))
    x = jnp.asarray(rng.normal(size=shape) + offset, DTYPES[dtype])
    positions = [n for a, n in enumerate(shape) if a not in axes]
    mask = rng.random(positions) < draw(st.floats(0, 1)) if draw(st.booleans()) else None
    return x, axis, mask, jnp.asarray(rng.normal(size=shape), x.dtype)


def count_of(x, axis, mask):
    return reference.moments(x, axis, mask)[2]


def hide(x, axis, mask):
    """Puts NaN where the mask is False."""
    if mask is None:
        return x
    axes = sorted(a % x.ndim for a in axis)
    return jnp.where(np.expand_dims(mask, axes), x, jnp.full((), np.nan, x.dtype))


def moments_agree_with_the_oracle(batch):
    x, axis, mask, _ = batch
    got = jbn.moments(hide(x, axis, mask), axis, mask=mask)
    mean, var, count = reference.moments(x, axis, mask)
    assert got.count == count
    # The difference of x and the shift is rounded.
    size = np.abs(np.asarray(x, np.float64)).max(initial=1)
    np.testing.assert_allclose(got.mean, mean, rtol=2e-7, atol=3e-7 * size)
    # With few values, the shift may be several standard deviations away from their mean.
    np.testing.assert_allclose(got.var, var, rtol=1e-4, atol=1e-6)


def training_agrees_with_the_oracle(batch):
    x, axis, mask, dy = batch
    if count_of(x, axis, mask) < 2:
        return
    norm = jbn.batch_norm(axis=axis, epsilon=1e-2, decay=0.0)
    params, state = norm.init(tuple(x.shape[a] for a in sorted(a % x.ndim for a in axis)))

    def run(x):
        y, new = norm.train(params, state, x, mask=mask)
        return y, new

    y, pull, new = jax.vjp(run, hide(x, axis, mask), has_aux=True)
    (dx,) = pull(dy)
    mean, var, _ = reference.moments(x, axis, mask)
    scale = np.ones(var.shape)
    expected = reference.normalize(x, mean, var, axis=axis, epsilon=1e-2)
    gradient, _, _ = reference.gradients(x, scale, dy, axis, mask, epsilon=1e-2)
    if mask is not None:
        expected = np.where(np.expand_dims(mask, sorted(a % x.ndim for a in axis)), expected, 0)
    rounding = float(jnp.finfo(x.dtype).eps)
    # The mean is rounded, and the standard deviation is at least 0.1.
    offset = 10 * 3e-7 * np.abs(mean).max(initial=1)
    # Both parts of the gradient of x are rounded to the dtype of x before they are added.
    largest = np.abs(np.asarray(dy, np.float64)).max() / np.sqrt(var.min() + 1e-2)
    for got, wanted, size in (
        (y, expected, np.abs(expected).max()),
        (dx, gradient, max(largest, np.abs(gradient).max())),
    ):
        bound = 2 * rounding * size + offset * max(1, size)
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=0, atol=bound)
    np.testing.assert_allclose(new.var, var, rtol=1e-4, atol=1e-6)


def shards_agree_with_one_device(batch_and_shards):
    batch, shards = batch_and_shards
    x, axis, mask, _ = batch
    axis = sorted(a % x.ndim for a in axis)
    # Each shard gets a copy, shifted and masked in its own way.
    x = jnp.stack([x + jnp.asarray(i, x.dtype) for i in range(shards)])
    mask = (
        np.ones([n for a, n in enumerate(x.shape[1:]) if a not in axis], bool)
        if mask is None
        else mask
    )
    masks = np.stack(
        [mask & (np.arange(mask.size).reshape(mask.shape) % shards != i) for i in range(shards)]
    )
    train = functools.partial(jbn.moments, axis=axis, axis_name="d")
    got = jax.vmap(lambda x, mask: train(x, mask=mask), axis_name="d")(x, masks)
    whole = [0, *(a + 1 for a in range(x.ndim - 1) if a not in axis)]
    axes = [a for a in range(x.ndim) if a not in whole]
    mean, var, count = reference.moments(x, axes, masks)
    assert (got.count == count).all()
    np.testing.assert_allclose(
        got.mean, np.broadcast_to(mean, got.mean.shape), rtol=3e-7, atol=2e-6
    )
    np.testing.assert_allclose(got.var, np.broadcast_to(var, got.var.shape), rtol=1e-4, atol=1e-5)


def merging_is_the_union(batch):
    x, axis, mask, _ = batch
    axes = sorted(a % x.ndim for a in axis)
    positions = [n for a, n in enumerate(x.shape) if a not in axes]
    mask = np.ones(positions, bool) if mask is None else mask
    first = np.arange(mask.size).reshape(mask.shape) % 3 == 0
    parts = [jbn.moments(x, axis, mask=m) for m in (mask & first, mask & ~first)]
    got = jbn.merge(*parts)
    mean, var, count = reference.moments(x, axis, mask)
    assert got.count == count
    size = np.abs(mean).max(initial=1)
    values = np.abs(np.asarray(x, np.float64)).max(initial=1)
    np.testing.assert_allclose(got.mean, mean, rtol=3e-7, atol=3e-7 * values)
    # The parts' means are rounded before they are subtracted.
    np.testing.assert_allclose(got.var, var, rtol=1e-4, atol=1e-6 * size)


PROPERTIES = [
    (moments_agree_with_the_oracle, batches()),
    (training_agrees_with_the_oracle, batches()),
    (shards_agree_with_one_device, st.tuples(batches(), st.integers(1, 5))),
    (merging_is_the_union, batches()),
]


@pytest.mark.parametrize(("holds", "strategy"), PROPERTIES)
@pytest.mark.parametrize("examples", [10, pytest.param(600, marks=pytest.mark.slow)])
def test_property(holds, strategy, examples):
    run = given(strategy)(holds)
    run = settings(max_examples=examples, deadline=None, suppress_health_check=SLOW)(run)
    run()
