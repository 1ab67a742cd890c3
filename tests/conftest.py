"""Eight CPU devices, and strict dtypes and ranks for the tests of the library."""

import os

import jax
import pytest
from jax import lax

os.environ.setdefault("KERAS_BACKEND", "jax")  # Before anything imports Keras.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.devices()  # From here on the number is fixed.


@pytest.fixture
def strict_promotion():
    """Makes the implicit promotion of dtypes and ranks an error."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def _strict_outside_of_experiments(request):
    """The experiments share their programs with libraries that promote."""
    if "experiments" not in request.path.parts:
        request.getfixturevalue("strict_promotion")


@pytest.fixture
def x64():
    """Allows 64-bit types in one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def on_a_tpu(monkeypatch):
    """Traces what would be compiled for a TPU, and runs it on the CPU."""

    def form_for_a_tpu(*operands, default, tpu=None, **_):
        return (tpu or default)(*operands)

    monkeypatch.setattr(lax, "platform_dependent", form_for_a_tpu)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def platform(request):
    """Runs a test in the form for the CPU or, if the parameter is "tpu", in that for a TPU."""
    if request.param == "tpu":
        request.getfixturevalue("on_a_tpu")
    return request.param
