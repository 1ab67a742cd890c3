"""Running statistics: averages over batches, corrections and dtypes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from tests import reference
from tests.helpers import data


def run(norm, batches):
    params, state = norm.init(3)
    for x in batches:
        _, state = jax.jit(norm.train)(params, state, x)
    return state


@pytest.fixture(scope="module")
def batches():
    return [data((16, 3), seed, mean=seed) for seed in range(8)]


def test_exponential_average(batches):
    state = run(jbn.batch_norm(decay=0.8), batches)
    mean, var = np.zeros(3), np.ones(3)
    for x in batches:
        m, v, _ = reference.moments(x)
        mean, var = 0.8 * mean + 0.2 * m, 0.8 * var + 0.2 * v
    np.testing.assert_allclose(state.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(state.var, var, rtol=1e-6)
    assert state.count == 8


def test_cumulative_decay_is_the_mean_over_batches(batches):
    state = run(jbn.batch_norm(decay=jbn.cumulative_decay), batches)
    np.testing.assert_allclose(
        state.var, np.mean([reference.moments(x)[1] for x in batches], 0), rtol=1e-6
    )


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9999])
def test_corrected_decay_is_the_normalized_weighted_mean(batches, decay):
    norm = jbn.batch_norm(decay=jbn.corrected_decay(decay))
    for t in (1, 2, 8):
        weights = decay ** np.arange(t - 1, -1, -1)
        means = [reference.moments(x)[0] for x in batches[:t]]
        expected = np.average(means, 0, weights)
        np.testing.assert_allclose(run(norm, batches[:t]).mean, expected, rtol=1e-5)


def test_unbiased_running_variance(batches):
    state = run(jbn.batch_norm(decay=0.0, unbiased=True), batches[:1])
    np.testing.assert_allclose(state.var, batches[0].astype(np.float64).var(0, ddof=1), rtol=1e-6)


def test_dtypes_of_the_state_never_change():
    norm = jbn.batch_norm()
    params, state = norm.init(3)
    for dtype in (jnp.bfloat16, jnp.float32):
        new = jax.eval_shape(norm.train, params, state, jnp.ones((4, 3), dtype))[1]
        chex.assert_trees_all_equal_dtypes(state, new)


@pytest.mark.usefixtures("x64")
def test_float64_batches_leave_a_float32_state_float32():
    norm = jbn.batch_norm(decay=0.9)
    params, state = norm.init(3)
    _, new = norm.train(params, state, data((8, 3), dtype=np.float64))
    assert new.mean.dtype == new.var.dtype == jnp.float32


def test_micro_batches_can_update_the_state_like_the_whole_batch():
    x = data((4, 16, 3), mean=5)
    norm = jbn.batch_norm(decay=0.9)
    params, state = norm.init(3)
    # With decay 0 the next state holds the statistics of the micro-batch.
    micro = jbn.batch_norm(decay=0.0)
    merged = jbn.Moments(jnp.zeros(3), jnp.zeros(3), jnp.float32(0), jnp.float32(0))
    for part in x:
        _, (mean, var, _) = micro.train(params, state, part)
        merged = jbn.merge(merged, jbn.Moments(mean, var, jnp.float32(16), jnp.float32(16)))
    _, whole = norm.train(params, state, x.reshape(64, 3))
    chex.assert_trees_all_close(jbn.update(state, merged, 0.9), whole, rtol=1e-6, strict=True)


def test_a_count_given_as_an_integer_is_welcome():
    batch = jbn.Moments(jnp.ones(3), jnp.ones(3), jnp.int32(5), jnp.int32(5))
    state = jbn.update(jbn.batch_norm().init(3)[1], batch, 0.5, unbiased=True)
    np.testing.assert_allclose(state.var, 0.5 + 0.5 * 5 / 4, rtol=1e-6)
