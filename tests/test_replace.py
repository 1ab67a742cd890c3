"""Models of others on jbn without an edit, by `replace_batch_norm` of Linen and NNX."""

import functools
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
from tests.helpers import data

X = data((8, 6, 3), mean=1)


class LinenModel(nn.Module):
    """Flax's norms in the ways that models use them: with and without scale, named and not."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(5)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.8)(x))
        x = nn.Dense(4)(x)
        norm = nn.BatchNorm(use_scale=False, epsilon=1e-3, axis=1, name="last")
        return norm(x, use_running_average=not train)


def linen_variables():
    variables = LinenModel().init(jax.random.key(0), X, True)
    _, updates = LinenModel().apply(variables, 2 * X, True, mutable=["batch_stats"])
    return {**variables, **updates}


def linen_step(params, batch_stats, x):
    """Value, gradients and new statistics of a loss."""

    def loss(params):
        variables = {"params": params, "batch_stats": batch_stats}
        y, updates = LinenModel().apply(variables, x, True, mutable=["batch_stats"])
        return jnp.sum(jnp.cos(y)), updates["batch_stats"]

    return jax.value_and_grad(loss, has_aux=True)(params)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 5, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(5, momentum=0.8, rngs=rngs)])
        self.last = nnx.BatchNorm(5, use_scale=False, epsilon=1e-3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norms[0](self.dense(x))))


def nnx_model() -> Any:
    model = NnxModel(nnx.Rngs(0))
    model(2 * X)
    return model


# As close as float32 sums in another order.
assert_close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-5)


def test_linen_gives_flaxs_values_gradients_statistics_and_tree():
    variables = linen_variables()
    expected = linen_step(**variables, x=X)
    with jbn.linen.replace_batch_norm():
        actual = linen_step(**variables, x=X)
        y = LinenModel().apply(variables, X, False)
    assert_close(actual, expected)
    assert_close(y, LinenModel().apply(variables, X, False))


def test_linen_keeps_less_for_the_backward_pass():
    variables = linen_variables()

    def kept():
        def f(params, x):
            y, _ = LinenModel().apply({**variables, "params": params}, x, True, mutable=True)
            return y

        return jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], variables["params"], X)

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    flaxs = size(kept())
    with jbn.linen.replace_batch_norm():
        ours = size(kept())
    assert ours < 0.75 * flaxs


def test_linen_compiled_functions_notice():
    variables = linen_variables()
    step = jax.jit(linen_step)

    def program():
        return step.lower(**variables, x=X).as_text()

    plain = program()
    with jbn.linen.replace_batch_norm():
        replaced = program()
        other = jbn.linen.replace_batch_norm(jbn.batch_norm(use_scale=False))
        with other, pytest.raises(ValueError, match="use_scale=True"):
            program()
        assert program() == replaced
    assert program() == plain != replaced


class OneNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train, name="norm")(x)


def test_linen_runs_any_method_and_keeps_its_own_state():
    norm = jbn.running_batch_norm()
    variables = OneNorm().init(jax.random.key(0), X, True)
    params, state = norm.init(3)
    with jbn.linen.replace_batch_norm(norm):
        for x in (X, X + 1, 3 * X):
            y, updates = OneNorm().apply(variables, x, True, mutable=["batch_stats"])
            variables = {**variables, **updates}
            expected, state = norm.train(params, state, x)
            np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    assert_close(variables["batch_stats"]["norm"], state._asdict())


def test_nnx_gives_flaxs_values_gradients_statistics_and_leaves_the_model_alone():
    model = nnx_model()
    before = jax.tree.map(jnp.copy, nnx.state(model))
    ours = jbn.nnx.replace_batch_norm(model)

    def step(model):
        return nnx.value_and_grad(lambda model: jnp.sum(jnp.cos(model(X))))(model)

    actual = step(ours)
    chex.assert_trees_all_equal(nnx.state(model), before)
    expected = step(model)
    assert_close(actual, expected)
    assert_close(nnx.state(ours), nnx.state(model))
    assert type(ours.norms[0]) is type(ours.last) is jbn.nnx.BatchNorm
    model.eval()
    ours.eval()
    assert_close(ours(X), model(X))


def test_nnx_runs_any_method():
    model: Any = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    model(2 * X)
    norm = jbn.ghost_batch_norm(group_size=4)
    params, state = norm.init(3)
    state = state._replace(mean=model.layers[0].mean[...], var=model.layers[0].var[...])
    converted: Any = jbn.nnx.replace_batch_norm(model, norm)
    expected, state = norm.train(params, state, X)
    np.testing.assert_allclose(converted(X), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(converted.layers[0].mean[...], state.mean, rtol=1e-6)


def test_nnx_refuses_a_norm_that_learns_something_else():
    with pytest.raises(ValueError, match="use_scale=False"):
        jbn.nnx.replace_batch_norm(nnx_model(), jbn.batch_norm())
