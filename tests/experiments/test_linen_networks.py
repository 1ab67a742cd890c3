"""The Linen networks of the benchmarks, and the search for the largest batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks.linen_networks import Chain, ResNet50, training
from experiments.benchmarks.linen_norms import linen_norms
from experiments.benchmarks.resnet50 import STEP, largest_batch

NORMS = linen_norms(jnp.float32)


def shapes(model, inputs):
    return jax.eval_shape(training(model, optax.sgd(0.1))[0], inputs)


@pytest.mark.parametrize("name", ["flax.linen", "jbn, in place"])
def test_resnet50_has_the_published_number_of_parameters_and_53_norms(name):
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    params, batch_stats, _ = shapes(ResNet50(NORMS[name], jnp.float32), images)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 25_557_032
    assert len({path[:-1] for path, _ in jax.tree.leaves_with_path(batch_stats)}) == 53


@pytest.mark.parametrize("name", ["jbn", "jbn, policy"])
def test_a_step_with_jbn_is_that_with_flax(name):
    rng = np.random.default_rng(0)
    x, labels = jnp.asarray(rng.normal(size=(32, 16)), jnp.float32), jnp.arange(32) % 16

    def after(norms):
        init, step = training(Chain(norms, depth=3), optax.sgd(0.1), norms.wrap)
        (params, batch_stats, _), loss = jax.jit(step)(init(x), x, labels)
        return [loss, *jax.tree.leaves(params), *jax.tree.leaves(batch_stats)]

    ours, flax = after(NORMS[name]), after(NORMS["flax.linen"])
    assert len(flax) == 1 + 3 * 3 + 3 * 2
    for a, b in zip(ours, flax, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bend", [0, 3, -3])
def test_the_largest_batch_is_found_where_the_line_bends(bend):
    def needs(batch):
        assert batch % STEP == 0
        return 100 + 10 * batch + bend * max(0, batch - 400)

    for limit in (5000.0, 8000.0):
        batch, needed = largest_batch(needs, limit)
        assert needed == needs(batch) <= limit < needs(batch + STEP)
        assert batch > 400


def test_what_would_be_computed_twice_does_not_count_as_fitting():
    batch, _ = largest_batch(lambda batch: batch if batch <= 800 else math.inf, 1000.0)
    assert batch == 800
