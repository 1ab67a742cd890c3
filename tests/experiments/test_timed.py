"""Libraries take turns equally often, and are compared within a round."""

import math
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import memory, stopwatch, timed
from experiments.benchmarks.timed import SMALL_IMAGES
from experiments.benchmarks.turns import (
    linen_compilation_turns,
    nnx_compilation_turns,
    norm_turns,
    trace_lower_compile,
)


def test_every_library_takes_a_turn_in_every_round():
    taken = []

    def turn(name):
        return lambda: taken.append(name) or {"a": 1.0, "b": len(taken)}

    seconds = stopwatch.interleaved({name: turn(name) for name in "xyz"}, rounds=8, warm_up=2)
    rounds = [taken[i : i + 3] for i in range(0, 30, 3)]
    assert len(taken) == 30
    assert all(sorted(names) == ["x", "y", "z"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert seconds["a"] == {name: [1.0] * 8 for name in "xyz"}
    assert min(seconds["b"]["x"]) > 2 * 3


def test_ratios_are_medians_over_rounds():
    row = stopwatch.compared({"jbn": [1.0, 2.0, 4.0], "other": [3.0, 2.0, 8.0]}, "jbn")
    assert row["median_ms"] == {"jbn": 2000, "other": 3000}
    assert row["times_jbn"] == {"jbn": 1, "other": 2}
    rows = [
        {"what": "step", "shape": (4, 3)} | row,
        {"what": "step", "batch": 8, "memory": "kept"} | row,
    ]
    rows[1] = rows[1] | {"median_ms": {"jbn": 1}, "times_jbn": {"jbn": 1}}
    assert stopwatch.table(rows, "jbn").splitlines()[2:] == [
        "| step [4, 3] | 2000.00 | 2.00 |",
        "| step, batch 8, memory kept | 1.00 | n/a |",
    ]


def count_faults() -> tuple[dict[str, int], int] | None:
    """Returns the page faults of 20 calls by kind of memory, and the pages that they write."""
    if not memory.choose("fresh"):
        return None
    copy = jax.jit(lambda x: x + 1)
    x = jnp.zeros(2**20)
    faults = {}
    for kind in memory.MEMORIES:
        memory.choose(kind)
        for number in range(60):
            if number == 40:
                faults[kind] = -resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            jax.block_until_ready(copy(x))
        faults[kind] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return faults, 20 * x.nbytes // resource.getpagesize()


def test_fresh_memory_is_paid_for_in_every_call_and_kept_memory_once():
    # This runs in a new process, in which JAX has no threads yet.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        counted = process.submit(count_faults).result()
    if counted is None:
        pytest.skip("the C library does not offer a choice of memory")
    faults, pages = counted
    assert faults["fresh"] > 0.5 * pages
    assert faults["kept"] < 0.1 * pages


@pytest.mark.parametrize("shape", [(8, 4, 4, 3), (8, 3)])
def test_norms_are_timed_forward_and_both_ways(shape):
    rows = list(timed.rows(dict(norm_turns(shape)), 1, shape=shape))
    assert [row["what"] for row in rows] == ["forward", "forward and backward"]
    for row in rows:
        assert {"jbn", "jbn, in place", "flax.linen"} <= set(row["median_ms"])
        assert row["times_jbn"]["jbn"] == 1
        assert all(ms > 0 for ms in row["median_ms"].values())


def test_tracing_lowering_and_compiling_start_anew_each_time():
    traced = []

    def step(x):
        traced.append(x)
        return x + 1

    for number in (1, 2):
        seconds = trace_lower_compile(step, (1.0,))
        assert len(traced) == number
        assert set(seconds) == {"tracing", "lowering", "compiling"}
        assert all(taken > 0 for taken in seconds.values())


@pytest.mark.slow
@pytest.mark.parametrize("turns", [linen_compilation_turns, nnx_compilation_turns])
def test_the_compiled_network_is_resnet50(turns):
    for name, turn in turns(SMALL_IMAGES):
        step, (state, images, labels) = turn.args
        params, statistics, _ = state
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 25_557_032, name
        assert len(jax.tree.leaves(statistics)) == 2 * 53
        new, loss = jax.eval_shape(step, state, images, labels)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert loss.shape == ()
