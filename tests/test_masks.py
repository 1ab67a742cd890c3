"""The shapes of masks, and batches with few valid values or none."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from tests import reference
from tests.helpers import data, step

NORMS = [
    jbn.batch_norm(),
    jbn.ghost_batch_norm(group_size=4),
    jbn.inplace_batch_norm(activation=jbn.activations.identity()),
    jbn.batch_renorm(),
    jbn.running_batch_norm(),
    jbn.frozen(jbn.batch_norm(), use_running=False, update=True),
]
every_norm = pytest.mark.parametrize("norm", NORMS, ids=str)


@pytest.mark.parametrize("axis", [-1, 1, (1, 3)])
@pytest.mark.parametrize("which", ["examples", "positions", "rows", "of x"])
def test_every_shape_of_a_mask(axis, which):
    """A mask of rank 1 marks examples, even if another axis has the same size."""
    x = data((4, 4, 4, 4), mean=2)
    axes = {a % 4 for a in np.atleast_1d(axis)}
    positions = [4] * (4 - len(axes))
    shape = {
        "examples": [4],
        "positions": positions,
        "rows": [4, 1, 1][: len(positions)],
        "of x": [1 if a in axes else 4 for a in range(4)],
    }[which]
    mask = np.random.default_rng(1).random(shape) > 0.4
    full = mask.reshape([4] + [1] * (len(positions) - 1)) if which == "examples" else mask
    full = np.broadcast_to(full.reshape(positions) if which == "of x" else full, positions)
    mean, var = reference.moments(x, axis, full)[:2]
    batch = jbn.moments(x, axis, mask=mask)
    np.testing.assert_allclose(batch.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch.var, var, rtol=1e-5)
    norm = jbn.batch_norm(axis=axis)
    params, state = norm.init(batch.mean.shape)
    params = params._replace(bias=jnp.full(batch.mean.shape, 7.0))
    hidden = ~np.broadcast_to(np.expand_dims(full, tuple(axes)), x.shape)
    for y in (norm.train(params, state, x, mask=mask)[0], norm.infer(params, state, x, mask=mask)):
        np.testing.assert_array_equal(np.asarray(y)[hidden], 7)
        assert not np.any(np.asarray(y)[~hidden] == 7)


@pytest.mark.parametrize("shape", [(), (3,), (1, 5), (4, 5, 6, 3), (4, 5, 2, 1), (1, 4, 5, 6)])
def test_a_mask_of_another_shape_is_an_error_that_names_the_right_ones(shape):
    x, mask = data((4, 5, 6, 3)), np.ones(shape, bool)
    words = f"mask of shape {shape} does not fit x of shape (4, 5, 6, 3)"
    for f in (jbn.moments, functools.partial(jbn.batch_norm().train, *jbn.batch_norm().init(3))):
        with pytest.raises(ValueError, match=re.escape(words)):
            f(x, mask=mask)


@every_norm
@pytest.mark.parametrize("valid", [0, 1])
def test_too_few_values_behind_a_mask_normalize_as_in_inference(norm, valid):
    """Running batch norm is an exception, because it takes one value."""
    params, state = norm.init(3)
    state = norm.train(params, state, data((8, 3), 1, 5))[1]
    x, mask = data((4, 3)), np.arange(4) < valid
    y, new, gradients = step(norm, params, state, x, np.ones_like(x), mask)
    if valid and isinstance(norm, jbn.running_batch_norm):
        assert new.count == state.count + 1
        return
    np.testing.assert_array_equal(y, norm.infer(params, state, x, mask=mask))
    jax.tree.map(np.testing.assert_array_equal, new, state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_ghost_group_with_one_valid_value_normalizes_as_in_inference():
    norm = jbn.ghost_batch_norm(group_size=2)
    params, state = norm.init(1)
    x, mask = data((4, 1), mean=5), np.array([True, False, True, True])
    y, _ = norm.train(params, state, x, mask=mask)
    np.testing.assert_array_equal(y[:2], norm.infer(params, state, x, mask=mask)[:2])
    np.testing.assert_allclose(np.mean(y[2:]), 0, atol=1e-5)


def test_one_value_does_not_move_statistics_by_hand():
    _, state = jbn.batch_norm().init(2)
    one = jbn.moments(jnp.ones((1, 2)))
    jax.tree.map(np.testing.assert_array_equal, jbn.update(state, one, 0.5), state)
