"""Edge cases: empty batches, huge values, single values, and scales of 0."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec as P

import jbn
from tests.helpers import data, eight_shards, step

NORMS = [
    jbn.batch_norm(),
    jbn.ghost_batch_norm(group_size=4),
    jbn.inplace_batch_norm(),
    jbn.batch_renorm(),
    jbn.running_batch_norm(),
    jbn.frozen(jbn.batch_norm()),
]
every_norm = pytest.mark.parametrize("norm", NORMS, ids=str)


@every_norm
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 3, 4), (4, 0), (4, 3, 0)])
def test_an_x_without_elements(norm, shape, masked):
    """Such an x gives a y without elements, the old state and finite gradients."""
    params, state = norm.init(shape[-1])
    x = np.zeros(shape, np.float32)
    mask = np.ones(shape[:-1], bool) if masked else None
    y, new, gradients = step(norm, params, state, x, x, mask)
    assert y.shape == norm.infer(params, state, x, mask=mask).shape == shape
    jax.tree.map(np.testing.assert_array_equal, new, state)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), gradients)


@every_norm
def test_shards_without_elements(norm):
    if not isinstance(norm, jbn.frozen):
        norm = dataclasses.replace(norm, axis_name="d")
    train = jax.shard_map(
        norm.train, mesh=eight_shards(), in_specs=(P(), P(), P(None, "d")), out_specs=(P("d"), P())
    )
    params, state = norm.init(4)
    y, new = jax.jit(train)(params, state, np.zeros((0, 24, 4), np.float32))
    assert y.shape[-1] == 4
    jax.tree.map(np.testing.assert_array_equal, new, state)


def test_moments_of_nothing():
    batch = jbn.moments(np.zeros((0, 3, 4), np.float32))
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), batch)
    f = jax.shard_map(
        lambda x: jbn.moments(x, axis_name="d"),
        mesh=eight_shards(),
        in_specs=P(None, "d"),
        out_specs=P(),
    )
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), f(np.zeros((0, 24, 4))))


@pytest.mark.parametrize("norm", NORMS[:1] + NORMS[3:], ids=str)
@pytest.mark.parametrize("bias", [0.0, 1.7, -3e-20, 1e30])
@pytest.mark.parametrize("masked", [False, True])
def test_a_scale_of_zero_gives_the_bias(norm, bias, masked):
    """It does so to the last bit, as residual branches that start at 0 need."""
    params = jbn.BatchNormParams(jnp.zeros(3), jnp.full(3, bias))
    state = norm.init(3)[1]
    x = data((8, 5, 3), mean=100)
    mask = np.ones((8, 5), bool) if masked else None
    y, state = norm.train(params, state, x, mask=mask)
    np.testing.assert_array_equal(y, np.float32(bias))
    np.testing.assert_array_equal(norm.infer(params, state, x, mask=mask), np.float32(bias))


def test_gradients_where_a_scale_of_zero_meets_exact_zeros():
    """relu(shortcut + y) has its kink where both are 0. Half of the shortcut is 0."""
    norm, x = jbn.batch_norm(), data((8, 3))
    params, state = norm.init(3)
    shortcut = np.maximum(data((8, 3), 1), 0)

    def loss(scale):
        y, _ = norm.train(params._replace(scale=scale), state, x)
        return jnp.sum(jax.nn.relu(shortcut + y))

    # jax.nn.relu has the derivative 0 at 0.
    normalized = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    expected = np.sum(normalized * (shortcut > 0), 0)
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(3)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e10, 1e20, 1e28])
def test_a_scale_of_zero_and_huge_values(size):
    norm = jbn.batch_norm()
    params = jbn.BatchNormParams(jnp.zeros(1), jnp.ones(1))
    x = np.array([[size], [-size]], np.float32)
    np.testing.assert_array_equal(norm.infer(params, norm.init(1)[1], x), 1)


@pytest.mark.parametrize("gain", [1e-30, 1e-8, 1.0, 1e8])
@pytest.mark.parametrize("bias", [0.0, 1e-20, 1.0, 1e30])
@pytest.mark.parametrize("sign", [-1, 1])
def test_gains_and_biases_of_any_size(gain, bias, sign):
    x, one = data((64, 1), mean=2), jnp.ones(1)
    y = jax.jit(jbn.normalize)(x, 2 * one, sign * gain * one, bias * one)
    expected = (x.astype(np.float64) - 2) * sign * np.float32(gain) + np.float32(bias)
    size = (np.abs(x, dtype=np.float64) + 2) * gain + bias
    assert np.max(np.abs(y - expected) / size) < 2e-7


def test_a_finite_batch_never_poisons_the_state():
    """The state stays finite even if the variance overflows."""
    running = jbn.running_batch_norm()
    params, state = running.init(1)
    state = running.train(params, state, data((8, 1)))[1]
    new = running.train(params, state, np.full((8, 1), 1e20, np.float32))[1]
    jax.tree.map(np.testing.assert_array_equal, new, state)
    assert np.isfinite(running.train(params, new, data((8, 1), 1))[1].var).all()


def test_wide_values_do_not_poison_a_narrow_state(x64):
    norm = jbn.batch_norm()
    params, state = norm.init(1)
    x = np.array([[1e30], [-1e30]])
    y, new = norm.train(params, state, x)
    np.testing.assert_allclose(y, [[1], [-1]])
    jax.tree.map(np.testing.assert_array_equal, new, state)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99999999, 1.0])
def test_a_corrected_decay_at_its_limits(decay):
    norm = jbn.batch_norm(decay=jbn.corrected_decay(decay))
    params, state = norm.init(1)
    batches = [data((8, 1), seed, mean=seed) for seed in range(4)]
    for x in batches:
        state = norm.train(params, state, x)[1]
    weights = decay ** np.arange(3, -1, -1)
    expected = np.average([x.mean() for x in batches], weights=weights)
    np.testing.assert_allclose(state.mean, [expected], rtol=1e-5)


@pytest.mark.parametrize("decay", [-0.1, 1.1, "0.9", None, True])
def test_a_corrected_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=r"decay=.* must be in \[0, 1\]"):
        jbn.corrected_decay(decay)


def test_frozen_norms_take_one_example_and_no_axis_name():
    norm = jbn.frozen(jbn.batch_norm(axis_name="d"))
    params, state = norm.init(3)
    y, new = norm.train(params, state, data((1, 3)))
    np.testing.assert_array_equal(y, norm.infer(params, state, data((1, 3))))
    jax.tree.map(np.testing.assert_array_equal, new, state)


def test_adapting_norms_take_one_example_and_no_axis_name():
    alone, named = jbn.batch_norm(), jbn.batch_norm(axis_name="d")
    params, state = alone.init(3)
    with jbn.adapting(num_source=4):
        jax.tree.map(
            np.testing.assert_array_equal,
            named.train(params, state, data((1, 3))),
            alone.train(params, state, data((1, 3))),
        )


def test_groups_adapt_together():
    grouped, whole = jbn.ghost_batch_norm(group_size=2), jbn.batch_norm()
    params, state = whole.init(3)
    x = data((8, 3), mean=4)
    with jbn.adapting(num_source=4):
        y, new = grouped.train(params, state, x)
        jax.tree.map(np.testing.assert_array_equal, (y, new), whole.train(params, state, x))
    np.testing.assert_allclose(y, whole.infer(params, new, x), rtol=1e-6)


@pytest.mark.parametrize("use_running", [True, False])
@pytest.mark.parametrize("update", [True, False])
def test_adapting_does_not_reach_frozen_norms(use_running, update):
    norm = jbn.frozen(jbn.batch_norm(), use_running=use_running, update=update)
    params, state = norm.init(3)
    outside = norm.train(params, state, data((8, 3)))
    with jbn.adapting(num_source=4):
        inside = norm.train(params, state, data((8, 3)))
    jax.tree.map(np.testing.assert_array_equal, inside, outside)


@every_norm
def test_no_update(norm):
    params, state = norm.init(3)
    x = data((8, 3), mean=2)
    y, moved = norm.train(params, state, x)
    with jbn.no_update():
        same, kept = jax.jit(norm.train)(params, state, x)
        gradient = jax.grad(lambda x: jnp.sum(norm.train(params, state, x)[0] ** 3))(x)
    np.testing.assert_allclose(same, y, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    assert isinstance(norm, jbn.frozen) or moved.count == 1
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("domain", [-1, 2, 5])
def test_a_traced_domain_out_of_range_moves_nothing(domain):
    norm = jbn.domain_norm(jbn.batch_norm(), 2)
    params, state = norm.init(3)
    x = data((4, 3))
    y, new = jax.jit(norm.train)(params, state, x, domain)
    np.testing.assert_array_equal(y, 0)
    jax.tree.map(np.testing.assert_array_equal, new, state)
    np.testing.assert_array_equal(jax.jit(norm.infer)(params, state, x, domain), 0)
    y, new = norm.train(params, state, x, np.full(4, domain))
    np.testing.assert_array_equal(y, 0)
    jax.tree.map(np.testing.assert_array_equal, new, state)
    for known in (domain, np.int32(domain), jnp.int32(domain)):
        with pytest.raises(ValueError, match=f"domain={domain} must be from 0 to 1"):
            norm.infer(params, state, x, known)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_domains_of_any_integer_dtype(dtype):
    """300 domains do not fit into 8 bits. Numbers out of range must not wrap around."""
    norm = jbn.domain_norm(jbn.batch_norm(), 300)
    params, state = norm.init(3)
    x = data((4, 3))
    train = jax.jit(norm.train)
    _, new = train(params, state, x, np.ones((), dtype))
    np.testing.assert_array_equal(np.flatnonzero(new.count), [1])
    y, new = train(params, state, x, np.array(-56).astype(dtype))
    known = [200] if dtype == "uint8" else []
    np.testing.assert_array_equal(np.flatnonzero(new.count), known)
    assert np.any(y) == bool(known)
    few = dataclasses.replace(norm, num_domains=2)
    params, state = few.init(3)
    _, new = few.train(params, state, x, np.array([1, -1, 1, -1]).astype(dtype))
    np.testing.assert_array_equal(new.count, [0, 1])
    np.testing.assert_allclose(new.mean[1], 0.01 * x[::2].mean(0), rtol=1e-5)


FORMS = [
    jbn.batch_norm(),
    jbn.frozen(jbn.batch_norm(), update=True),
    jbn.frozen(jbn.batch_norm(), use_running=False, update=True),
    jbn.frozen(jbn.frozen(jbn.batch_norm(), update=True), use_running=False, update=True),
]


@pytest.mark.parametrize("norm", FORMS, ids=str)
@pytest.mark.parametrize("order", [1, -1])
def test_contexts_in_any_order(norm, order):
    """Nothing moves the state within no_update, and adapting reaches norms that are not frozen."""
    params, state = norm.init(3)
    x = data((8, 3), mean=2)
    with contextlib.ExitStack() as stack:
        for context in [jbn.no_update(), jbn.adapting(num_source=4)][::order]:
            stack.enter_context(context)
        y, new = norm.train(params, state, x)
    jax.tree.map(np.testing.assert_array_equal, new, state)
    with jbn.adapting(num_source=4):
        np.testing.assert_allclose(y, norm.train(params, state, x)[0], rtol=1e-6)


def test_recalibrating_within_no_update():
    norm = jbn.batch_norm()
    params, state = norm.init(3)
    x = data((8, 3), mean=2)
    with jbn.no_update():
        new, _ = jbn.recalibrate(lambda s, x: norm.train(params, s, x)[1], state, [x])
    np.testing.assert_allclose(new.mean, x.mean(0), rtol=1e-6)


def test_a_symbolic_batch_of_one_uses_the_running_statistics():
    norm = jbn.batch_norm()
    params, state = norm.init(4)
    (size,) = export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((size, 4), np.float32)
    train = export.export(jax.jit(norm.train))(params, state, x)
    y, new = train.call(params, state, np.full((1, 4), 3, np.float32))
    np.testing.assert_array_equal(y, norm.infer(params, state, np.full((1, 4), 3, np.float32)))
    jax.tree.map(np.testing.assert_array_equal, new, state)


def test_a_schedule_of_limits_below_their_range():
    """Limits below their range count as the lowest limits, which are those of batch norm."""
    norm = jbn.batch_renorm(r_max=lambda t: 0 * t, d_max=lambda t: 0 * t - 1)
    params, state = norm.init(4)
    x = data((8, 4), mean=3)
    y, _ = norm.train(params, state, x)
    np.testing.assert_allclose(y, jbn.batch_norm().train(params, state, x)[0], rtol=1e-5, atol=1e-5)


def test_a_leftover_group_says_what_to_do():
    norm = jbn.ghost_batch_norm(group_size=4)
    with pytest.raises(ValueError, match="Drop the last example, fill its group"):
        norm.train(*norm.init(3), data((17, 3)))


def test_a_method_that_forgets_its_state():
    class forgetful(jbn.batch_norm):
        def train_vectors(self, state, batch):  # pyright: ignore
            return super().train_vectors(state, batch)[0]

    with pytest.raises(TypeError, match=r"must return a pair \(statistics, state\)"):
        forgetful().train(*forgetful().init(3), data((8, 3)))
