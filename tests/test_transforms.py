"""State and gradients through the transformations of JAX, Linen and NNX."""

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
from tests import reference
from tests.helpers import data, eager_step

X = data((6, 16, 3), mean=2)


def start(models=()):
    norm = jbn.batch_norm(decay=0.9)
    params, state = jax.tree.map(lambda a: jnp.broadcast_to(a, (*models, *a.shape)), norm.init(3))
    return norm, params, state


def at(tree, *index):
    return jax.tree.map(lambda a: a[index], tree)


assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def test_nested_vmap_equals_loops():
    norm, params, state = start((2, 3))
    x = X.reshape(2, 3, 16, 3)
    y, new = jax.vmap(jax.vmap(norm.train))(params, state, x)
    for i in range(2):
        for j in range(3):
            expected = norm.train(at(params, i, j), at(state, i, j), x[i, j])
            assert_close((y[i, j], at(new, i, j)), expected)


def test_models_with_masks_of_their_own_under_vmap():
    norm, params, state = start((6,))
    mask = data((6, 16), 1) > 0
    mask[2] = False
    y, new = jax.vmap(lambda p, s, x, m: norm.train(p, s, x, mask=m))(params, state, X, mask)
    for i in range(6):
        expected = norm.train(at(params, i), at(state, i), X[i], mask=mask[i])
        assert_close((y[i], at(new, i)), expected)


def test_donated_state_and_eval_shape():
    norm, params, state = start()
    expected = norm.train(params, state, X[0])
    shapes = jax.eval_shape(norm.train, params, state, X[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(expected, shapes)
    donating = jax.jit(norm.train, donate_argnums=1)
    assert_close(donating(params, jax.tree.map(jnp.copy, state), X[0]), expected)


def test_checkpoint_updates_the_state_once():
    norm, params, state = start()

    def loss(params, state, x):
        y, state = norm.train(params, state, x)
        return jnp.sum(jnp.sin(y)), state

    plain = jax.grad(loss, has_aux=True)(params, state, X[0])
    remat = jax.grad(jax.checkpoint(loss), has_aux=True)(params, state, X[0])
    assert_close(remat, plain)
    assert remat[1].count == 1


class Layer(nn.Module):
    """A dense layer, a norm and a nonlinearity, in the form that `nn.scan` expects."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(3, kernel_init=nn.initializers.orthogonal())(x)
        norm = jbn.linen.BatchNorm(use_running_average=not train, axis_name=self.axis_name)
        return nn.tanh(norm(x)), None


def test_linen_scan_over_layers_equals_a_loop():
    scanned = nn.scan(
        Layer, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=4
    )()
    variables = scanned.init(jax.random.key(0), X[0])
    (y, _), updates = scanned.apply(variables, X[0], mutable=["batch_stats"])
    x: Any = X[0]
    for i in range(4):
        (x, _), new = Layer().apply(at(variables, i), x, mutable=["batch_stats"])
        assert_close(at(updates, i), new)
    assert_close(y, x)


def test_linen_remat_equals_the_plain_layer():
    variables = Layer().init(jax.random.key(0), X[0])

    def loss(module):
        def run(params):
            (y, _), updates = module.apply(
                {**variables, "params": params}, X[0], mutable=["batch_stats"]
            )
            return jnp.sum(y**3), updates

        return jax.grad(run, has_aux=True)(variables["params"])

    assert_close(loss(nn.remat(Layer)()), loss(Layer()))


@pytest.mark.parametrize("axis_name", [None, "models"])
def test_linen_vmap_over_models(axis_name):
    """With an axis name the models share their statistics."""
    mapped = nn.vmap(
        Layer,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        axis_name=axis_name,
    )(axis_name)
    variables = mapped.init(jax.random.key(0), X)
    (y, _), updates = mapped.apply(variables, X, mutable=["batch_stats"])
    stats: Any = updates["batch_stats"]
    if axis_name:
        var = stats["BatchNorm_0"]["var"]
        np.testing.assert_allclose(var, jnp.broadcast_to(var[0], var.shape), rtol=1e-6)
        return
    for i in range(6):
        (one, _), new = Layer().apply(at(variables, i), X[i], mutable=["batch_stats"])
        assert_close((y[i], at(updates, i)), (one, new))


def test_nnx_vmap_over_models_in_training():
    @nnx.split_rngs(splits=6)
    @nnx.vmap
    def create(rngs):
        return jbn.nnx.BatchNorm(3, momentum=0.9, rngs=rngs)

    models = create(nnx.Rngs(0))
    y = nnx.jit(nnx.vmap(lambda model, x: model(x)))(models, X)
    norm, params, state = start((6,))
    expected, new = jax.vmap(norm.train)(params, state, X)
    assert_close((y, models.mean[...], models.var[...]), (expected, new.mean, new.var))


def test_nnx_scan_remat_and_eval_shape():
    model = jbn.nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))

    @nnx.scan(in_axes=(nnx.Carry, 0))
    def steps(model, x):
        return model, nnx.remat(lambda model, x: model(x))(model, x)

    _, y = steps(model, X)
    norm, params, state = start()
    for i in range(6):
        expected, state = norm.train(params, state, X[i])
        assert_close(y[i], expected)
    assert_close((model.mean[...], model.var[...]), (state.mean, state.var))
    abstract = nnx.eval_shape(lambda: jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    assert abstract.mean.get_value().shape == (3,)


def test_nnx_gradients_and_state_in_one_step():
    model = jbn.nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
    grads = nnx.jit(nnx.grad(lambda model, x: jnp.sum(model(x) ** 3)))(model, X[0])
    norm, params, state = start()

    def loss(params):
        y, new = norm.train(params, state, X[0])
        return jnp.sum(y**3), new

    expected, new = jax.grad(loss, has_aux=True)(params)
    assert_close((grads["scale"][...], grads["bias"][...]), (expected.scale, expected.bias))
    assert_close((model.mean[...], model.var[...]), (new.mean, new.var))


@pytest.mark.parametrize("static", [False, True])
def test_equal_norms_are_traced_once(static):
    """A norm is hashable and a pytree without leaves, so it may be a static argument or not."""
    chex.clear_trace_counter()
    traced_once: Any = jax.jit(
        chex.assert_max_traces(eager_step, n=1), static_argnums=(0,) if static else ()
    )
    params, state = start()[1:]
    for i, x in enumerate(X):
        norm = jbn.batch_norm(decay=(0.5, np.float32(0.5), jnp.float32(0.5))[i % 3])
        y, state, _ = traced_once(norm, params, state, x, np.ones_like(x))
        assert y.shape == x.shape
    assert state.count == len(X)
    with pytest.raises(AssertionError, match="traced"):
        traced_once(jbn.batch_norm(decay=0.25), params, state, X[0], np.ones_like(X[0]))


every_variant: Any = chex.variants(with_jit=True, without_jit=True, with_pmap=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pmap's own.
class VariantsTest(chex.TestCase):
    """Op by op, compiled, and mapped over devices, a norm agrees with the formulas."""

    variant: Any  # pyright: ignore[reportIncompatibleMethodOverride]

    @every_variant
    def test_training(self):
        norm, params, state = start()
        y, new = self.variant(norm.train)(params, state, X[0])
        mean, var, _ = reference.moments(X[0])
        np.testing.assert_allclose(y, reference.normalize(X[0], mean, var), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new.mean, 0.1 * mean, rtol=1e-6)
        np.testing.assert_allclose(new.var, 0.9 + 0.1 * var, rtol=1e-6)
        chex.assert_trees_all_equal_shapes_and_dtypes((y, new), (jnp.asarray(X[0]), state))

    @every_variant
    def test_inference(self):
        norm, params, state = start()
        state = state._replace(mean=jnp.float32([1, -1, 0]), var=jnp.float32([4, 1, 2]))
        y = self.variant(norm.infer)(params, state, X[0])
        expected = reference.normalize(X[0], state.mean, state.var)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        assert (y.shape, y.dtype) == (X[0].shape, X[0].dtype)
