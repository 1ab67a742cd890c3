"""One device and eight shards give the same values, state and gradients, with unequal masks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
from tests.helpers import (
    DY,
    MASK,
    X,
    collectives,
    data,
    eight_shards,
    one_device,
    sharded_step,
    slow_but_for,
    step,
)

assert_same = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=2e-5, strict=True)

masked_on_platform = pytest.mark.parametrize(
    ("masked", "platform"),
    [(False, "cpu"), (True, "cpu"), (True, "gpu"), (True, "tpu")],
    indirect=["platform"],
)


def in_shards(*arrays):
    """Returns arrays with an axis of eight shards in front."""
    return [a.reshape(8, 4, *a.shape[1:]) for a in arrays]


def joined(array):
    return array.reshape(-1, *array.shape[2:])


@masked_on_platform
@pytest.mark.parametrize("check_vma", slow_but_for([True], [False, True]))
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_shard_map(masked, platform, check_vma, axis_type):
    norm = jbn.batch_norm(decay=0.5, axis_name="d")
    mesh = eight_shards(axis_type)
    mask = MASK if masked else np.ones_like(MASK)
    params, state = jax.device_put(norm.init(3), NamedSharding(mesh, P()))
    arrays = jax.device_put((X, DY, mask), NamedSharding(mesh, P("d")))
    got = jax.jit(sharded_step(norm, mesh, check_vma))(params, state, *arrays)
    assert_same(got, one_device(X, DY, mask))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pmap's own.
@pytest.mark.parametrize("map_", [jax.pmap, jax.vmap])
def test_pmap_and_vmap(map_):
    norm = jbn.batch_norm(decay=0.5, axis_name="d")
    params, state = norm.init(3)

    def local(x, dy, mask):
        y, new, (dparams, dx) = step(norm, params, state, x, dy, mask)
        return y, new, (jax.lax.psum(dparams, "d"), dx)

    y, new, (dparams, dx) = map_(local, axis_name="d")(*in_shards(X, DY, MASK))
    new, dparams = jax.tree.map(np.asarray, (new, dparams))
    first = jax.tree.map(lambda a: a[0], (new, dparams))
    repeated = jax.tree.map(lambda a: np.broadcast_to(a, (8, *a.shape)), first)
    chex.assert_trees_all_equal((new, dparams), repeated, strict=True)
    assert_same((joined(y), first[0], (first[1], joined(dx))), one_device())


def test_vmap_with_a_tuple_of_axis_names():
    norm = jbn.batch_norm(decay=0.5, axis_name=("a", "b"))
    params, state = norm.init(3)
    train = functools.partial(norm.train, params, state)
    f = jax.vmap(jax.vmap(lambda x: train(x), axis_name="b"), axis_name="a")
    y, new = f(X.reshape(2, 4, 4, 5, 3))
    new = jax.tree.map(lambda a: a[0, 0], new)
    assert_same((y.reshape(X.shape), new), one_device(mask=None)[:2])


@pytest.mark.parametrize("mapped", ["pmap", "vmap", "shard_map", "shard_map_vma"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pmap's own.
def test_groups_are_batches_of_their_own(mapped):
    groups = [[0, 3, 5, 6], [1, 2, 4, 7]]
    norm = jbn.batch_norm(decay=0.5, axis_name="d", axis_index_groups=groups)
    params, state = norm.init(3)

    def local(x, dy, mask):
        y, _, (_, dx) = step(norm, params, state, x, dy, mask)
        return y, dx

    shards = in_shards(X, DY, MASK)
    if mapped in ("pmap", "vmap"):
        y, dx = getattr(jax, mapped)(local, axis_name="d")(*shards)
    else:
        f = jax.shard_map(
            local,
            mesh=eight_shards(),
            in_specs=P("d"),
            out_specs=P("d"),
            check_vma=mapped.endswith("vma"),
        )
        y, dx = (a.reshape(8, 4, 5, 3) for a in jax.jit(f)(X, DY, MASK))
    for group in groups:
        x1, dy1, mask1 = (a[np.array(group)].reshape(16, *a.shape[2:]) for a in shards)
        wanted, _, (_, dx1) = one_device(x1, dy1, mask1)
        got = [joined(np.asarray(a)[np.array(group)]) for a in (y, dx)]
        assert_same(got, [wanted, dx1])


@masked_on_platform
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_jit_is_global_by_itself(masked, platform, axis_type):
    norm = jbn.batch_norm(decay=0.5)
    mesh = eight_shards(axis_type)
    params, state = jax.device_put(norm.init(3), NamedSharding(mesh, P()))
    x, dy, mask = jax.device_put((X, DY, MASK), NamedSharding(mesh, P("d")))
    mask = mask if masked else None
    with jax.set_mesh(mesh):
        got = step(norm, params, state, x, dy, mask)
    assert_same(got, one_device(mask=MASK if masked else None))


def test_one_collective_forward_and_one_backward():
    norm = jbn.batch_norm(axis_name="d")
    params, state = norm.init(3)
    mesh = eight_shards()

    def forward(x):
        return norm.train(params, state, x)

    def backward(x, dy):
        return jax.vjp(lambda x: norm.train(params, state, x)[0], x)[1](dy)[0]

    one = jax.shard_map(forward, mesh=mesh, in_specs=P("d"), out_specs=(P("d"), P()))
    two = jax.shard_map(backward, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    assert collectives(jax.jit(one).lower(X).compile()) == 1
    assert collectives(jax.jit(two).lower(X, DY).compile()) == 2


@pytest.mark.parametrize("make", [jbn.batch_norm, jbn.inplace_batch_norm, jbn.batch_renorm])
def test_one_collective_each_way_as_traced(make):
    """They are counted before a compiler joins any. The second sums all gradients of parameters."""
    norm = make(axis_name="d")
    params, state = norm.init(3)

    def backward(params, x, dy):
        return jax.vjp(lambda *inputs: norm.train(inputs[0], state, inputs[1])[0], params, x)[1](dy)

    mesh = eight_shards()
    specs = P(), P("d")
    f = jax.shard_map(backward, mesh=mesh, in_specs=(*specs, P("d")), out_specs=specs)
    assert str(jax.make_jaxpr(f)(params, X, DY)).count("= psum") == 2


def test_shards_of_one_value_each_make_a_batch():
    norm = jbn.batch_norm(axis_name="d", decay=0.5)
    params, state = norm.init(3)
    x = data((8, 1, 3))
    y, _ = jax.vmap(lambda x: norm.train(params, state, x), axis_name="d")(x)
    single = jbn.batch_norm()
    wanted, _ = single.train(*single.init(3), x.reshape(8, 3))
    np.testing.assert_allclose(y.reshape(8, 3), wanted, rtol=1e-5, atol=1e-6)


def test_groups_that_are_no_partition_are_refused():
    norm = jbn.batch_norm(axis_name="d", axis_index_groups=[[0, 1], [2]])
    params, state = norm.init(3)
    with pytest.raises(ValueError, match="axis_index_groups"):
        jax.vmap(lambda x: norm.train(params, state, x), axis_name="d")(X.reshape(8, 4, 5, 3))


@pytest.mark.usefixtures("x64")
def test_shards_agree_to_twelve_digits_in_float64():
    norm = jbn.batch_norm(decay=0.5, axis_name="d")
    wide = (norm.init(3), X, DY)
    (params, state), x, dy = jax.tree.map(
        lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, wide
    )
    one = functools.partial(step, jbn.batch_norm(decay=0.5))
    got, wanted = (
        jax.jit(f)(params, state, x, dy, MASK) for f in (sharded_step(norm, eight_shards()), one)
    )
    chex.assert_trees_all_close(got, wanted, rtol=1e-12, atol=1e-12, strict=True)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("groups", [None, [[0, 3], [1, 2]]])
def test_sixty_four_bit_types_promote_nothing(groups):
    norm = jbn.batch_norm(axis_name="d", axis_index_groups=groups)
    params, state = norm.init(3)
    mask = data((4, 6), 1) > 0

    def loss(x, mask):
        y, _ = norm.train(params, state, x, mask=mask)
        return jnp.sum(y**3)

    grads = jax.vmap(jax.grad(loss), axis_name="d")(jnp.asarray(data((4, 6, 3))), mask)
    assert grads.dtype == jnp.float32
    assert np.isfinite(grads).all()
