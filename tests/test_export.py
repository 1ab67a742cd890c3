"""Norms in programs that `jax.export` writes to files."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jbn
from tests.helpers import data, trained

pytest.importorskip("flatbuffers", reason="the files need FlatBuffers")

X = data((6, 2, 2, 4), mean=1)
SHAPE = X.shape[1:]
NORMS = {
    "batch_norm": jbn.batch_norm(decay=jbn.corrected_decay(0.9)),
    "ghost": jbn.ghost_batch_norm(group_size=2),
    "in place": jbn.inplace_batch_norm(activation=jbn.activations.leaky_relu()),
    "renorm": jbn.batch_renorm(),
    "running": jbn.running_batch_norm(),
    "frozen": jbn.frozen(jbn.batch_norm()),
    "domain_norm": jbn.domain_norm(jbn.batch_norm(), num_domains=2),
}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
WHOLE = {name: norm for name, norm in NORMS.items() if name != "ghost"}
every_norm_but_ghost = pytest.mark.parametrize("norm", WHOLE.values(), ids=WHOLE)


def functions(norm):
    """Returns training and inference as functions of parameters, state and x alone."""
    if isinstance(norm, jbn.domain_norm):
        return tuple(functools.partial(f, domain=jnp.int32(1)) for f in (norm.train, norm.infer))
    return norm.train, norm.infer


def saved(exported, vjp_order=0) -> export.Exported:
    return export.deserialize(exported.serialize(vjp_order=vjp_order))


@pytest.mark.parametrize(
    "kind",
    [kind for name in jbn.__all__ if hasattr(kind := getattr(jbn, name), "_fields")],
    ids=lambda kind: kind.__name__,
)
def test_every_public_tuple_is_an_argument_and_a_result(kind):
    value = kind(*(np.float32(i) for i, _ in enumerate(kind._fields)))
    back = saved(export.export(jax.jit(lambda value: value))(value))
    result = back.call(value)
    assert type(result) is kind
    assert result == value


@every_norm
def test_training_and_its_gradients_survive_the_file(norm):
    params, state = trained(norm.init(4))
    train, _ = functions(norm)
    loaded = saved(export.export(jax.jit(train))(params, state, X), vjp_order=1)

    def loss(train, params, x):
        y, new = train(params, state, x)
        return jnp.sum(y**3), (y, new)

    def run(train):
        return jax.grad(functools.partial(loss, train), (0, 1), has_aux=True)(params, X)

    actual, expected = run(loaded.call), run(train)
    assert type(actual[1][1]) is type(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


def symbolic(shape):
    return jax.ShapeDtypeStruct(export.symbolic_shape(shape), jnp.float32)


@pytest.mark.parametrize("shape", ["b, 2, 2, 4", "b, h, w, 4"])
@every_norm_but_ghost
def test_one_file_serves_every_size_and_platform(norm, shape):
    train, infer = functions(norm)
    arguments = *trained(norm.init(4)), X[:5]

    @jax.jit
    def both(params, state, x):
        return train(params, state, x), infer(params, state, x)

    exported = export.export(both, platforms=["cpu", "cuda", "tpu"])
    loaded = saved(exported(*arguments[:2], symbolic(shape)))
    chex.assert_trees_all_close(loaded.call(*arguments), both(*arguments), rtol=1e-6, atol=1e-6)


def test_masks_of_symbolic_sizes():
    norm = NORMS["batch_norm"]
    params, state = norm.init(4)
    mask = jax.ShapeDtypeStruct(export.symbolic_shape("b"), jnp.bool_)
    x = jax.ShapeDtypeStruct((*mask.shape, 4), jnp.float32)
    train = jax.jit(lambda params, state, x, mask: norm.train(params, state, x, mask=mask))
    loaded = saved(export.export(train)(params, state, x, mask))
    x, mask = data((5, 4)), np.arange(5) != 2
    actual, expected = loaded.call(params, state, x, mask), train(params, state, x, mask)
    chex.assert_trees_all_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_groups_of_a_symbolic_batch_are_an_error_that_says_what_to_do():
    norm = NORMS["ghost"]
    with pytest.raises(
        ValueError, match=r"symbolic number of examples, b, .* group_size=2 .* fixed number"
    ):
        export.export(jax.jit(norm.train))(*norm.init(4), symbolic("b, 2, 2, 4"))
    infer = saved(export.export(jax.jit(norm.infer))(*norm.init(4), symbolic("b, 2, 2, 4")))
    chex.assert_trees_all_close(
        infer.call(*norm.init(4), X), norm.infer(*norm.init(4), X), rtol=1e-6
    )
