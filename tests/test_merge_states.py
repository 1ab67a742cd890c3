"""Merged states equal those of the pooled data. Averages of states lack the spread of the means."""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import jbn
from tests import reference
from tests.helpers import collectives, data, eight_shards

SIZES = [4, 1, 20, 8]
PARTS = [data((size, 5, 3), size, mean=10 * size) for size in SIZES]
POOL = np.concatenate(PARTS)
NORM = jbn.batch_norm()


def state_of(x, **changes) -> jbn.BatchNormState:
    """Returns the state that holds the moments of some data."""
    batch = jbn.moments(x)
    return jbn.BatchNormState(batch.mean, batch.var, jnp.float32(len(x)))._replace(**changes)


STATES = [state_of(x) for x in PARTS]


def assert_pooled(state, x=POOL):
    mean, var, _ = reference.moments(x)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(state.var, var, rtol=1e-6)
    assert state.mean.dtype == state.var.dtype == jnp.float32


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_clients_merge_to_the_state_of_the_pooled_data(wrap):
    merged = wrap(lambda states, sizes: jbn.merge_states(states, weights=sizes))(STATES, SIZES)
    assert_pooled(merged)
    np.testing.assert_allclose(merged.count, np.average(SIZES, weights=SIZES), rtol=1e-6)
    assert merged.count.dtype == jnp.float32


def test_equal_weights_are_the_default():
    parts = [data((6, 3), seed, mean=seed) for seed in range(3)]
    merged = jbn.merge_states([state_of(x) for x in parts])
    assert_pooled(merged, np.concatenate(parts))
    assert merged.count == 6


def test_an_average_of_states_lacks_the_spread_of_the_means():
    merged = jbn.merge_states(STATES[:1] * 2 + STATES[2:3] * 2)
    averaged = jax.tree.map(lambda *a: sum(a) / 4, *(STATES[:1] * 2 + STATES[2:3] * 2))
    np.testing.assert_allclose(averaged.mean, merged.mean, rtol=1e-6)
    spread = np.square((STATES[2].mean - STATES[0].mean) / 2)
    assert np.all(spread > 1000)
    np.testing.assert_allclose(merged.var - averaged.var, spread, rtol=1e-5)


def test_equal_states_stay_as_they_are():
    state = state_of(POOL)
    merged = jbn.merge_states([state] * 3)
    np.testing.assert_array_equal(merged.mean, state.mean)
    # A weight of one third is rounded.
    np.testing.assert_allclose(merged.var, state.var, rtol=3e-7)
    np.testing.assert_allclose(merged.count, state.count, rtol=3e-7)


def test_a_weight_of_0_leaves_a_state_out_whatever_it_holds():
    bad = jax.tree.map(lambda a: a * np.nan, STATES[0])
    merged = jbn.merge_states([bad, *STATES, bad], weights=[0, *SIZES, 0])
    assert_pooled(merged)
    assert jnp.isfinite(merged.count)
    chex.assert_trees_all_equal(jbn.merge_states(STATES, weights=[0] * 4), STATES[0])


def test_merges_of_merges_are_the_merge():
    halves = [jbn.merge_states(STATES[a : a + 2], weights=SIZES[a : a + 2]) for a in (0, 2)]
    assert_pooled(jbn.merge_states(halves, weights=np.array([5, 28])))


def test_every_leaf_of_a_tree_has_its_rule():
    def tree(state, i):
        running = jbn.running_batch_norm().init(3)[1]
        return {
            "plain": state,
            "flax": {"bn": {"mean": state.mean.astype(jnp.bfloat16), "var": state.var}},
            "running": running._replace(weight=jnp.float32(i), examples=jnp.float32(4 * i)),
            "kernel": np.full((2, 2), i, np.float16),
            "step": jnp.int32(i),
            "key": jax.random.key(i),
            "none": None,
        }

    trees = [tree(state, i) for i, state in enumerate(STATES[:2], 1)]
    merged: Any = jbn.merge_states(trees, weights=[3, 1])
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, trees[0])
    chex.assert_trees_all_equal(merged["plain"], jbn.merge_states(STATES[:2], weights=[3, 1]))
    means = np.stack([np.float64(t["flax"]["bn"]["mean"]) for t in trees])
    mean = np.average(means, axis=0, weights=[3, 1])
    var = np.average([s.var for s in STATES[:2]], axis=0, weights=[3, 1])
    var += np.average((means - mean) ** 2, axis=0, weights=[3, 1])
    np.testing.assert_allclose(merged["flax"]["bn"]["var"], var, rtol=1e-6)
    np.testing.assert_array_equal(merged["flax"]["bn"]["mean"], mean.astype(jnp.bfloat16))
    assert (merged["running"].weight, merged["running"].examples) == (1.25, 5)
    np.testing.assert_array_equal(merged["kernel"], np.float16(1.25))
    assert merged["step"] == 1
    assert merged["key"] == jax.random.key(1)


def test_float64_states_merge_in_float64(x64):
    parts = [data((4, 3), seed, mean=1e6 * seed, dtype=np.float64) for seed in (1, 2)]
    states = [jbn.BatchNormState(*jbn.moments(x)[:3]) for x in parts]
    merged = jbn.merge_states(states)
    mean, var, _ = reference.moments(np.concatenate(parts))
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(merged.var, var, rtol=1e-14)


SHARDS = data((8, 6, 3)) + np.arange(8, dtype=np.float32)[:, None, None]
"""Data of eight shards, with different means."""

WEIGHTS = np.array([6, 6, 2, 0, 6, 6, 6, 6], np.float32)
SEEN = [x[: int(w)] for x, w in zip(SHARDS, WEIGHTS, strict=True)]
STACKED = jax.tree.map(lambda *a: jnp.stack(a), *(state_of(x) for x in SEEN))


def over_shards(form):
    """Merges the states of eight shards. Each shard returns the result."""

    def merge(state, weight):
        return jbn.merge_states([state], weights=[weight], axis_name="d")

    if form == "pmap":
        return jax.pmap(merge, "d")
    if form == "vmap":
        return jax.jit(jax.vmap(merge, axis_name="d"))

    def shard(state, weight):
        return merge(*jax.tree.map(lambda a: a[0], (state, weight)))

    sharded = jax.shard_map(
        shard,
        mesh=eight_shards(),
        in_specs=P("d"),
        out_specs=P(),
        check_vma=form == "shard_map with check_vma",
    )
    return jax.jit(sharded)


@pytest.mark.parametrize("form", ["pmap", "vmap", "shard_map", "shard_map with check_vma"])
def test_shards_merge_to_the_state_of_the_whole_batch(form):
    state = STACKED._replace(mean=STACKED.mean.at[3].set(jnp.nan))
    merged = over_shards(form)(state, WEIGHTS)
    for each in (
        [merged]
        if "shard_map" in form
        else [jax.tree.map(lambda a, i=i: a[i], merged) for i in range(8)]
    ):
        assert_pooled(each, np.concatenate(SEEN))


def test_shards_merge_by_one_collective():
    states = {"a": STACKED, "b": {"mean": STACKED.mean, "var": STACKED.var}, "c": STACKED.count}

    def merge(states):
        return jbn.merge_states([states], axis_name="d")

    def shard(states):
        return merge(jax.tree.map(lambda a: a[0], states))

    sharded = jax.shard_map(shard, mesh=eight_shards(), in_specs=P("d"), out_specs=P())
    assert collectives(jax.jit(sharded).lower(states).compile()) == 1


def test_several_states_on_each_shard_merge_with_all_others():
    def merge(a, b):
        return jbn.merge_states([a, b], weights=[3, 1], axis_name="d")

    pairs = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), STACKED)
    a, b = (jax.tree.map(lambda leaf, i=i: leaf[:, i], pairs) for i in range(2))
    merged = jax.jit(jax.vmap(merge, axis_name="d"))(a, b)
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], STACKED) for i in range(8)]
    wanted = jbn.merge_states(rows, weights=[3, 1] * 4)
    for i in range(4):
        each = jax.tree.map(lambda leaf, i=i: leaf[i], merged)
        chex.assert_trees_all_close(each, wanted, rtol=1e-6)


def test_training_on_shards_without_an_axis_name_is_mended():
    """Most data-parallel code uses `lax.pmean` of the states instead."""
    norm = jbn.batch_norm(decay=0.0)
    params, start = norm.init(3)
    x = jnp.asarray(SHARDS)

    def step(x):
        _, state = norm.train(params, start, x)
        return jbn.merge_states([state], axis_name="d"), jax.lax.pmean(state, "d")

    merged, averaged = jax.tree.map(lambda a: a[0], jax.pmap(step, "d")(x))
    assert_pooled(merged, SHARDS)
    assert np.all(averaged.var < 0.4 * merged.var)


def test_models_of_flax():
    model = nn.BatchNorm(use_running_average=True)
    variables: Any = model.init(jax.random.key(0), POOL)
    clients = [{**variables, "batch_stats": {"mean": s.mean, "var": s.var}} for s in STATES]
    merged: Any = jbn.merge_states(clients, weights=SIZES)
    assert_pooled(jbn.BatchNormState(**merged["batch_stats"], count=jnp.float32(0)))
    chex.assert_trees_all_equal(merged["params"], variables["params"])

    module = jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    stats = []
    for state in STATES:
        module.mean[...], module.var[...] = state.mean, state.var
        stats.append(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))
    nnx.update(module, jbn.merge_states(stats, weights=SIZES))
    assert_pooled(state_of(POOL, mean=module.mean[...], var=module.var[...]))


@pytest.mark.parametrize(
    ("states", "options", "words"),
    [
        ([], {}, "0 states and 0 weights"),
        (STATES, {"weights": [1, 2]}, "4 states and 2 weights"),
        (STATES[:2], {"weights": [1, -1]}, r"\[1, -1\] must be finite numbers that"),
        (STATES[:2], {"weights": [1, np.inf]}, "must be finite numbers"),
        (STATES[:2], {"weights": [1, np.nan]}, "must be finite numbers"),
        (STATES[:2], {"weights": np.ones((2, 3))}, "must be finite numbers"),
        ([STATES[0], tuple(STATES[0])], {}, r"one structure .* states\[1\] has"),
        ([STATES[0], NORM.init(4)[1]], {}, r"the same shapes: .* states\[1\] has .*\(?4"),
    ],
)
def test_errors_name_what_is_wrong(states, options, words):
    with pytest.raises(ValueError, match=words):
        jbn.merge_states(states, **options)


def test_a_single_state_is_not_a_sequence_of_states():
    state = jbn.batch_norm().init(3)[1]
    for one in (state, {"norm": state}):
        with pytest.raises(TypeError, match="got one of them: pass"):
            jbn.merge_states(one)  # pyright: ignore


def test_boxed_arrays_are_not_averaged_without_the_spread():
    modules = [nnx.BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2)]
    states = [nnx.state(module, nnx.BatchStat) for module in modules]
    with pytest.raises(TypeError, match="as BatchStat: pass bare arrays"):
        jbn.merge_states(states)
    box = nn.Partitioned(jnp.ones(3), (None,))
    with pytest.raises(TypeError, match="as Partitioned: pass bare arrays"):
        jbn.merge_states([{"bn": {"mean": box, "var": box}}])
    with pytest.raises(ValueError, match="no norm's state"):
        jbn.merge_states([{"kernel": jnp.ones(3)}])


def test_an_axis_name_must_be_bound():
    with pytest.raises(NameError, match="axis_name='d' is not bound"):
        jbn.merge_states(STATES, axis_name="d")


def test_weights_may_be_traced():
    merge = partial(jbn.merge_states, STATES)
    weights = jnp.array([SIZES, [1, 0, 0, 0]], jnp.float32)
    both = jax.vmap(lambda weights: merge(weights=weights))(weights)
    assert_pooled(jax.tree.map(lambda a: a[0], both))
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a[1], both), STATES[0])
