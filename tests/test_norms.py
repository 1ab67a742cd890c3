"""Batch norm: values, gradients, dtypes, masks, transformations, memory and errors."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from tests import reference
from tests.helpers import data


def trained(norm, x, mask=None, features=None):
    params, state = norm.init(features or x.shape[-1])
    return norm.train(params, state, x, mask=mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((20, 3), -1), ((4, 3, 5, 2), 1), ((4, 3, 5), (0, 2))])
@pytest.mark.usefixtures("x64")
def test_values_and_gradients_agree_with_the_oracle(shape, axis, masked):
    x, dy = data(shape, 0, 2, np.float64), data(shape, 1, dtype=np.float64)
    axes = sorted(a % len(shape) for a in np.atleast_1d(axis))
    positions = [n for a, n in enumerate(shape) if a not in axes]
    features = tuple(shape[a] for a in axes)
    mask = data(positions, 2) > -0.7 if masked else None
    scale, bias = data(features, 3, 1, np.float64), data(features, 4, dtype=np.float64)
    norm = jbn.batch_norm(axis=axis, decay=0.9)
    state = norm.init(features)[1]
    params = jbn.BatchNormParams(jnp.asarray(scale), jnp.asarray(bias))

    def run(params, x):
        y, new = norm.train(params, state, x, mask=mask)
        return y, new

    y, pull, new = jax.vjp(run, params, jnp.asarray(x), has_aux=True)
    dparams, dx = pull(jnp.asarray(dy))
    mean, var, _ = reference.moments(x, axis, mask)
    expected = reference.normalize(x, mean, var, scale, bias, axis)
    if mask is not None:
        valid = np.expand_dims(mask, axes)
        others = [a for a in range(len(shape)) if a not in axes]
        expected = np.where(valid, expected, np.expand_dims(bias, others))
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(new.mean, 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(new.var, 0.9 + 0.1 * var, rtol=1e-6)
    gradients = reference.gradients(x, scale, dy, axis, mask)
    for got, wanted in zip((dx, dparams.scale, dparams.bias), gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("use_scale", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_scale_and_bias_are_optional(use_scale, use_bias):
    norm = jbn.batch_norm(use_scale=use_scale, use_bias=use_bias)
    params, state = norm.init(3)
    assert (params.scale is not None, params.bias is not None) == (use_scale, use_bias)
    x = data((8, 3))
    y, _ = jax.jit(norm.train)(params, state, x)
    expected = reference.normalize(x, *reference.moments(x)[:2])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtypes_of_output_and_state(dtype):
    norm = jbn.batch_norm()
    x = jnp.asarray(data((64, 3), mean=4)).astype(dtype)
    y, state = trained(norm, x)
    assert y.dtype == dtype
    assert (state.mean.dtype, state.count.dtype) == (jnp.float32, jnp.float32)
    expected = reference.normalize(x, *reference.moments(x)[:2])
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2 * rounding, atol=1e-5)


def test_inference_uses_the_running_statistics_and_ignores_batch_mates():
    norm = jbn.batch_norm(decay=0.5)
    params, state = norm.init(3)
    x = data((16, 3), mean=5)
    _, state = norm.train(params, state, x)
    y = norm.infer(params, state, x)
    expected = reference.normalize(x, state.mean, state.var)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    alone = jnp.concatenate([norm.infer(params, state, x[i : i + 1]) for i in range(16)])
    np.testing.assert_array_equal(y, alone)


def test_inference_before_any_batch_is_the_affine_map():
    norm = jbn.batch_norm(epsilon=0.0)
    params, state = norm.init(3)
    x = data((4, 3), mean=5)
    np.testing.assert_array_equal(norm.infer(params, state, x), x)


def test_a_masked_batch_equals_the_compacted_batch():
    norm = jbn.batch_norm()
    x, dy = data((10, 4, 3)), data((10, 4, 3), 1)
    mask = data((10, 4), 2) > 0
    params, state = norm.init(3)
    hidden = jnp.where(mask[..., None], x, jnp.nan)

    def loss(params, x, dy, mask=None):
        y, new = norm.train(params, state, x, mask=mask)
        return jnp.sum(jnp.where(True if mask is None else mask[..., None], y * dy, 0.0)), new

    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (dparams, dx), new = grad(params, hidden, dy, mask)
    (dparams2, dx2), new2 = grad(params, jnp.asarray(x[mask]), dy[mask])
    tolerances: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(dx[mask], dx2, **tolerances)
    np.testing.assert_array_equal(dx[~mask], 0)
    chex.assert_trees_all_close((dparams, new), (dparams2, new2), **tolerances, strict=True)


def test_nothing_valid_keeps_the_state_and_uses_it():
    norm = jbn.batch_norm(decay=0.5)
    params, state = norm.init(3)
    _, state = norm.train(params, state, data((8, 3), mean=2))
    x = jnp.asarray(data((8, 3), 1))

    def loss(x):
        y, new = norm.train(params, state, x, mask=jnp.zeros(8, bool))
        return jnp.sum(y), (y, new)

    grad, (y, new) = jax.grad(loss, has_aux=True)(x)
    chex.assert_trees_all_equal(new, state, strict=True)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_batch_that_is_not_finite_shows_but_leaves_the_state(bad):
    norm = jbn.batch_norm()
    params, state = norm.init(3)
    x = data((8, 3))
    x[3, 1] = bad
    y, new = jax.jit(norm.train)(params, state, x)
    assert not np.isfinite(y[:, 1]).all()
    chex.assert_trees_all_equal(new, state, strict=True)


def test_the_state_carries_no_gradient():
    norm = jbn.batch_norm()
    params, state = norm.init(3)

    def loss(x):
        _, new = norm.train(params, state, x)
        return jnp.sum(new.mean) + jnp.sum(new.var) + jnp.sum(norm.infer(params, new, x) * 0)

    np.testing.assert_array_equal(jax.grad(loss)(jnp.asarray(data((8, 3)))), 0)


def test_vmap_over_models_equals_a_loop():
    norm = jbn.batch_norm()
    xs = data((5, 16, 3))
    params, state = jax.vmap(lambda _: norm.init(3))(jnp.arange(5))
    y, new = jax.jit(jax.vmap(norm.train))(params, state, xs)
    for i in range(5):
        one, one_state = trained(norm, xs[i])
        np.testing.assert_allclose(y[i], one, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(new.var[i], one_state.var, rtol=1e-6)


def test_scan_equals_a_loop_and_keeps_the_carry():
    norm = jbn.batch_norm(decay=jbn.corrected_decay(0.9))
    params, state = norm.init(3)
    xs = data((6, 16, 3), mean=1)

    def step(state, x):
        y, state = norm.train(params, state, x)
        return state, y

    last, ys = jax.lax.scan(step, state, xs)
    for i in range(6):
        state, y = step(state, xs[i])
        np.testing.assert_allclose(ys[i], y, rtol=1e-5, atol=1e-6)
    assert last.count == 6
    chex.assert_trees_all_close(last, state, rtol=1e-6, strict=True)


def test_checkpoint_and_forward_mode_agree_with_reverse_mode():
    norm = jbn.batch_norm()
    params, state = norm.init(3)
    x = jnp.asarray(data((8, 3)))
    weights = data((8, 3), 1)

    def loss(x):
        return jnp.sum(jnp.tanh(norm.train(params, state, x)[0]) * weights)

    grad = jax.jit(jax.grad(loss))(x)
    tolerances: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(loss)))(x), grad, **tolerances)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(loss))(x), grad, **tolerances)
    hessian = jax.jit(jax.jacfwd(jax.grad(loss)))(x).reshape(24, 24)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_reverse_mode_keeps_the_input_and_vectors(dtype):
    norm = jbn.batch_norm()
    params, state = norm.init(8)
    x = jnp.ones((16, 10, 10, 8), dtype)

    # As inside a network, x is a value of the program. An argument would live anyhow.
    @jax.jit
    def pullback(params, x):
        return jax.vjp(lambda p, x: norm.train(p, state, x * 2)[0], params, x)[1]

    pull = pullback(params, x)
    kept = {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.tree.leaves(pull)}
    assert x.nbytes <= sum(kept.values()) <= x.nbytes + 6 * 8 * 4 + 64


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda n, p, s: n.train(p, s, jnp.ones((4, 5))), ValueError, r"mean has shape \(3,\)"),
        (lambda n, p, s: n.train(p, s, jnp.ones((4, 3), jnp.int32)), TypeError, "int32"),
        (lambda n, p, s: n.train(p, s, jnp.ones((4, 3), jnp.complex64)), TypeError, "complex64"),
        (lambda n, p, s: n.train(p, s, jnp.ones((1, 3))), ValueError, "one value per feature"),
        (lambda n, p, s: n.train(p, s, jnp.ones((4, 3)), mask=jnp.ones(4)), TypeError, "mask"),
        (
            lambda n, p, s: n.train(p, s, jnp.ones((4, 3)), mask=jnp.ones(5, bool)),
            ValueError,
            r"mask of shape \(5,\)",
        ),
        (
            lambda *_: jbn.batch_norm(axis=2).train(*jbn.batch_norm().init(3), jnp.ones((4, 3))),
            ValueError,
            "axis=2",
        ),
        (
            lambda *_: trained(jbn.batch_norm(axis_name="b"), jnp.ones((4, 3))),
            NameError,
            "axis_name='b'",
        ),
        (lambda *_: jbn.batch_norm(decay=1.5), ValueError, "decay=1.5"),
        (lambda *_: jbn.batch_norm(epsilon=-1.0), ValueError, "epsilon=-1.0"),
        (lambda *_: jbn.moments(jnp.ones((4, 3)), axis=(0, -2)), ValueError, "repeats"),
        (lambda n, *_: n.init((4, 3)), ValueError, r"num_features=\(4, 3\) .* pass x.shape\[-1\]"),
        (
            lambda *_: jbn.batch_norm(axis=(1, 2)).init(3),
            ValueError,
            r"num_features=3 .* axis=\(1, 2\): pass \(x.shape\[1\], x.shape\[2\]\)",
        ),
        (
            lambda n, p, s: n.train(s, p, jnp.ones((4, 3))),
            TypeError,
            "BatchNormState as params and BatchNormParams as state.* norm.init returns",
        ),
        (
            lambda n, p, s: n.infer(s, p, jnp.ones((4, 3))),
            TypeError,
            "BatchNormState as params and BatchNormParams as state",
        ),
        (
            lambda n, p, s: n.train(p._replace(bias=None), s, jnp.ones((4, 3))),
            ValueError,
            "params.bias is None, but the norm learns a bias: .* use_bias=False",
        ),
        (
            lambda n, p, s: jbn.batch_norm(use_scale=False, use_bias=False).train(
                s, p, jnp.ones((4, 3))
            ),
            TypeError,
            "BatchNormState as params and BatchNormParams as state",
        ),
    ],
)
def test_errors_name_what_is_wrong(call, error, words):
    norm = jbn.batch_norm()
    with pytest.raises(error, match=words):
        call(norm, *norm.init(3))


@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 3_400), (jnp.bfloat16, 1_800)])
def test_the_backward_pass_keeps_x_in_its_own_dtype_and_a_few_vectors(dtype, limit):
    norm = jbn.batch_norm()
    params, state = norm.init(8)

    def pull(params, x):
        return jax.vjp(lambda params, x: norm.train(params, state, x)[0], params, x)[1]

    x = jax.ShapeDtypeStruct((4, 5, 5, 8), dtype)
    kept = jax.tree.leaves(jax.eval_shape(pull, params, x))
    assert x.size * x.dtype.itemsize < sum(a.size * a.dtype.itemsize for a in kept) <= limit
