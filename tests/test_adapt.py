"""Adapted statistics in inference: the formula, and whole models in the context."""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jbn
import jbn.linen
import jbn.nnx
from tests import reference
from tests.helpers import data

X = data((6, 5, 3), mean=1)
NORM = jbn.batch_norm()
PARAMS, START = NORM.init(3)
SOURCE = START._replace(
    mean=jnp.float32([1, -1, 0]), var=jnp.float32([4, 1, 2]), count=jnp.float32(7)
)


def blended(x, num_source, num_target, mask=None) -> tuple[Any, Any]:
    """Returns mean and variance by the formula (N source + n target) / (N + n), in float64."""
    mean, var, _ = reference.moments(x, mask=mask)
    total = num_source + num_target
    sources = np.asarray(SOURCE.mean, np.float64), np.asarray(SOURCE.var, np.float64)
    return (
        (num_source * sources[0] + num_target * mean) / total,
        (num_source * sources[1] + num_target * var) / total,
    )


def assert_blended(state, wanted):
    np.testing.assert_allclose(state.mean, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(state.var, wanted[1], rtol=1e-6)
    assert state.count == SOURCE.count
    assert (state.mean.dtype, state.count.dtype) == (jnp.float32, jnp.float32)


@pytest.mark.parametrize("num_source", [0, 0.5, 16])
@pytest.mark.parametrize("num_target", [None, 6])
def test_the_blend_is_linear_in_means_and_variances(num_source, num_target):
    state = jax.jit(jbn.adapt)(SOURCE, jbn.moments(X), num_source=num_source, num_target=num_target)
    assert_blended(state, blended(X, num_source, num_target or 6))


@pytest.mark.parametrize("bad", ["empty", "infinite"])
def test_a_bad_batch_changes_nothing(bad):
    x = jnp.full_like(X, jnp.inf)
    mask = jnp.full(X.shape[:2], bad == "infinite")
    state = jbn.adapt(SOURCE, jbn.moments(x, mask=mask), num_source=0)
    chex.assert_trees_all_equal(state, SOURCE)


@pytest.mark.parametrize("masked", [False, True])
def test_train_normalizes_by_the_blend_and_counts_examples(masked):
    mask = np.arange(6) < 4 if masked else None
    positions = None if mask is None else np.broadcast_to(mask[:, None], (6, 5))
    train = jax.jit(NORM.train)
    train(PARAMS, SOURCE, X, mask=positions)  # This traces it before the context.
    with jbn.adapting(3):
        y, state = train(PARAMS, SOURCE, X, mask=positions)
    wanted = blended(X, 3, 4 if masked else 6, positions)
    assert_blended(state, wanted)
    y, hat = (np.asarray(a)[:4] for a in (y, reference.normalize(X, *wanted)))
    np.testing.assert_allclose(y, hat, rtol=1e-5, atol=1e-5)


def test_statistics_carry_no_gradient():
    weights = jnp.asarray(data(X.shape, 1))

    def adapted(x):
        with jbn.adapting(3):
            return jnp.sum(NORM.train(PARAMS, SOURCE, x)[0] * weights)

    _, var = blended(X, 3, 6)
    wanted = np.asarray(weights) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(jax.grad(adapted)(jnp.asarray(X)), wanted, rtol=1e-5)


def test_a_single_example_needs_the_source():
    x = X[:1, 0]
    with jbn.adapting(15):
        y, state = NORM.train(PARAMS, SOURCE, x)
    wanted = blended(x, 15, 1)
    assert_blended(state, wanted)
    np.testing.assert_allclose(y, reference.normalize(x, *wanted), rtol=1e-5, atol=1e-6)
    with jbn.adapting(0), pytest.raises(ValueError, match="one value per feature"):
        NORM.train(PARAMS, SOURCE, x)


def test_examples_are_counted_over_shards():
    norm = jbn.batch_norm(axis_name="d")
    with jbn.adapting(3):
        shards = X.reshape(3, 2, 5, 3)
        _, states = jax.vmap(partial(norm.train, PARAMS, SOURCE), axis_name="d")(shards)
    assert_blended(jax.tree.map(lambda a: a[1], states), blended(X, 3, 6))


@pytest.mark.parametrize(
    "norm",
    [jbn.batch_renorm(), jbn.running_batch_norm(), jbn.ghost_batch_norm(group_size=6)],
    ids=["renorm", "running", "ghost"],
)
def test_methods_infer_by_the_blend(norm):
    state = norm.init(3)[1]._replace(mean=SOURCE.mean, var=SOURCE.var, count=SOURCE.count)
    with jbn.adapting(3):
        y, adapted = norm.train(PARAMS, state, X)
    assert_blended(adapted, blended(X, 3, 6))
    np.testing.assert_allclose(y, norm.infer(PARAMS, adapted, X), rtol=1e-5, atol=1e-6)


def test_the_context_ends():
    before = NORM.train(PARAMS, SOURCE, X)
    with pytest.raises(ZeroDivisionError), jbn.adapting(3):
        raise ZeroDivisionError
    chex.assert_trees_all_equal(NORM.train(PARAMS, SOURCE, X), before)


def test_equal_contexts_share_compiled_functions():
    traces = []

    @jax.jit
    def step(x):
        traces.append(x)
        return NORM.train(PARAMS, SOURCE, x)

    for num_source in (3, 3, 4):
        with jbn.adapting(num_source):
            step(X)
    assert len(traces) == 2


def test_whole_models_adapt_layer_by_layer():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = jnp.tanh(nn.Dense(3)(x))
            return jbn.linen.BatchNorm(use_running_average=not train)(x)

    model = Network()
    variables: Any = model.init(jax.random.key(0), X, False)
    with jbn.linen.replace_batch_norm(), jbn.adapting(3):
        y, updates = model.apply(variables, X, True, mutable=["batch_stats"])
    wanted: Any = model.apply({**variables, **updates}, X, False)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    mean, var, _ = reference.moments(X)
    stats: Any = updates["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 6 / 9 * mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], 3 / 9 + 6 / 9 * var, rtol=1e-6)


def test_an_nnx_copy_adapts():
    model: Any = nnx.Sequential(
        jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)), jnp.tanh, jbn.nnx.Norm(NORM, 3)
    )
    copy = nnx.clone(model)
    with jbn.adapting(3):
        y = copy(X)
    np.testing.assert_array_equal(model.layers[0].mean[...], 0)
    mean, _, _ = reference.moments(X)
    np.testing.assert_allclose(copy.layers[0].mean[...], 6 / 9 * mean, rtol=1e-6)
    copy.eval()
    np.testing.assert_allclose(copy(X), y, rtol=1e-5, atol=1e-5)


def test_a_negative_weight_is_an_error():
    with pytest.raises(ValueError, match="num_source=-1"), jbn.adapting(-1):
        pass
