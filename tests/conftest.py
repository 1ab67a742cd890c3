"""Eight CPU devices and strict dtypes for every test."""

import os

import jax
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")  # Before anything imports Keras.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.devices()  # From here on the number is fixed.


@pytest.fixture(autouse=True)
def _strict_dtypes(request):
    """Implicit promotion is an error, but in the experiments, which other libraries share."""
    if "experiments" in request.path.parts:
        yield
        return
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    """64-bit types for one test."""
    with jax.enable_x64(True):
        yield
