"""Groups of examples: whole, ragged, and smaller or larger than the examples of a device."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
from tests import reference
from tests.helpers import collectives, data, eight_shards, sharded_step, slow_but_for, step

X = data((24, 2, 3), 0, 2) + np.arange(24, dtype=np.float32)[:, None, None]
DY = data((24, 2, 3), 1)
MASK = data((24, 2), 2) > -0.5
MASK[8:12] = False  # A group of 4 without valid elements, and half of a group of 8.
SCALE = np.array([0.5, 1, 2], np.float32)


PARAMS, STATE = jbn.batch_norm().init(3)
PARAMS = PARAMS._replace(scale=jnp.asarray(SCALE))
assert_close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-5, strict=True)


def one_device(group_size):
    return step(jbn.ghost_batch_norm(group_size=group_size), PARAMS, STATE, X, DY, MASK)


@pytest.mark.parametrize("group_size", [4, 5, 7, 8, 24, 100])
def test_each_group_is_a_batch(group_size):
    y, state, (dparams, dx) = one_device(group_size)
    dscales = []
    for first in range(0, 24, group_size):
        part = slice(first, first + group_size)
        if not MASK[part].any():
            np.testing.assert_allclose(y[part], 0)
            np.testing.assert_array_equal(dx[part], 0)
            continue
        mean, var, _ = reference.moments(X[part], mask=MASK[part])
        expected = reference.normalize(X[part], mean, var, SCALE)
        np.testing.assert_allclose(y[part], np.where(MASK[part, :, None], expected, 0), atol=2e-5)
        gradients = reference.gradients(X[part], SCALE, DY[part], mask=MASK[part])
        np.testing.assert_allclose(dx[part], gradients[0], rtol=1e-4, atol=2e-5)
        dscales.append(gradients[1])
    np.testing.assert_allclose(dparams.scale, sum(dscales), rtol=1e-5, atol=1e-5)
    mean, var, _ = reference.moments(X, mask=MASK)
    np.testing.assert_allclose(state.mean, 0.01 * mean, rtol=1e-5)
    np.testing.assert_allclose(state.var, 0.99 + 0.01 * var, rtol=1e-6)


def test_one_group_is_batch_norm():
    wanted = step(jbn.batch_norm(), PARAMS, STATE, X, DY, MASK)
    assert_close(one_device(24), wanted)


@pytest.mark.parametrize("check_vma", slow_but_for([True], [False, True]))
@pytest.mark.parametrize("group_size", slow_but_for([4, 6], [1, 3, 4, 6, 16, 24]))
def test_groups_do_not_depend_on_the_number_of_shards(group_size, check_vma):
    """Each of 8 shards holds 3 examples: less than a group, one group, more, or parts of groups."""
    norm = jbn.ghost_batch_norm(group_size=group_size, axis_name="d")
    arguments = PARAMS, STATE, X, DY, MASK
    f = jax.jit(sharded_step(norm, eight_shards(), check_vma))
    compiled = f.lower(*arguments).compile()
    assert_close(compiled(*arguments), one_device(group_size))
    # There is one forward, and one backward, which also sums the parameters' gradients.
    assert collectives(compiled) == 2


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("group_size", slow_but_for([4], [4, 16]))
def test_sharded_jit(group_size, kind):
    mesh = eight_shards(kind)
    vectors = jax.device_put((PARAMS, STATE), NamedSharding(mesh, P()))
    arrays = jax.device_put((X, DY, MASK), NamedSharding(mesh, P("d")))
    norm = jbn.ghost_batch_norm(group_size=group_size)
    with jax.set_mesh(mesh):
        actual = step(norm, *vectors, *arrays)
    assert_close(actual, one_device(group_size))


@pytest.mark.parametrize("axis", [0, 1, (0, 2)])
def test_examples_lie_on_the_first_axis_that_is_no_feature_axis(axis):
    axes = (axis,) if isinstance(axis, int) else axis
    x = np.moveaxis(data((8, 2, 3, 4), 3), 0, min({0, 1, 2} - set(axes)))
    examples = min({0, 1, 2} - set(axes))
    norm = jbn.ghost_batch_norm(group_size=4, axis=axis)
    params, state = norm.init(tuple(x.shape[a] for a in axes))
    y, _ = norm.train(params, state, x)
    parts = np.split(x, 2, axis=examples)
    expected = [reference.normalize(p, *reference.moments(p, axis)[:2], axis=axis) for p in parts]
    np.testing.assert_allclose(y, np.concatenate(expected, examples), atol=2e-5)


def test_offsets_between_and_within_groups():
    x = data((64, 3), 4).astype(np.float32) + 1e4
    norm = jbn.ghost_batch_norm(group_size=8, decay=0)
    _, state = norm.train(*norm.init(3), x)
    np.testing.assert_allclose(state.var, reference.moments(x)[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({"group_size": 0}, (4, 3), "group_size=0 must be a positive"),
        ({"group_size": 2, "axis_name": "d", "axis_index_groups": [[0, 1]]}, (4, 3), "choose one"),
        ({"group_size": 1}, (4, 3), "one value per feature on axis=-1 in a group of group_size=1"),
        ({"group_size": 4}, (9, 3), "in a group of group_size=4"),
    ],
)
def test_errors(options, shape, words):
    def run():
        norm = jbn.ghost_batch_norm(**options)
        norm.train(*norm.init(3), data(shape))

    with pytest.raises(ValueError, match=words):
        run()


def test_a_group_needs_an_axis_of_examples():
    norm = jbn.ghost_batch_norm(group_size=2, axis_name="d")
    train = jax.vmap(lambda x: norm.train(*norm.init(3), x), axis_name="d")
    with pytest.raises(ValueError, match="no axis of examples"):
        train(data((4, 3)))
