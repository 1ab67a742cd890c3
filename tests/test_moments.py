"""Moments of batches with and without masks, compared with the oracle, and their merging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jbn
from tests import reference
from tests.helpers import data


@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), (-1, 1), (0, 1, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_every_feature_axis_agrees_with_the_oracle(axis, masked):
    x = data((4, 5, 6), mean=3)
    others = [a for a in range(3) if a not in {b % 3 for b in np.atleast_1d(axis)}]
    mask = data([x.shape[a] for a in others], 1) > -0.5 if masked else None
    batch = jax.jit(lambda x: jbn.moments(x, axis, mask=mask))(x)
    mean, var, count = reference.moments(x, axis, mask)
    np.testing.assert_allclose(batch.mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(batch.var, var, rtol=3e-6, atol=1e-7)
    assert batch.count == count


@pytest.mark.parametrize("offset", [0, 1, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [2, 100, 100_000])
def test_variance_is_exact_at_any_offset(offset, masked, n):
    x = data((n, 3), n, offset)
    mask = np.arange(n) % 3 != 0 if masked and n > 2 else None
    batch = jax.jit(lambda x: jbn.moments(x, mask=mask))(x)
    mean, var, _ = reference.moments(x, mask=mask)
    np.testing.assert_allclose(batch.var, var, rtol=1e-5)
    np.testing.assert_allclose(batch.mean, mean, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_narrow_inputs_are_summed_in_float32(dtype):
    x = jnp.asarray(data((5000, 4), mean=10)).astype(dtype)
    batch = jbn.moments(x)
    mean, var, _ = reference.moments(x)
    assert batch.mean.dtype == batch.var.dtype == jnp.float32
    np.testing.assert_allclose(batch.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(batch.var, var, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_float64_input_gives_float64_moments():
    x = data((50, 4), mean=1e4, dtype=np.float64)
    mean, var, _ = reference.moments(x)
    batch = jbn.moments(x)
    assert batch.var.dtype == jnp.float64
    np.testing.assert_allclose(batch.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(batch.var, var, rtol=1e-12)


def test_what_the_mask_hides_reaches_neither_values_nor_gradients():
    x = data((6, 3))
    mask = np.arange(6) < 4
    x[4:] = np.nan

    def loss(x):
        batch = jbn.moments(x, mask=mask)
        return jnp.sum(batch.mean * 2 + batch.var)

    value, grad = jax.value_and_grad(loss)(jnp.asarray(x))
    mean, var, _ = reference.moments(x[:4])
    np.testing.assert_allclose(value, np.sum(mean * 2 + var), rtol=1e-6)
    np.testing.assert_array_equal(grad[4:], 0)
    assert np.isfinite(grad).all()


def test_nothing_valid_gives_zeros():
    batch = jbn.moments(jnp.full((4, 2), jnp.nan), mask=jnp.zeros(4, bool))
    np.testing.assert_array_equal(jnp.stack([*batch[:2]]), 0)
    assert batch.count == 0


@pytest.mark.usefixtures("x64")
def test_derivatives_of_both_modes_and_second_order_agree_with_finite_differences():
    x = jnp.asarray(data((5, 2), dtype=np.float64))
    mask = jnp.array([True, True, False, True, True])

    def f(x):
        batch = jbn.moments(x, mask=mask)
        return jnp.sin(batch.mean) * batch.var

    check_grads(f, (x,), order=2, modes=["fwd", "rev"], rtol=1e-5, atol=1e-6)


def test_merge_is_the_moments_of_the_union_in_any_order():
    x = data((60, 3), mean=100)
    whole = jbn.moments(x)
    a, b, c = (jbn.moments(part) for part in (x[:7], x[7:30], x[30:]))
    empty = jbn.moments(x, mask=np.zeros(60, bool))
    orders = [
        jbn.merge(jbn.merge(a, b), c),
        jbn.merge(c, jbn.merge(b, a)),
        jbn.merge(empty, jbn.merge(a, jbn.merge(b, c))),
        jbn.merge(jbn.merge(jbn.merge(a, b), c), empty),
    ]
    for merged in orders:
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-6)
        np.testing.assert_allclose(merged.var, whole.var, rtol=1e-5)
        assert merged.count == 60


def test_merging_two_empty_batches_is_finite():
    empty = jbn.moments(jnp.zeros((2, 3)), mask=jnp.zeros(2, bool))
    assert all(np.isfinite(leaf).all() for leaf in jbn.merge(empty, empty))


def test_counts_beyond_float32(x64):
    count = jax.jit(lambda: jbn.moments(jnp.zeros((2**24 + 1, 1), jnp.float64)).count)()
    assert count == 2**24 + 1
