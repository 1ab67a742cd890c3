"""Recalibrated statistics equal those of the data for any division into batches and any model."""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
import jbn.linen
import jbn.nnx
from tests import reference
from tests.helpers import data, eight_shards

X = data((96, 2, 3), mean=10) * np.array([1, 2, 3], np.float32)
MASK = data((96, 2), 1) > 0
MASK[16:32] = False
CUTS = [[], [48], [8, 24, 32, 80], list(range(2, 96, 2))]
NORM = jbn.batch_norm(decay=0.9)
PARAMS, START = NORM.init(3)


def train(state, batch, norm: jbn.Norm[Any] = NORM):
    x, mask = batch
    return norm.train(PARAMS, state, x, mask=mask)[1]


def cut(at, masked=False) -> list[tuple[Any, Any]]:
    masks = np.split(MASK, at) if masked else [None] * (len(at) + 1)
    return list(zip(np.split(X, at), masks, strict=True))


def assert_exact(state, x=X, mask=None):
    """Checks mean and variance. The rounding of float32 is 6e-8, and each batch adds a few."""
    mean, var, _ = reference.moments(x, mask=mask)
    np.testing.assert_allclose(state.mean, mean, rtol=3e-7)
    np.testing.assert_allclose(state.var, var, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("at", CUTS)
def test_on_the_input_it_is_the_datas_moments_however_cut(at, masked):
    state, drift = jbn.recalibrate(jax.jit(train), START, cut(at, masked))
    mask = MASK if masked else None
    assert_exact(state, mask=mask)
    assert set(drift) == {""}
    np.testing.assert_array_equal(drift[""].count, reference.moments(X, mask=mask)[2])


def test_ten_thousand_batches_lose_no_digits():
    x = data((10_000, 4, 3), mean=1000)
    state, _ = jbn.recalibrate(jax.jit(lambda s, x: train(s, (x, None))), START, x)
    assert_exact(state, x)


def test_drift_is_in_standard_deviations_and_logarithms():
    running = START._replace(mean=jnp.float32([1, 2, 3]), var=jnp.float32([4, 5, 6]))
    _, drift = jbn.recalibrate(jax.jit(train), running, cut([48]))
    mean, var, count = reference.moments(X)
    np.testing.assert_allclose(drift[""].mean, ([1, 2, 3] - mean) / np.sqrt(var), rtol=1e-6)
    np.testing.assert_allclose(drift[""].log_var, np.log([4, 5, 6] / var), rtol=1e-6)
    np.testing.assert_array_equal(drift[""].count, [count] * 3)


def test_norms_further_up_see_what_training_shows_them():
    kernel = data((3, 3), 2)
    start = {"first": START, "second": START, "steps": jnp.int32(7)}

    def two_layers(state, x):
        y, first = NORM.train(PARAMS, state["first"], x)
        _, second = NORM.train(PARAMS, state["second"], jnp.tanh(y) @ kernel)
        return {"first": first, "second": second, "steps": state["steps"] + 1}

    xs = np.split(X, 3)
    state, drift = jbn.recalibrate(jax.jit(two_layers), start, xs)
    assert set(drift) == {"first", "second"}
    assert state["steps"] == 7
    assert_exact(state["first"])
    hidden = [reference.normalize(x, *reference.moments(x)[:2]) for x in xs]
    mean, var, _ = reference.moments(np.tanh(np.concatenate(hidden)) @ kernel)
    np.testing.assert_allclose(state["second"].mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["second"].var, var, rtol=1e-5)


@pytest.mark.parametrize(
    "norm",
    [
        jbn.ghost_batch_norm(group_size=8),
        jbn.batch_renorm(),
        jbn.running_batch_norm(),
        jbn.batch_norm(decay=jbn.corrected_decay(0.9), unbiased=True),
    ],
    ids=["ghost", "renorm", "running", "unbiased"],
)
def test_every_method_is_given_the_same_and_keeps_the_rest(norm):
    _, start = norm.init(3)
    for batch in cut([48]):
        start = train(start, batch, norm)
    state, _ = jbn.recalibrate(jax.jit(partial(train, norm=norm)), start, cut([48]))
    assert_exact(state)
    rest = {name: value for name, value in start._asdict().items() if name not in ("mean", "var")}
    assert rest["count"] == 2
    for name, value in rest.items():
        np.testing.assert_array_equal(getattr(state, name), value)
    assert [a.dtype for a in state] == [a.dtype for a in start]


def test_frozen_norms_stay_what_they_are():
    frozen = jbn.frozen(NORM)
    start = {"frozen": START, "norm": START}

    def both(state, batch):
        return {
            "frozen": train(state["frozen"], batch, frozen),
            "norm": train(state["norm"], batch),
        }

    state, drift = jbn.recalibrate(both, start, cut([48]))
    chex.assert_trees_all_equal(state["frozen"], START)
    assert_exact(state["norm"])
    np.testing.assert_array_equal(drift["frozen"].count, 0)


def test_a_step_that_was_jitted_before_notices():
    traces = []

    @jax.jit
    def step(state, x):
        traces.append(x.shape)
        return train(state, (x, None))

    before = step(START, X[:48])
    assert_exact(jbn.recalibrate(step, START, np.split(X, 2))[0])
    after = step(START, X[:48])
    chex.assert_trees_all_equal(before, after)
    assert len(traces) == 2


def test_through_scan_and_checkpoint():
    def both(states, x):
        first, rows = states

        def layer(x, state):
            y, state = jax.checkpoint(NORM.train)(PARAMS, state, x)
            return jnp.tanh(y), state

        x, first = layer(x, first)
        return first, jax.lax.scan(layer, x, rows)[1]

    def unrolled(states, x):
        first, *rows = states
        news = []
        for state in (first, *rows):
            x, new = NORM.train(PARAMS, state, x)
            x = jnp.tanh(x)
            news.append(new)
        return news

    stacked = jax.tree.map(lambda a: jnp.stack([a] * 2), START)
    (first, rows), drift = jbn.recalibrate(jax.jit(both), (START, stacked), np.split(X, 3))
    wanted, _ = jbn.recalibrate(jax.jit(unrolled), [START] * 3, np.split(X, 3))
    assert_exact(first)
    assert drift["1"].count.shape == (2, 3)
    for i in range(2):
        np.testing.assert_allclose(rows.mean[i], wanted[i + 1].mean, atol=1e-6)
        np.testing.assert_allclose(rows.var[i], wanted[i + 1].var, rtol=1e-5)


def test_models_under_vmap_count_what_their_masks_leave():
    masks = np.stack([MASK, ~MASK])
    start = jax.tree.map(lambda a: jnp.stack([a] * 2), START)

    def step(state, batch):
        x, mask = batch
        return jax.vmap(lambda s, m: train(s, (x, m)))(state, mask)

    batches = [(X[i : i + 32], masks[:, i : i + 32]) for i in (0, 32, 64)]
    state, drift = jbn.recalibrate(jax.jit(step), start, batches)
    for i in range(2):
        assert_exact(jax.tree.map(lambda a, i=i: a[i], state), mask=masks[i])
        np.testing.assert_array_equal(drift[""].count[i], masks[i].sum())


@pytest.mark.parametrize("form", ["shard_map", "jit"])
def test_shards_equal_one_device(form):
    mesh = eight_shards()
    batches = jax.device_put(cut([32, 64], masked=True), NamedSharding(mesh, P("d")))
    step: Any = train
    if form == "shard_map":
        norm = jbn.batch_norm(axis_name="d")
        step = jax.shard_map(
            partial(train, norm=norm), mesh=mesh, in_specs=(P(), P("d")), out_specs=P()
        )
    state, _ = jbn.recalibrate(jax.jit(step), START, batches)
    assert_exact(state, mask=MASK)


@pytest.mark.parametrize("bad", ["masked", "infinite"])
def test_a_bad_batch_counts_as_empty(bad):
    x = np.full_like(X[:8], np.nan if bad == "masked" else np.inf)
    mask = np.full(MASK[:8].shape, bad == "infinite")
    batches = [(X[:48], MASK[:48]), (x, mask), (X[48:], MASK[48:])]
    nan = START._replace(mean=START.mean * np.nan)
    for start in (START, nan):
        state, _ = jbn.recalibrate(jax.jit(train), start, batches)
        assert_exact(state, mask=MASK)


def test_batches_are_read_one_at_a_time():
    read = []

    def progress():
        for i, batch in enumerate(cut([24, 48])):
            read.append(i)
            yield batch

    def counting(state, batch):
        calls.append(len(read))
        return train(state, batch)

    calls: list[int] = []
    assert_exact(jbn.recalibrate(counting, START, progress())[0])
    assert calls == [1, 2, 3]


@pytest.mark.parametrize(
    ("step", "state", "batches", "words"),
    [
        (train, {"step": jnp.int32(0)}, [], "no norm's state"),
        (train, START, [], "batches is empty"),
        (lambda state, _: state, START, [0], "not of jbn"),
        (lambda state, _: {}, {"norm": START}, [0], r"every norm that it is given, \['norm'\]"),
    ],
)
def test_errors_name_what_is_wrong(step, state, batches, words):
    with pytest.raises(ValueError, match=words):
        jbn.recalibrate(step, state, batches)


class Network(nn.Module):
    """A norm on the input, and two stacked layers."""

    norm: Any

    @nn.compact
    def __call__(self, x):
        x = self.norm(use_running_average=False, name="first")(x)
        layers = nn.scan(
            Layer, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2
        )
        return layers(self.norm, name="layers")(x, None)[0]


class Layer(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x, _):
        x = nn.Dense(3, kernel_init=nn.initializers.orthogonal())(x)
        return self.norm(use_running_average=False, name="norm")(nn.tanh(x)), None


@pytest.mark.parametrize(
    "norm",
    [jbn.linen.BatchNorm, partial(jbn.linen.Norm, NORM), nn.BatchNorm],
    ids=["jbn", "Norm", "flax"],
)
def test_linen_models_keep_their_variables_but_for_mean_and_variance(norm):
    model = Network(norm)
    variables: Any = model.init(jax.random.key(0), X)

    def step(stats, x):
        old = {**variables, "batch_stats": stats}
        return model.apply(old, x, mutable=["batch_stats"])[1]["batch_stats"]

    with jbn.linen.replace_batch_norm():
        stats, drift = jbn.recalibrate(jax.jit(step), variables["batch_stats"], np.split(X, 3))
    assert set(drift) == {"first", "layers/norm"}
    assert_exact(jbn.BatchNormState(**({"count": None} | stats["first"])))
    old = variables["batch_stats"]
    assert jax.tree.map(jnp.shape, stats) == jax.tree.map(jnp.shape, old)
    hidden = [reference.normalize(x, *reference.moments(x)[:2]) for x in np.split(X, 3)]
    layer = jax.tree.map(lambda a: np.asarray(a[0]), variables["params"]["layers"]["Dense_0"])
    y = np.tanh(np.concatenate(hidden) @ layer["kernel"] + layer["bias"])
    mean, var, count = reference.moments(y)
    np.testing.assert_allclose(stats["layers"]["norm"]["mean"][0], mean, atol=1e-6)
    np.testing.assert_allclose(stats["layers"]["norm"]["var"][0], var, rtol=1e-5)
    np.testing.assert_array_equal(drift["layers/norm"].count, np.full((2, 3), count))


def test_flax_norms_that_were_not_replaced_are_an_error():
    model = Network(nn.BatchNorm)
    variables: Any = model.init(jax.random.key(0), X)

    def step(stats, x):
        return model.apply({**variables, "batch_stats": stats}, x, mutable=["batch_stats"])[1][
            "batch_stats"
        ]

    with pytest.raises(ValueError, match="replace_batch_norm"):
        jbn.recalibrate(step, variables["batch_stats"], [X])


def nnx_model() -> Any:
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        jbn.nnx.BatchNorm(3, rngs=rngs),
        nnx.Linear(3, 4, rngs=rngs),
        nnx.Dropout(0.5, rngs=rngs),
        jbn.nnx.Norm(jbn.batch_norm(), 4),
    )


def test_nnx_models_change_in_their_means_and_variances_alone():
    model = nnx_model()
    model.eval()
    before = nnx.state(nnx.clone(model))
    layer = model.layers[1]
    drift = jbn.nnx.recalibrate(model, np.split(X, 3))
    assert set(drift) == {"layers/0", "layers/3"}
    first, last = model.layers[0], model.layers[3]
    assert_exact(jbn.BatchNormState(first.mean[...], first.var[...], START.count))
    hidden = [reference.normalize(x, *reference.moments(x)[:2]) for x in np.split(X, 3)]
    kernel, bias = (np.asarray(v[...]) for v in (layer.kernel, layer.bias))
    y = np.concatenate(hidden) @ kernel + bias  # Dropout is off here.
    mean, var, _ = reference.moments(y)
    np.testing.assert_allclose(last.mean[...], mean, atol=1e-6)
    np.testing.assert_allclose(last.var[...], var, rtol=1e-5)
    assert first.use_running_average
    after = nnx.state(model)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for (path, a), (_, b) in zip(nnx.to_flat_state(after), nnx.to_flat_state(before), strict=True):
        if path[-1] not in ("mean", "var"):
            assert jnp.array_equal(a[...], b[...]), path


def test_an_nnx_model_is_as_it_was_after_an_error():
    model = nnx_model()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def broken():
        yield X
        raise InterruptedError

    with pytest.raises(InterruptedError):
        jbn.nnx.recalibrate(model, broken())
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    chex.assert_trees_all_equal(after, before)
    with pytest.raises(ValueError, match=r"jbn\.nnx\.replace_batch_norm"):
        jbn.nnx.recalibrate(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), [X])


def test_nnx_calls_may_take_what_they_like():
    model = jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    jbn.nnx.recalibrate(
        model,
        cut([48], masked=True),
        lambda model, batch: model(batch[0], mask=batch[1][..., None]),
    )
    assert_exact(jbn.BatchNormState(model.mean[...], model.var[...], START.count), mask=MASK)
