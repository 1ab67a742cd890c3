"""Existing models run on jbn without an edit, by `replace_batch_norm` of Linen and NNX."""

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
    """A model with Flax's norms in several forms: with and without scale, with and without name."""

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


@jax.jit
def linen_step(params, batch_stats, x):
    """Returns the value, the gradients and the new statistics of a loss."""

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


# The tolerance is that of float32 sums in another order.
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
        with pytest.raises(ValueError, match="use_scale=True"), other:
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


class Plain(nn.BatchNorm):
    momentum: float = 0.5


class Shifted(nn.BatchNorm):
    """Shifts its input, and then does the same as Flax."""

    @nn.compact
    def __call__(self, x, use_running_average=None, *, mask=None):
        return super().__call__(x + 1, use_running_average, mask=mask) + 1


class Own(nn.BatchNorm):
    @nn.compact
    def __call__(self, x, use_running_average=None, *, mask=None):
        return 0 * x


class Copy(nn.Module):
    """Has the fields and variables of Flax's norm, but is no subclass of it."""

    axis: int = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Any = nn.initializers.zeros
    scale_init: Any = nn.initializers.ones
    axis_name: Any = None
    axis_index_groups: Any = None
    use_running_average: bool | None = None

    @nn.compact
    def __call__(self, x, use_running_average=None, *, mask=None):
        return nn.LayerNorm()(x)


class Around(nn.Module):
    """One norm of a type, in a block."""

    norm: Any

    @nn.compact
    def __call__(self, x):
        return self.norm(use_running_average=False, name="norm")(nn.Dense(3, name="dense")(x))


FROZEN = jbn.frozen(jbn.batch_norm(epsilon=0.5))
"""Moves no statistics, and has another output."""


def linen_run(model, *, norm=FROZEN, **options):
    """Runs a model in training; returns y, the input of its norm, and the replaced norms."""
    variables = jax.jit(Around(nn.BatchNorm).init)(jax.random.key(0), X)
    variables = {**variables, "batch_stats": {"norm": {"mean": jnp.ones(3), "var": jnp.ones(3)}}}
    with jbn.linen.replace_batch_norm(norm, **options) as replaced:
        y, updates = model.apply(variables, X, mutable=["batch_stats"])
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])
    dense = X @ np.asarray(variables["params"]["dense"]["kernel"])
    return y, dense, replaced


@pytest.mark.parametrize(
    ("norm", "options", "shift"),
    [
        (nn.BatchNorm, {}, 0),
        (jbn.linen.BatchNorm, {}, 0),
        (functools.partial(jbn.linen.Norm, jbn.batch_renorm()), {}, 0),
        (Plain, {}, 0),
        (Shifted, {}, 1),
        (Own, {"types": (Own,)}, 0),
        (Copy, {"types": (Copy,)}, 0),
        (nn.remat(nn.BatchNorm), {}, 0),
        (nn.jit(nn.BatchNorm), {}, 0),
        (nn.jit(Shifted), {}, 1),
    ],
)
def test_linen_replaces_every_kind_of_norm(norm, options, shift):
    for _ in range(2):  # In the second round, jitted modules are not called.
        y, dense, _ = linen_run(Around(norm), **options)
        assert_close(y, (dense + shift - 1) / np.sqrt(np.float32(1.5)) + shift)


def test_linen_lists_what_was_replaced():
    replaced = linen_run(Around(Plain), where=lambda path: path == "norm")[2]
    assert replaced == {"norm": Plain}


@pytest.mark.parametrize(
    ("norm", "options", "words"),
    [
        (Own, {}, r"'norm' has a __call__ of its own.*types=\(Own,\)"),
        (Copy, {}, r"no batch norm was replaced.*'norm'"),
        (lambda use_running_average, name: nn.relu, {}, r"no batch norm was replaced.*'dense'"),
        (nn.BatchNorm, {"where": lambda path: "other" in path}, "no batch norm was replaced"),
        (functools.partial(nn.BatchNorm, axis=1), {}, "axis=1 and the norm on axis=-1"),
    ],
)
def test_linen_says_what_was_not_replaced(norm, options, words):
    model = Around(norm)
    options = {"where": lambda path: True} | options  # No other context has this option.
    variables = jax.eval_shape(model.init, jax.random.key(0), X)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
    with pytest.raises(ValueError, match=words), jbn.linen.replace_batch_norm(FROZEN, **options):
        model.apply(variables, X, mutable=["batch_stats"])


def test_linen_where_nothing_is_called_nothing_is_wrong():
    model = Around(nn.BatchNorm)
    variables = model.init(jax.random.key(0), X)
    step = jax.jit(lambda variables, x: model.apply(variables, x, mutable=["batch_stats"])[0])
    with jbn.linen.replace_batch_norm(FROZEN):
        y = step(variables, X)
    with jbn.linen.replace_batch_norm(FROZEN) as replaced:
        np.testing.assert_array_equal(step(variables, X), y)
        nn.Dense(2).init(jax.random.key(0), X)  # A module without a norm.
    assert replaced == {}
    with jbn.linen.replace_batch_norm(FROZEN):
        pass
    with jbn.linen.replace_batch_norm():  # It runs on jbn anyway.
        Around(jbn.linen.BatchNorm).init(jax.random.key(0), X)


def test_linen_the_innermost_context_counts_and_others_get_the_rest():
    model = LinenModel()
    variables = linen_variables()
    with (
        jbn.linen.replace_batch_norm(jbn.frozen(jbn.batch_norm(axis=1, use_scale=False))) as outer,
        jbn.linen.replace_batch_norm(FROZEN, where=lambda path: path != "last") as inner,
    ):
        _, updates = model.apply(variables, X, True, mutable=["batch_stats"])
    assert (list(outer), list(inner)) == (["last"], ["BatchNorm_0"])
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])


def test_linen_a_traced_option_may_be_mapped_over():
    variables = OneNorm().init(jax.random.key(0), X, True)

    @jax.jit
    @jax.vmap
    def step(decay):
        with jbn.linen.replace_batch_norm(jbn.batch_norm(decay=decay)):
            apply = jax.jit(lambda variables, x: OneNorm().apply(variables, x, True, mutable=True))
            return apply(variables, X)[1]["batch_stats"]["norm"]["mean"]

    decays = np.array([0.5, 0.75], np.float32)
    assert_close(step(decays), (1 - decays[:, None]) * X.mean((0, 1)))


def test_domain_norms_are_frozen_too():
    norm = jbn.domain_norm(jbn.batch_norm(), 2)
    module = jbn.linen.DomainNorm(norm, use_running_average=False)
    variables = module.init(jax.random.key(0), X, 1)
    with jbn.linen.replace_batch_norm(FROZEN):
        y, updates = module.apply(variables, X, 1, mutable=["batch_stats"])
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])
    model: Any = jbn.nnx.replace_batch_norm(jbn.nnx.DomainNorm(norm, 3), FROZEN)
    assert_close(model(X, 1), X / np.sqrt(np.float32(1.5)))
    assert_close(y, model(X, 1))
    np.testing.assert_array_equal(model.mean[...], 0)


@pytest.mark.parametrize(
    "norm",
    [jbn.batch_norm(), jbn.running_batch_norm(), jbn.batch_norm(decay=jbn.cumulative_decay)],
)
def test_with_what_is_missing_flaxs_variables_train_in_a_scan(norm):
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.BatchNorm(use_running_average=False, name="norm")
            return nn.scan(
                lambda norm, x, _: (norm(x), None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=2,
            )(norm, x, None)[0]

    model = Stack()
    variables = model.init(jax.random.key(0), X)
    full = jbn.linen.add_missing(variables, norm)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(full)} == {2}

    def step(variables, x):
        y, updates = model.apply(variables, x, mutable=["batch_stats"])
        return {**variables, **updates}, y

    with jbn.linen.replace_batch_norm(norm):
        after, _ = jax.lax.scan(step, full, np.stack([X, 2 * X]))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, full)
    first = norm.init(3)[1]
    for x in (X, 2 * X):
        _, first = norm.train(norm.init(3)[0], first, x)
    found = jax.tree.map(lambda leaf: leaf[0], after["batch_stats"]["norm"])
    assert_close(found, {name: getattr(first, name) for name in found})
    assert found.keys() >= {"mean", "var"} | ({"count"} if norm.needs_count else set())
    assert jbn.linen.add_missing(full, norm).keys() == full.keys()
    chex.assert_trees_all_equal(jbn.linen.add_missing(variables, jbn.batch_norm()), variables)


class NnxPlain(nnx.BatchNorm):
    pass


class NnxOwn(nnx.BatchNorm):
    def __call__(self, x, use_running_average=None, *, mask=None):
        return 0 * x


class NnxOwnOfOurs(jbn.nnx.BatchNorm):
    def __call__(self, x, use_running_average=None, *, mask=None):
        return 0 * super().__call__(x)


class NnxCopy(nnx.Module):
    def __init__(self, num_features, rngs):
        vars(self).update(vars(nnx.BatchNorm(num_features, rngs=rngs)))

    def __call__(self, x):
        return 0 * x


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nnx.BatchNorm, {}),
        (jbn.nnx.BatchNorm, {}),
        (lambda n, rngs: jbn.nnx.Norm(jbn.batch_renorm(), n), {}),
        (NnxPlain, {}),
        (NnxOwn, {"types": (NnxOwn,)}),
    ],
)
def test_nnx_replaces_every_kind_of_norm(kind, options):
    rngs = nnx.Rngs(0)
    shared = kind(3, rngs=rngs)
    model = nnx.List([shared, nnx.Linear(3, 3, rngs=rngs), shared])
    new: Any = jbn.nnx.replace_batch_norm(model, FROZEN, **options)
    assert new[0] is new[2]
    assert list(jbn.nnx.norms(new)) == ["0"]
    assert_close(new[0](X), X / np.sqrt(np.float32(1.5)))
    np.testing.assert_array_equal(new[0].mean[...], 0)
    assert type(model[0]) is type(shared)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (NnxOwn, {}, r"'0' of type NnxOwn has a __call__ of its own: pass types=\(NnxOwn,\)"),
        (NnxOwnOfOurs, {}, r"'0' of type NnxOwnOfOurs has a __call__ of its own"),
        (NnxCopy, {}, "no batch norm was replaced"),
        (nnx.BatchNorm, {"where": lambda path: path == "1"}, "no batch norm was replaced"),
        (functools.partial(nnx.BatchNorm, axis=1), {}, "axis=1 and the norm on axis=-1"),
    ],
)
def test_nnx_says_what_was_not_replaced(kind, options, words):
    model = nnx.List([kind(3, rngs=nnx.Rngs(0))])
    with pytest.raises(ValueError, match=words):
        jbn.nnx.replace_batch_norm(model, FROZEN, **options)


@pytest.mark.parametrize(
    "norm", [None, jbn.running_batch_norm(), jbn.batch_norm(decay=jbn.cumulative_decay)]
)
def test_nnx_replaces_stacked_norms(norm):
    make = nnx.vmap(lambda rngs: nnx.BatchNorm(3, rngs=rngs))
    stack = make(nnx.Rngs(0).split(2))
    new = jbn.nnx.replace_batch_norm(stack, norm)
    single: Any = jbn.nnx.replace_batch_norm(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), norm)
    y = nnx.vmap(lambda module, x: module(x))(new, np.stack([2 * X, X]))
    assert_close(y[1], single(X))
    last = jax.tree.map(lambda leaf: leaf[1], nnx.state(new))
    assert_close(last, nnx.state(single))


def test_where_must_be_a_function():
    untyped: Any = jbn
    for call in (
        lambda: untyped.nnx.replace_batch_norm(nnx_model(), where="last"),
        lambda: untyped.linen.replace_batch_norm(where="last").__enter__(),
        lambda: untyped.linen.add_missing(linen_variables(), jbn.batch_norm(), where="last"),
    ):
        with pytest.raises(TypeError, match="where='last' must be a function of the path"):
            call()


def test_nnx_refuses_a_norm_that_learns_something_else():
    with pytest.raises(ValueError, match="use_scale=False"):
        jbn.nnx.replace_batch_norm(nnx_model(), jbn.batch_norm())
