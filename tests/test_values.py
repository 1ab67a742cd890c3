"""Norms are values: they compare, hash, pickle and print, and equal norms compile once."""

import copy
import dataclasses
import functools
import pickle
from typing import Any

import chex
import cloudpickle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jbn
import jbn.linen
import jbn.nnx
import jbn.testing

untyped: Any = jbn
"""The library without types, for arguments that they forbid."""

X = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)
SHARED: dict[str, Any] = {
    "axis": 1,
    "axis_name": "d",
    "use_scale": False,
    "use_bias": False,
    "dtype": jnp.bfloat16,
}
BATCH = {**SHARED, "decay": jbn.corrected_decay(0.9), "epsilon": 1e-3, "unbiased": True}
ELU = jbn.activations.elu(0.5)
OPTIONS: dict[Any, dict[str, Any]] = {
    jbn.batch_norm: {**BATCH, "group_size": 4, "activation": ELU, "axis_index_groups": [[0, 1]]},
    jbn.ghost_batch_norm: {**BATCH, "group_size": 4},
    jbn.inplace_batch_norm: {**BATCH, "activation": ELU, "axis_index_groups": [[0, 1]]},
    jbn.batch_renorm: {**BATCH, "r_max": 2.0, "d_max": 1.0, "group_size": 4},
    jbn.running_batch_norm: {**SHARED, "decay": 0.8, "epsilon": 1e-3, "group_size": 4},
}
REQUIRED: dict[Any, dict[str, Any]] = {
    jbn.ghost_batch_norm: {"group_size": 2},
    "axis_index_groups": {"axis_name": "d"},
}
CASES = [
    pytest.param(factory, name, value, id=f"{factory.__name__}-{name}")
    for factory, options in OPTIONS.items()
    for name, value in options.items()
]


def wrappers(norm):
    return [
        jbn.frozen(norm),
        jbn.frozen(norm, use_running=False, update=True),
        jbn.domain_norm(norm, 3),
    ]


def assert_a_value(value, other):
    """Checks that `value` is a value, and differs from `other`."""
    assert value == copy.copy(value) == copy.deepcopy(value)
    assert hash(value) == hash(copy.deepcopy(value))
    assert value != other
    for library in (pickle, cloudpickle):
        assert library.loads(library.dumps(value)) == value
    assert eval(repr(value), {"jbn": jbn}) == value


@pytest.mark.parametrize(("factory", "name", "option"), CASES)
def test_every_option_makes_another_value(factory, name, option):
    required = REQUIRED.get(factory, {}) | REQUIRED.get(name, {})
    plain = factory(**required)
    norm = factory(**{**required, name: option})
    assert isinstance(norm, jbn.Norm)
    assert_a_value(norm, plain)
    assert dataclasses.replace(plain, **{name: option}) == norm
    assert f"{name}=" in repr(norm)
    for wrapped, other in zip(wrappers(norm), wrappers(plain), strict=True):
        assert_a_value(wrapped, other)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(norm, name, option)


def test_the_options_above_are_all_there_are():
    for factory, options in OPTIONS.items():
        missing = {field.name for field in dataclasses.fields(factory)} - set(options)
        needs_another = {"group_size", "activation", "axis_index_groups"}
        assert missing <= needs_another, factory


def test_reprs_say_what_differs_from_the_defaults():
    assert repr(jbn.batch_norm()) == "jbn.batch_norm()"
    norm = jbn.batch_norm(decay=jbn.corrected_decay(0.9), dtype="bfloat16", axis=[0, 1])
    expected = "jbn.batch_norm(axis=(0, 1), dtype='bfloat16', decay=jbn.corrected_decay(decay=0.9))"
    assert repr(norm) == expected
    assert repr(jbn.frozen(norm)) == f"jbn.frozen(norm={expected})"


@pytest.mark.parametrize(
    "value",
    [
        jbn.corrected_decay(0.9),
        jbn.activations.leaky_relu(0.2),
        jbn.activations.elu(0.2),
        jbn.activations.identity(),
    ],
)
def test_decays_and_activations_are_values(value):
    assert_a_value(value, jbn.batch_norm())


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), jnp.float32(0.5), 0.5])
def test_numbers_of_numpy_and_jax_are_as_good_as_pythons(number):
    norm = untyped.batch_renorm(decay=number, epsilon=number, r_max=number * 4, axis=np.int64(-1))
    assert norm == jbn.batch_renorm(decay=0.5, epsilon=0.5, r_max=2.0, axis=-1)
    assert type(norm.decay) is type(norm.epsilon) is float
    assert type(norm.axis) is int
    assert_a_value(norm, jbn.batch_norm())


WRONG: Any = [
    (
        lambda: untyped.batch_norm(decay=np.ones(2)),
        r"decay must be a number, got an array of shape \(2",
    ),
    (lambda: untyped.batch_norm(decay=[0.1, 0.2]), r"decay=\(0.1, 0.2\) must be in \[0, 1\]"),
    (lambda: untyped.batch_norm(decay="0.9"), "decay='0.9' must be in"),
    (lambda: untyped.batch_norm(decay=float("nan")), "decay=nan must be in"),
    (lambda: untyped.batch_norm(epsilon=None), "epsilon=None must be a number"),
    (lambda: untyped.batch_norm(dtype=jnp.int32), "dtype=int32 must be real floating point"),
    (
        lambda: untyped.batch_norm(activation=jax.nn.elu),
        "activation=.* must be one of jbn.activations",
    ),
    (
        lambda: untyped.batch_norm(activation=jbn.activations.elu),
        "activation=.*elu.* must be one of",
    ),
    (lambda: untyped.batch_norm(group_size=2.0), "group_size=2.0 must be a positive integer"),
    (lambda: untyped.ghost_batch_norm(), "group_size"),
    (
        lambda: untyped.ghost_batch_norm(group_size=None),
        "group_size=None must be a positive integer",
    ),
    (lambda: untyped.batch_renorm(r_max="3"), "r_max='3' must be at least 1"),
    (lambda: untyped.activations.elu("1"), "alpha='1' must be positive"),
    (lambda: untyped.frozen(untyped.batch_norm), r"must be a jbn.Norm, such as jbn.batch_norm\(\)"),
    (lambda: untyped.domain_norm(untyped.batch_norm, 2), "must be a jbn.Norm"),
    (
        lambda: untyped.domain_norm(untyped.batch_norm(), 2.5),
        "num_domains=2.5 must be a positive integer",
    ),
    (lambda: untyped.nnx.Norm(untyped.batch_norm, 3), "must be a jbn.Norm"),
    (
        lambda: untyped.linen.Norm(untyped.batch_norm).init(jax.random.key(0), X),
        "must be a jbn.Norm",
    ),
    (
        lambda: untyped.linen.replace_batch_norm(untyped.batch_norm).__enter__(),
        "must be a jbn.Norm",
    ),
    (
        lambda: untyped.testing.check_norm(untyped.batch_norm()),
        "must be a function that makes norms",
    ),
    (lambda: dataclasses.replace(untyped.batch_norm(), colour=1), "colour"),
    (lambda: untyped.batch_norm(0.9), "positional"),
]


@pytest.mark.parametrize(("make", "words"), WRONG)
def test_errors_name_the_option(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_float64_is_another_dtype_than_none():
    """NumPy's float64 compares equal to None."""
    assert_a_value(jbn.batch_norm(dtype="float64"), jbn.batch_norm())
    assert jbn.batch_norm(dtype=np.float64) == jbn.batch_norm(dtype="float64")


def test_groups_and_axes_may_be_arrays_of_integers():
    make = functools.partial(untyped.batch_norm, axis_name="d")
    norm = make(axis_index_groups=np.array([[0, 1], [2, 3]]), axis=np.array([0, 1]))
    assert norm == make(axis_index_groups=((0, 1), (2, 3)), axis=(0, 1))


def test_functions_print_by_their_name():
    norm = jbn.batch_norm(decay=jbn.cumulative_decay)
    assert repr(norm) == "jbn.batch_norm(decay=jbn.cumulative_decay)"
    assert_a_value(norm, jbn.batch_norm())


class MethodOfOnesOwn(jbn.batch_norm):
    """A user's method, with a hyperparameter of its own."""

    share: float = 0.5

    def train_vectors(self, state, batch):
        statistics, new = super().train_vectors(state, batch)
        mean = self.share * batch.mean + (1 - self.share) * state.mean
        return statistics._replace(mean=mean), new


def test_a_method_of_ones_own_is_a_value_too():
    norm = MethodOfOnesOwn(share=0.3, decay=0.9)
    assert norm == dataclasses.replace(MethodOfOnesOwn(decay=0.9), share=0.3)
    assert pickle.loads(pickle.dumps(norm)) == norm
    assert repr(norm) == "tests.test_values.MethodOfOnesOwn(decay=0.9, share=0.3)"
    y, _ = norm.train(*norm.init(3), X)
    expected = (X - 0.3 * X.mean((0, 1))) / np.sqrt(X.var((0, 1)) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


# Compilation.


class Counting(jbn.batch_norm):
    """Batch norm that counts how often a training step is traced."""

    traces = 0

    def train_vectors(self, state, batch):
        type(self).traces += 1
        return super().train_vectors(state, batch)


@pytest.fixture
def counting():
    """Makes a new class of norms, none of which has been traced."""

    class Fresh(Counting):
        pass

    return Fresh


def test_norms_made_in_a_loop_are_traced_once(counting):
    for _ in range(3):
        norm = counting(decay=0.9)
        norm.train(*norm.init(3), X)
        jax.grad(lambda x, norm=norm: norm.train(*norm.init(3), x)[0].sum())(jnp.asarray(X))
    assert counting.traces == 1
    other = counting(decay=0.8)
    other.train(*other.init(3), X)
    assert counting.traces == 2


def test_layers_of_a_network_share_a_trace(counting):
    @jax.jit
    def network(x):
        for _ in range(5):
            norm = counting()
            x, _ = norm.train(*norm.init(3), x)
        return x

    network(X)
    assert counting.traces == 1


def test_a_norm_made_in_a_linen_module_is_traced_once(counting):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jbn.linen.Norm(counting(decay=0.7), use_running_average=False)(x)

    @chex.assert_max_traces(1)
    def step(variables, x):
        return Network().apply(variables, x, mutable=["batch_stats"])

    variables = Network().init(jax.random.key(0), X)
    before = counting.traces
    jitted = jax.jit(step)
    for _ in range(3):
        jitted(variables, X)
        Network().apply(variables, X, mutable=["batch_stats"])
    assert counting.traces <= max(before, 1)


def test_equal_norms_in_the_context_share_compiled_functions(counting):
    model = nn.BatchNorm(use_running_average=False)
    variables = model.init(jax.random.key(0), X)
    traces = []

    @jax.jit
    def step(variables, x):
        traces.append(x)
        return model.apply(variables, x, mutable=["batch_stats"])

    for decay in (0.9, 0.9, 0.8, 0.9):
        with jbn.linen.replace_batch_norm(counting(decay=decay)):
            step(variables, X)
    assert len(traces) == counting.traces == 2


def test_nnx_models_with_equal_norms_share_compiled_functions(counting):
    traces = []

    @nnx.jit
    def step(model, x):
        traces.append(x)
        return model(x)

    for _ in range(3):
        step(nnx.Sequential(jbn.nnx.Norm(counting(decay=0.9), 3)), X)
    assert len(traces) == counting.traces == 1


# Modules that hold norms.


def test_modules_that_hold_norms_are_picklable():
    norm = jbn.batch_norm(decay=jbn.corrected_decay(0.9))
    linen = jbn.linen.Norm(norm, use_running_average=False)
    variables = linen.init(jax.random.key(0), X)
    model = jbn.nnx.Norm(norm, 3)
    expected, _ = linen.apply(variables, X, mutable=["batch_stats"])
    for library in (pickle, cloudpickle):
        again = library.loads(library.dumps(linen))
        assert again == linen
        assert hash(again) == hash(linen)
        assert eval(repr(again.norm), {"jbn": jbn}) == norm
        chex.assert_trees_all_equal(again.apply(variables, X, mutable=["batch_stats"])[0], expected)
        copied = library.loads(library.dumps(model))
        assert copied.norm == norm
        chex.assert_trees_all_equal(copied(X), expected)


def test_a_norm_is_a_pytree_without_leaves():
    norm = jbn.frozen(jbn.batch_norm(decay=0.9))
    leaves, structure = jax.tree.flatten(norm)
    assert leaves == []
    assert jax.tree.unflatten(structure, []) == norm
    params, state = norm.init(3)
    y, _ = jax.jit(lambda norm, x: norm.train(params, state, x))(norm, X)
    chex.assert_trees_all_close(y, norm.train(params, state, X)[0], rtol=1e-6, atol=1e-6)


# Traced numbers.

TRACEABLE = [
    (jbn.batch_norm, "decay", [0.0, 0.5, 0.99]),
    (jbn.ghost_batch_norm, "decay", [0.5, 0.9]),
    (jbn.inplace_batch_norm, "epsilon", [1e-3, 1e-1]),
    (jbn.batch_renorm, "r_max", [1.0, 1.5, 3.0]),
    (jbn.running_batch_norm, "decay", [0.5, 0.9]),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (jbn.batch_norm, "epsilon", [1e-5, 1e-3, 1.0]),
            (jbn.ghost_batch_norm, "epsilon", [1e-3, 1e-1]),
            (jbn.inplace_batch_norm, "decay", [0.5, 0.9]),
            (jbn.batch_renorm, "d_max", [0.0, 0.5]),
            (jbn.running_batch_norm, "epsilon", [1e-3, 1e-1]),
        )
    ),
]


TWO_DOMAINS = functools.partial(jbn.domain_norm, num_domains=2)


@pytest.mark.parametrize(
    ("wrap", "jit"),
    [
        (None, True),
        pytest.param(None, False, marks=pytest.mark.slow),
        pytest.param(jbn.frozen, True, marks=pytest.mark.slow),
        pytest.param(TWO_DOMAINS, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("factory", "name", "values"), TRACEABLE)
def test_vmap_over_a_number_gives_what_each_number_gives_alone(factory, name, values, wrap, jit):
    def step(value, x):
        norm = factory(**REQUIRED.get(factory, {}), **{name: value})
        norm = wrap(norm) if wrap else norm
        domain = {"domain": jnp.int32(1)} if isinstance(norm, jbn.domain_norm) else {}
        params, state = norm.init(3)

        def loss(params, x):
            y, new = norm.train(params, state, x, **domain)
            return jnp.sum(jnp.sin(y)), (y, new)

        gradients, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return y, new, gradients, norm.infer(params, new, x, **domain)

    mapped = jax.vmap(step, (0, None))
    together = (jax.jit(mapped) if jit else mapped)(np.float32(values), X)
    for i, value in enumerate(values):
        alone = jax.jit(functools.partial(step, value))(X)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i], together), alone, rtol=2e-6, atol=2e-6
        )


@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("factory", [jbn.batch_norm, jbn.inplace_batch_norm])
@pytest.mark.usefixtures("x64")
def test_a_traced_number_has_a_gradient(factory, mode):
    x = jnp.asarray(X, jnp.float64)

    @jax.jit
    def loss(epsilon):
        norm = factory(epsilon=epsilon)
        return jnp.sum(norm.train(*norm.init(3), x)[0] ** 3)

    step = 1e-4
    numeric = (loss(0.5 + step) - loss(0.5 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(mode(loss))(0.5), numeric, rtol=1e-6)


def test_a_population_of_norms_is_a_norm_with_arrays():
    decays = jnp.array([0.2, 0.5, 0.8])
    norms = jax.vmap(lambda decay: jbn.batch_norm(decay=decay))(decays)
    params, state = jbn.batch_norm().init(3)
    _, new = jax.vmap(lambda norm: norm.train(params, state, X))(norms)
    second = jax.tree.map(lambda a: a[1], norms)
    assert dataclasses.replace(second) == jbn.batch_norm(decay=0.5)
    expected = jbn.batch_norm(decay=0.5).train(params, state, X)[1]
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[1], new), expected, rtol=1e-6)
    for call in (norms.train, norms.infer):  # With 3 features, each would get its own decay.
        with pytest.raises(
            ValueError, match=r"several numbers in one option: use it under jax\.vmap"
        ):
            call(params, state, X)
    assert "decay=array([" in repr(jax.device_get(norms))


def test_schedules_of_optax_count_updates():
    norm = jbn.batch_renorm(r_max=optax.linear_schedule(1, 3, 2))
    assert cloudpickle.loads(cloudpickle.dumps(norm)).train(*norm.init(3), X)[1].count == 1
