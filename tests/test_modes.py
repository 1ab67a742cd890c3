"""Every method gives the same results in every mode of JAX as under jit on one device."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
from tests.helpers import data, eager_step, eight_shards, sharded_step, slow_but_for, step

METHODS = {
    "batch_norm": jbn.batch_norm(decay=0.5),
    "ghost_batch_norm": jbn.ghost_batch_norm(group_size=4, decay=0.5),
    "inplace_batch_norm": jbn.inplace_batch_norm(decay=jbn.corrected_decay(0.5)),
    "batch_renorm": jbn.batch_renorm(decay=0.5),
    "running_batch_norm": jbn.running_batch_norm(),
    "frozen": jbn.frozen(jbn.batch_norm()),
    "frozen_half": jbn.frozen(jbn.batch_norm(decay=0.5), use_running=True, update=True),
}
X, DY = data((16, 3, 4), mean=3), data((16, 3, 4), 1)
MASK = data((16, 3), 2) > -0.5
MASK[2:4] = False


@pytest.fixture(params=METHODS, scope="module")
def norm(request):
    return METHODS[request.param]


slow_but_for_one = pytest.mark.parametrize(
    "norm", slow_but_for(["batch_norm"], METHODS), indirect=True
)
"""In modes that take long to compile, the tests of all other norms are marked as slow."""


@functools.cache
def alone(norm):
    """Returns the results of a training step and of inference."""
    params, state = norm.init(4)
    y, new, gradients = step(norm, params, state, X, DY, MASK)
    return y, new, gradients, norm.infer(params, new, X, mask=MASK)


def assert_same(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def over_shards(norm):
    if isinstance(norm, jbn.frozen):
        return dataclasses.replace(norm, norm=over_shards(norm.norm))
    return dataclasses.replace(norm, axis_name="d")


def test_vmap(norm):
    inputs = (*norm.init(4), X, DY, MASK)
    out = jax.vmap(functools.partial(step, norm))(
        *jax.tree.map(lambda a: np.stack([a] * 2), inputs)
    )
    for model in (0, 1):
        assert_same(jax.tree.map(lambda a, model=model: a[model], out), alone(norm)[:3])


@pytest.mark.parametrize("check_vma", slow_but_for([True], [True, False]))
def test_shard_map(norm, check_vma):
    train = jax.jit(sharded_step(over_shards(norm), eight_shards(), check_vma))
    assert_same(train(*norm.init(4), X, DY, MASK), alone(norm)[:3])


@slow_but_for_one
def test_pmap(norm):
    def local(params, state, x, dy, mask):
        y, new, (dparams, dx) = step(over_shards(norm), params, state, x, dy, mask)
        return y, new, (jax.lax.psum(dparams, "d"), dx)

    arrays = [a.reshape(8, 2, *a.shape[1:]) for a in (X, DY, MASK)]
    y, new, (dparams, dx) = jax.pmap(local, "d", in_axes=(None, None, 0, 0, 0))(
        *norm.init(4), *arrays
    )
    new, dparams = jax.tree.map(lambda a: a[0], (new, dparams))
    assert_same((y.reshape(X.shape), new, (dparams, dx.reshape(X.shape))), alone(norm)[:3])


@slow_but_for_one
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "spec", [P("data"), P(None, None, "model"), P("data", None, "model")], ids=str
)
def test_sharded_jit(norm, kind, spec):
    """Parameters and state are replicated, and the new state is replicated, too."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), (kind, kind))
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        params, state = jax.device_put(norm.init(4), NamedSharding(mesh, P()))
        mask = jax.device_put(MASK, NamedSharding(mesh, P(*spec[:2])))
        out = step(norm, params, state, place(X), place(DY), mask)
        y = jax.jit(norm.infer)(params, out[1], place(X), mask=mask)
    assert_same((*out, y), alone(norm))
    if kind is AxisType.Explicit:
        assert all(jax.typeof(leaf).sharding.spec == P() for leaf in out[1] if not leaf.ndim)
        assert out[0].sharding.is_equivalent_to(place(X).sharding, 3)


@slow_but_for_one
@pytest.mark.parametrize("spec", [P("data"), P(None, None, "data")], ids=str)
@pytest.mark.parametrize("context", [jax.set_mesh, contextlib.nullcontext], ids=["set", "unset"])
def test_explicit_meshes_take_states_from_outside_of_them(norm, spec, context):
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Explicit,))
    params, state = norm.init(4)
    with context(mesh):
        x, dy = jax.device_put((X, DY), NamedSharding(mesh, spec))
        mask = jax.device_put(MASK, NamedSharding(mesh, P(*spec[:2])))
        out = step(norm, params, state, x, dy, mask)
        again = step(norm, params, out[1], x, dy, mask)
    twice = step(norm, params, jax.device_get(out[1]), X, DY, MASK)
    assert_same((*out, *again), (*alone(norm)[:3], *twice))


@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function], ids=["jit", "eager"])
@pytest.mark.parametrize(
    "function",
    [
        lambda state, batch: jbn.update(state, batch, decay=0.9),
        lambda state, batch: jbn.adapt(state, batch, num_source=4),
    ],
    ids=["update", "adapt"],
)
def test_building_blocks_take_states_from_outside_of_an_explicit_mesh(function, wrap):
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Explicit,))
    _, state = jbn.batch_norm().init(4)
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    sharded = wrap(function)(state, jbn.moments(x))
    assert_same(sharded, function(state, jbn.moments(X)))


@slow_but_for_one
def test_hidden_values_are_never_computed_with(norm):
    hidden = jnp.where(MASK[..., None], X, np.nan)
    params, state = norm.init(4)

    def run(params, state, x):
        out = step(norm, params, state, x, DY, MASK)
        return *out, norm.infer(params, out[1], x, mask=MASK)

    error, out = checkify.checkify(jax.jit(run), checkify.float_checks)(params, state, hidden)
    error.throw()
    assert_same(out, alone(norm))
    with jax.debug_nans(True), jax.debug_infs(True):
        out = jax.jit(run)(params, state, hidden)
        eager = eager_step(norm, params, state, hidden, DY, MASK)
        jax.block_until_ready((out, eager, norm.infer(params, state, hidden, mask=MASK)))
    assert_same(out, alone(norm))
    assert_same(eager, alone(norm)[:3])


@slow_but_for_one
@pytest.mark.parametrize(
    "mode", [jax.checking_leaks, functools.partial(jax.enable_x64, True)], ids=["leaks", "x64"]
)
def test_checked_modes(norm, mode):
    with mode():
        out = step(norm, *norm.init(4), X, DY, MASK)
        assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {np.dtype(np.float32)}
    assert_same(out, alone(norm)[:3])
