"""The Linen and NNX modules, compared with Flax's own, and with any `jbn.Norm` in them."""

import inspect
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


class Network(nn.Module):
    norm: type

    @nn.compact
    def __call__(self, x, train, mask=None):
        x = nn.Dense(16)(x)
        x = self.norm(use_running_average=not train, momentum=0.9, name="norm")(x, mask=mask)
        return nn.Dense(2)(nn.relu(x))


@pytest.mark.parametrize("masked", [False, True])
def test_linen_trains_like_flax_for_50_steps(masked):
    xs, targets = data((50, 32, 8), mean=1), data((50, 32, 2), 1)
    # Flax also normalizes masked elements, so the loss leaves them out.
    mask = data((32, 1), 2) > -0.5 if masked else None

    def run(norm):
        model = Network(norm)
        variables = model.init(jax.random.key(0), xs[0], True)

        def step(variables, batch):
            x, target = batch

            def loss(params):
                y, updates = model.apply(
                    {**variables, "params": params}, x, True, mask, mutable=["batch_stats"]
                )
                error = jnp.square(y - target)
                return jnp.mean(error, where=True if mask is None else mask), updates

            grads, updates = jax.grad(loss, has_aux=True)(variables["params"])
            params = jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], grads)
            return {"params": params, **updates}, None

        variables, _ = jax.lax.scan(step, variables, (xs, targets))
        return variables, model.apply(variables, xs[0], False)

    (ours, y), (flaxs, y_flax) = run(jbn.linen.BatchNorm), run(nn.BatchNorm)
    chex.assert_trees_all_close((ours, y), (flaxs, y_flax), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_nnx_trains_like_flax_for_50_steps(masked):
    xs, targets = data((50, 32, 8), mean=1), data((50, 32, 2), 1)
    mask = data((32, 1), 2) > -0.5 if masked else None

    def run(norm):
        rngs = nnx.Rngs(0)
        first, second = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)
        model = nnx.List([first, norm(16, momentum=0.9, rngs=rngs), second])

        @nnx.jit
        def step(model, x, target):
            def loss(model):
                y = model[2](nnx.relu(model[1](model[0](x), mask=mask)))
                return jnp.mean(jnp.square(y - target), where=True if mask is None else mask)

            grads = nnx.grad(loss)(model)
            params = nnx.state(model, nnx.Param)
            nnx.update(model, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads))

        for x, target in zip(xs, targets, strict=True):
            step(model, x, target)
        model.eval()
        return nnx.state(model), model[1](model[0](xs[0]))

    (ours, y), (flaxs, y_flax) = run(jbn.nnx.BatchNorm), run(nnx.BatchNorm)
    chex.assert_trees_all_close((ours, y), (flaxs, y_flax), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [-1, 1, (1, 2)])
@pytest.mark.parametrize("use_scale", [False, True])
def test_linen_variables_are_those_of_flax(axis, use_scale):
    x = data((4, 6, 6))
    options = {"axis": axis, "use_scale": use_scale, "use_running_average": False}
    ours = jbn.linen.BatchNorm(**options).init(jax.random.key(0), x)
    flaxs = nn.BatchNorm(**options).init(jax.random.key(0), x)
    chex.assert_trees_all_equal(ours, flaxs, strict=True)


def test_linen_fields_and_defaults_are_those_of_flax():
    ours, flaxs = (m.__dataclass_fields__ for m in (jbn.linen.BatchNorm, nn.BatchNorm))
    assert list(ours) == list(flaxs)
    for name in set(ours) - {"bias_init", "scale_init"}:
        assert ours[name].default == flaxs[name].default, name


def test_nnx_arguments_are_those_of_flax_but_for_promote_dtype():
    ours, flaxs = (
        dict(inspect.signature(m.__init__).parameters) for m in (jbn.nnx.BatchNorm, nnx.BatchNorm)
    )
    flaxs.pop("promote_dtype")
    assert list(ours) == list(flaxs)
    for name in set(ours) - {"bias_init", "scale_init"}:
        assert ours[name].default == flaxs[name].default, name


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float32])
def test_output_dtype_is_that_of_flax(dtype, x_dtype):
    x = jnp.asarray(data((8, 3))).astype(x_dtype)
    for ours, flaxs in ((jbn.linen.BatchNorm, nn.BatchNorm),):
        with jax.numpy_dtype_promotion("standard"):
            y, _ = flaxs(use_running_average=False, dtype=dtype).init_with_output(
                jax.random.key(0), x
            )
        z, _ = ours(use_running_average=False, dtype=dtype).init_with_output(jax.random.key(0), x)
        assert z.dtype == y.dtype


def test_initializing_needs_neither_the_axis_nor_two_examples_and_keeps_the_start():
    module = jbn.linen.BatchNorm(use_running_average=False, axis_name="nowhere")
    variables = module.init(jax.random.key(0), jnp.ones((1, 3)))
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)


def test_linen_norm_takes_any_norm():
    norm = jbn.batch_norm(decay=jbn.cumulative_decay)
    module = jbn.linen.Norm(norm, use_running_average=False)
    x = data((8, 3), mean=2)
    y: Any = None
    variables: Any = module.init(jax.random.key(0), x)
    for _ in range(3):
        y, updates = module.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **updates}
    expected, _ = norm.train(*norm.init(3), x)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_allclose(variables["batch_stats"]["mean"], x.mean(0), rtol=1e-6)
    assert variables["batch_stats"]["count"] == 3


def test_nnx_norm_takes_any_norm():
    norm = jbn.batch_norm(decay=jbn.cumulative_decay)
    module: Any = jbn.nnx.Norm(norm, 3)
    x = data((8, 3), mean=2)
    for _ in range(3):
        nnx.jit(lambda module, x: module(x))(module, x)
    np.testing.assert_allclose(module.mean[...], x.mean(0), rtol=1e-6)
    module.eval()
    before = module.var[...]
    module(x)
    np.testing.assert_array_equal(module.var[...], before)


@pytest.mark.parametrize("module", [jbn.linen.BatchNorm(use_running_average=False)])
def test_a_mask_over_single_features_is_refused(module):
    variables = module.init(jax.random.key(0), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="does not fit x"):
        module.apply(variables, jnp.ones((4, 3)), mask=jnp.ones(3, bool), mutable=["batch_stats"])


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_an_initializer_without_its_parameter_is_an_error(name):
    no_parameter: Any = {f"use_{name}": False}
    norm = jbn.batch_norm(**no_parameter)
    options: Any = {f"{name}_init": nn.initializers.zeros}
    words = f"{name}_init=.* the norm has no {name}: choose use_{name}=True"
    with pytest.raises(ValueError, match=words):
        jbn.nnx.Norm(norm, 3, **options)
    linen = jbn.linen.Norm(norm, use_running_average=True, **options)
    with pytest.raises(ValueError, match=words):
        linen.init(jax.random.key(0), jnp.ones((4, 3)))
    # In Flax's modules, it has no effect.
    fields = no_parameter | options
    for module in (nnx.BatchNorm, jbn.nnx.BatchNorm):
        assert getattr(module(3, rngs=nnx.Rngs(0), **fields), name) is None
    for module in (nn.BatchNorm, jbn.linen.BatchNorm):
        variables = module(use_running_average=True, **fields).init(
            jax.random.key(0), jnp.ones((4, 3))
        )
        assert name not in variables["params"]


def test_nnx_takes_the_sizes_of_several_feature_axes():
    x = data((4, 3, 2))
    module = jbn.nnx.BatchNorm((3, 2), axis=(1, 2), rngs=nnx.Rngs(0))
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(module(x), expected, rtol=1e-5, atol=1e-5)


def test_nnx_without_a_mode_is_an_error():
    module = jbn.nnx.BatchNorm(3, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="use_running_average"):
        module(jnp.ones((4, 3)))


def test_importing_jbn_does_not_import_flax():
    import subprocess
    import sys

    code = "import jbn, sys; assert 'flax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", [jbn.nnx.BatchNorm, jbn.nnx.Norm, jbn.nnx.DomainNorm])
def test_nnx_signatures_show_the_arguments(module):
    shown = inspect.signature(module).parameters
    assert list(shown) == list(inspect.signature(module.__init__).parameters)[1:]
