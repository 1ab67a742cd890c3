"""The checkpoint policy keeps one activation for each layer, and repeats no statistics."""

import functools
import math

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jbn
from tests.helpers import collectives, data, eight_shards

DEPTH, SHAPE = 3, (16, 6, 6, 8)
X = data(SHAPE)
KERNELS = [data((8, 8), seed) for seed in range(DEPTH)]

NORMS = {
    "batch": jbn.batch_norm,
    "ghost": functools.partial(jbn.ghost_batch_norm, group_size=4),
    "renorm": jbn.batch_renorm,
    "inplace": jbn.inplace_batch_norm,
}


def network(norm, x, kernels):
    params, state = norm.init(8)
    for kernel in kernels:
        y, _ = norm.train(params, state, x @ kernel)
        x = jnp.tanh(y)
    return x


def loss(norm, wrap, kernels, x):
    return jnp.sum(wrap(functools.partial(network, norm))(x, kernels) ** 2)


WRAPS = {
    "plain": lambda f: f,
    "nothing kept": jax.checkpoint,
    "policy": functools.partial(jax.checkpoint, policy=jbn.save_norm_inputs),
}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, jex.core.Jaxpr):
                yield from equations(inner)


def big_sums(norm, wrap):
    """Returns how many sums over positions the jaxpr of a step has."""
    jaxpr = jax.make_jaxpr(jax.grad(functools.partial(loss, norm, wrap)))(KERNELS, X).jaxpr
    return sum(
        e.primitive.name == "reduce_sum" and e.invars[0].aval.size >= math.prod(SHAPE)
        for e in equations(jaxpr)
    )


@pytest.mark.parametrize("name", NORMS)
def test_gradients_are_the_same(name):
    plain, policy = (
        jax.jit(jax.grad(functools.partial(loss, NORMS[name](), WRAPS[wrap])))(KERNELS, X)
        for wrap in ("plain", "policy")
    )
    for a, b in zip(plain, policy, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize("name", NORMS)
def test_no_statistics_are_repeated(name):
    counts = {wrap: big_sums(NORMS[name](), f) for wrap, f in WRAPS.items()}
    assert counts["policy"] == counts["plain"] < counts["nothing kept"]


@pytest.mark.parametrize("name", NORMS)
def test_one_activation_a_layer_is_kept(name):
    def kept(wrap):
        f = wrap(functools.partial(network, NORMS[name]()))
        pull = jax.jit(lambda x, kernels: jax.vjp(f, x * 2, kernels)[1])(X, KERNELS)
        activations = [a for a in jax.tree.leaves(pull) if a.size == math.prod(SHAPE)]
        # Results of a program may be copies of each other. Copies count once.
        return len({np.asarray(a).tobytes() for a in activations})

    assert kept(WRAPS["policy"]) == 1 + DEPTH  # The input of the network, and one for each layer.
    assert kept(WRAPS["plain"]) > 2 * DEPTH


@pytest.mark.parametrize(
    ("name", "platform"),
    [
        ("batch", "cpu"),
        ("batch", "gpu"),
        pytest.param("ghost", "tpu", marks=pytest.mark.slow),
        *(pytest.param(n, "cpu", marks=pytest.mark.slow) for n in NORMS if n != "batch"),
    ],
    indirect=["platform"],
)
def test_no_collective_is_repeated(name, platform):
    norm = NORMS[name](axis_name="d")

    def count(wrap):
        f = jax.shard_map(
            jax.grad(functools.partial(loss, norm, WRAPS[wrap])),
            mesh=eight_shards(),
            in_specs=(P(), P("d")),
            out_specs=P(),
        )
        return collectives(jax.jit(f).lower(KERNELS, X).compile())

    assert count("policy") == count("plain") < count("nothing kept")
