"""The networks: published sizes, initial values, with a norm or without."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import jbn.linen
from experiments.configs import PRESETS
from experiments.learner import Learner
from experiments.models import ResNet20, Small, Strided
from experiments.models.airbench import identity_first, whitening_kernel
from experiments.models.layers import Layers
from experiments.norms import BatchNorm
from experiments.run.settings import changed
from tests.helpers import data, slow_but_for, trained


def init(preset, shape=(2, 32, 32, 3), **changes):
    config = changed(PRESETS[preset], changes)
    model = Learner(config, 10, 1).model
    x = jnp.zeros(shape)
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), x, True))


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_airbench_has_the_published_size():
    """Jordan 2024 gives 1.97 million. They are counted here layer by layer."""
    _, variables = init("cifar10")
    convs = [24 * 64, 64 * 64, 64 * 256, 256 * 256, 256 * 256, 256 * 256]
    norms = 64 + 64 + 4 * 256  # biases only
    expected = 9 * sum(convs) + 256 * 10 + 24 * 12 + 24 + norms
    assert size(variables["params"]) == expected
    assert round(expected / 1e6, 2) == 1.97


def test_resnet20_has_the_published_size():
    """He et al. 2015 give 0.27 million in table 6. The exact 269,722 is counted by hand."""
    _, variables = init("resnet20")
    convs = 3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert size(variables["params"]) == 9 * convs + norms + 64 * 10 + 10 == 269_722


@pytest.mark.parametrize("method", slow_but_for(["batch"], ["batch", "inplace", "none"]))
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_with_and_without_a_norm(preset, method):
    shape = (4, 8, 8, 1) if preset == "digits" else (4, 32, 32, 3)
    small = {"model": {"widths": (4, 8, 8)}} if preset.startswith("cifar10") else {}
    model, _ = init(preset, shape, norm={"method": method}, **small)
    x = jax.random.normal(jax.random.key(1), shape)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), x, True)
    assert ("batch_stats" in variables) == (method != "none")
    apply = jax.jit(lambda variables, x: model.apply(variables, x, True, mutable=["batch_stats"]))
    logits, _ = apply(variables, x)
    assert logits.shape == (4, 10)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()


def test_norms_without_scale_or_bias():
    _, variables = init("digits", (2, 8, 8, 1), norm=BatchNorm(scale=False), model=Small())
    norms = [layer["norm"] for layer in variables["params"].values() if "norm" in layer]
    assert [set(norm) for norm in norms] == [{"bias"}] * 4


def test_identity_first_copies_its_input():
    kernel = identity_first(jax.random.key(0), (3, 3, 4, 6))
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 4))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_array_equal(y[..., :4], x)
    bound = 1 / np.sqrt(9 * 4)
    assert 0 < jnp.abs(kernel[..., 4:]).max() <= bound


def test_whitened_patches_are_uncorrelated():
    images = jax.random.normal(jax.random.key(0), (64, 12, 12, 3))
    images = images + 0.5 * images[:, :, ::-1].mean(-1, keepdims=True)
    kernel = whitening_kernel(images, epsilon=0.0)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    y = jax.lax.conv_general_dilated(
        images, kernel[..., :12], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).reshape(-1, 12)
    np.testing.assert_allclose(y.T @ y / len(y), np.eye(12), atol=2e-5)


@pytest.mark.parametrize("size", [8, 32])
def test_strided_halves_to_2x2_and_normalizes_what_is_activated(size):
    shape = (16, size, size, 1)
    model, _ = init("digits", shape, model=Strided())
    x = jax.random.normal(jax.random.key(1), shape)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), x, True)
    _, outputs = model.apply(
        variables, x, True, capture_intermediates=True, mutable=["batch_stats", "intermediates"]
    )
    captured: Any = outputs["intermediates"]
    (normalized,), (convolved,) = (
        captured["ConvNorm_3"]["__call__"],
        captured["ConvNorm_3"]["Conv_0"]["__call__"],
    )
    assert normalized.shape == (16, 2, 2, 32)
    activated = jax.nn.relu(convolved)
    expected = (activated - activated.mean((0, 1, 2))) / jnp.sqrt(activated.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(normalized, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("strict_promotion")
def test_a_linen_resnet20_without_its_norms_is_the_same():
    model = ResNet20().make(10, Layers(jbn.batch_norm()))
    x = data((2, 16, 16, 3))
    variables = trained(jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x))
    folded = jbn.linen.fold(model, variables, x, False)
    assert (len(folded.layers), folded.refused) == (19, {})
    assert "batch_stats" not in folded.variables
    wanted = jax.jit(lambda v: model.apply(v, x, False))(variables)
    y = jax.jit(lambda v: folded.apply(v, x, False))(folded.variables)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    primitives = str(jax.make_jaxpr(lambda v: folded.apply(v, x, False))(folded.variables))
    assert "rsqrt" not in primitives
