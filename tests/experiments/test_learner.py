"""The training run as pure functions."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from experiments.configs import PRESETS
from experiments.data import Dataset
from experiments.evaluation import drift, evaluate
from experiments.learner import Learner, init, train
from experiments.placement import place


def loops(jaxpr: Any) -> list[str]:
    """Returns the loops of a program, also those in functions that it calls."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("scan", "while"):
            found.append(str(equation))
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns"):
                found += loops(inner)
    return found


def test_on_a_cpu_no_convolution_is_in_a_loop():
    """Within a loop, XLA computes the gradients of a convolution about 30 times slower."""
    images, labels = np.zeros((128, 8, 8, 1), np.uint8), np.zeros(128, np.int32)
    data = place(Dataset(images, labels, images, labels, ("0", "1"), "black images"))
    learner = Learner(PRESETS["digits"], 2, 128)
    state = jax.eval_shape(partial(init, learner), data, 0)
    program = jax.make_jaxpr(partial(train, learner), static_argnums=2)(state, data, 2)
    assert "conv_general_dilated" in str(program)
    assert not [loop for loop in loops(program) if "conv_general_dilated" in loop]


@pytest.mark.parametrize("preset", PRESETS)
def test_training_and_evaluation_mix_no_dtypes(preset):
    images, labels = np.zeros((2048, 32, 32, 3), np.uint8), np.zeros(2048, np.int32)
    data = place(Dataset(images, labels, images, labels, ("0", "1"), "black images"))
    learner = Learner(PRESETS[preset], 2, 2048)
    with jax.numpy_dtype_promotion("strict"):
        state = jax.eval_shape(partial(init, learner), data, 0)
        new, _ = jax.eval_shape(partial(train, learner, num_steps=1), state, data)
        jax.eval_shape(partial(evaluate, learner), new, data)
        jax.eval_shape(partial(drift, learner), new, data)


def test_a_channel_whose_pixels_are_all_equal_becomes_zero():
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 4), np.uint8)
    images[..., 3] = 255
    labels = np.zeros(64, np.int32)
    data = place(Dataset(images, labels, images, labels, ("0", "1"), "opaque images"))
    x = Learner(PRESETS["digits"], 2, 64).normalize(data, images)
    np.testing.assert_allclose(x[..., 3], 0, atol=1e-6)
    np.testing.assert_allclose(np.std(x[..., :3]), 1, rtol=1e-5)
