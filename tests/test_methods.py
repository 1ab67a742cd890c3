"""Renorm, running, frozen and domain norms, compared with formulas, properties and Keras."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbn
from tests import reference
from tests.helpers import data
from tests.peers import ask


def batches(count, shape=(16, 2, 3)):
    return [data(shape, seed, mean=seed, dtype=np.float32) for seed in range(count)]


assert_same = functools.partial(chex.assert_trees_all_equal, strict=True)


def test_renorm_without_limits_is_inference():
    norm = jbn.batch_renorm(r_max=np.inf, d_max=np.inf, decay=0.7)
    params, state = norm.init(3)
    for x in batches(4):
        y, new = norm.train(params, state, x)
        np.testing.assert_allclose(y, norm.infer(params, state, x), rtol=1e-5, atol=2e-6)
        state = new


def test_renorm_with_the_tightest_limits_is_batch_norm():
    renorm, batch = jbn.batch_renorm(r_max=1, d_max=0), jbn.batch_norm()
    params, state = batch.init(3)
    for x in batches(2):
        y, new = renorm.train(params, state, x)
        expected, state = batch.train(params, state, x)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
        assert_same(new, state)


@pytest.mark.usefixtures("x64")
def test_renorm_agrees_with_the_formulas_and_keeps_the_gradients_projection():
    r_max, d_max, epsilon = 1.2, 0.5, 1e-5
    norm = jbn.batch_renorm(r_max=r_max, d_max=d_max, epsilon=epsilon)
    params, state = norm.init(3)
    running_mean, running_var = np.array([0.1, -0.4, 2.0]), np.array([1.1, 3.0, 0.2])
    state = state._replace(mean=jnp.asarray(running_mean), var=jnp.asarray(running_var))
    x, dy = data((8, 2, 3), 0, 0.5, np.float64), data((8, 2, 3), 1, dtype=np.float64)
    y, pull = jax.vjp(lambda x: norm.train(params, state, x)[0], jnp.asarray(x))
    mean, var, _ = reference.moments(x)
    std, running_std = np.sqrt(var + epsilon), np.sqrt(running_var + epsilon)
    r = np.clip(std / running_std, 1 / r_max, r_max)
    d = np.clip((mean - running_mean) / running_std, -d_max, d_max)
    np.testing.assert_allclose(y, (x - mean) / std * r + d, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        pull(jnp.asarray(dy))[0], reference.gradients(x, r, dy)[0], rtol=1e-10, atol=1e-12
    )


def test_renorm_limits_are_schedules_of_the_update_count():
    limits: dict[str, Any] = {
        "r_max": optax.linear_schedule(1, 3, 2),
        "d_max": optax.linear_schedule(0, 5, 2),
    }
    scheduled, batch = jbn.batch_renorm(**limits), jbn.batch_norm()
    params, state = batch.init(3)
    steps = [jbn.batch_renorm(r_max=r, d_max=d) for r, d in ((1, 0), (2, 2.5), (3, 5), (3, 5))]
    for x, step in zip(batches(4), steps, strict=True):
        y, _ = jax.jit(scheduled.train)(params, state, x)
        expected, state = jax.jit(step.train)(params, state, x)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def renorm_steps(keras, xs):
    layer = keras.layers.BatchNormalization(
        renorm=True,
        renorm_clipping={"rmin": 1 / 1.5, "rmax": 1.5, "dmax": 0.8},
        renorm_momentum=0.9,
        momentum=0.9,
        epsilon=1e-5,
    )
    layer.build(xs[0].shape)
    steps = []
    with jax.numpy_dtype_promotion("standard"):
        for x in xs:
            before = layer.renorm_mean.value, layer.renorm_stddev.value
            y = layer(x, training=True)
            steps.append((*before, y, layer.renorm_mean.value))
    return steps


def test_renorm_agrees_with_keras():
    """Keras averages standard deviations, jbn variances. So each step starts from Keras's state."""
    norm = jbn.batch_renorm(r_max=1.5, d_max=0.8, decay=0.9, epsilon=1e-5)
    params, state = norm.init(3)
    xs = batches(5, (8, 2, 3))
    for x, (mean, std, y, new_mean) in zip(xs, ask("keras", renorm_steps, xs), strict=True):
        state = state._replace(mean=jnp.asarray(mean), var=jnp.asarray(std) ** 2 - 1e-5)
        ours, state = norm.train(params, state, x)
        np.testing.assert_allclose(ours, y, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(state.mean, new_mean, rtol=1e-5, atol=1e-6)


def test_first_running_step_is_batch_norm():
    running, batch = jbn.running_batch_norm(), jbn.batch_norm(decay=0)
    (params, state), (_, plain) = running.init(3), batch.init(3)
    x = data((32, 2, 3), 0, 3)
    y, state = running.train(params, state, x)
    expected, plain = batch.train(params, plain, x)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state.mean, plain.mean, rtol=1e-6)
    np.testing.assert_allclose(state.var, plain.var, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_running_agrees_with_sums_and_sums_of_squares(size):
    norm = jbn.running_batch_norm(decay=0.9)
    params, state = norm.init(3)
    sums = np.zeros((3, 3))
    for x in batches(30, (size, 4, 3)):
        y, state = norm.train(params, state, x)
        rows = x.astype(np.float64).reshape(-1, 3)
        m = 1 - 0.9 / np.sqrt(max(size - 1, 1))
        now = np.stack([rows.sum(0), (rows**2).sum(0), np.full(3, len(rows))])
        sums = (1 - m) * sums + m * now
        mean = sums[0] / sums[2]
        var = sums[1] / sums[2] - mean**2
        if state.examples < 20:
            var = np.maximum(var, 0.01)
        np.testing.assert_allclose(y, reference.normalize(x, mean, var), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(norm.infer(params, state, x), y, rtol=1e-6, atol=1e-6)


def test_running_takes_single_values_and_floors_young_variances():
    norm = jbn.running_batch_norm()
    params, state = norm.init(3)
    y, state = norm.train(params, state, np.full((1, 3), 7, np.float32))
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(
        norm.infer(params, state, np.full((1, 3), 7.1, np.float32)), 0.1 / np.sqrt(0.01001), 1e-3
    )


def test_groups_move_the_running_statistics_as_if_one_after_the_other():
    grouped, single = jbn.running_batch_norm(group_size=2), jbn.running_batch_norm()
    params, state = single.init(3)
    state = one = single.train(params, state, data((2, 4, 3), 0))[1]
    x = data((2, 4, 3), 1, 3)
    _, state = grouped.train(params, state, np.tile(x, (5, 1, 1)))
    for _ in range(5):
        _, one = single.train(params, one, x)
    for field in ("mean", "var", "weight"):
        np.testing.assert_allclose(getattr(state, field), getattr(one, field), rtol=2e-6)


@pytest.mark.parametrize("use_running", [False, True])
@pytest.mark.parametrize("update", [False, True])
def test_frozen_as_two_choices(use_running, update):
    norm = jbn.batch_norm()
    params, state = norm.init(3)
    x = data((8, 3), 0, 2)
    y, new = jbn.frozen(norm, use_running=use_running, update=update).train(params, state, x)
    trained, moved = norm.train(params, state, x)
    assert_same(y, norm.infer(params, state, x) if use_running else trained)
    assert_same(new, moved if update else state)


@pytest.mark.parametrize("masked", [False, True])
def test_domains_of_examples_are_batches_of_their_own(masked):
    norm = jbn.batch_norm(decay=0.5)
    domains = jbn.domain_norm(norm, 3)
    params, state = domains.init(3)
    x = data((12, 2, 3), 0, 4)
    domain = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1])[:, None]
    mask = data((12, 2), 1) > -0.5 if masked else None
    y, new = jax.jit(domains.train)(params, state, x, domain, mask=mask)
    inferred = domains.infer(params, new, x, domain, mask=mask)
    for i in range(2):
        rows = domain[:, 0] == i
        valid = None if mask is None else mask[rows]
        own = jax.tree.map(lambda a, i=i: a[i], state)
        expected, moved = norm.train(params, own, x[rows], mask=valid)
        np.testing.assert_allclose(y[rows], expected, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], new), moved, rtol=1e-6)
        np.testing.assert_allclose(
            inferred[rows], norm.infer(params, moved, x[rows], mask=valid), rtol=1e-5, atol=1e-6
        )
    assert_same(jax.tree.map(lambda a: a[2], new), jax.tree.map(lambda a: a[2], state))


def test_one_domain_for_all_of_a_batch():
    norm = jbn.batch_renorm()
    domains = jbn.domain_norm(norm, 2)
    params, state = domains.init(3)
    x = data((12, 3), 0, 4)
    y, new = jax.jit(domains.train)(params, state, x, jnp.int32(1))
    expected, moved = norm.train(params, norm.init(3)[1], x)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    first, second = (jax.tree.map(lambda a, i=i: a[i], new) for i in range(2))
    assert_same(first, norm.init(3)[1])
    chex.assert_trees_all_close(second, moved, rtol=1e-6, strict=True)


@pytest.mark.parametrize(
    ("error", "make", "words"),
    [
        (ValueError, lambda: jbn.batch_renorm(r_max=0.5), "r_max=0.5 must be at least 1"),
        (ValueError, lambda: jbn.batch_renorm(d_max=-1), "d_max=-1 must be at least 0"),
        (ValueError, lambda: jbn.running_batch_norm(decay=2), "decay=2"),
        (ValueError, lambda: jbn.domain_norm(jbn.batch_norm(), 0), "num_domains=0"),
        (TypeError, lambda: jbn.batch_renorm(colour=1), "colour"),  # pyright: ignore[reportCallIssue]
    ],
)
def test_errors_of_factories(error, make, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(("domain", "error"), [(2, ValueError), (np.float32(1), TypeError)])
def test_errors_of_domains(domain, error):
    domains = jbn.domain_norm(jbn.batch_norm(), 2)
    with pytest.raises(error, match="domain"):
        domains.train(*domains.init(3), data((4, 3)), domain)
