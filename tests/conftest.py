"""Eight CPU devices, and strict dtypes and ranks for the tests of the library."""

import gc
import os
import tempfile

import jax
import pytest
from jax import lax

LAST_DIGITS = {
    *("test_edges", "test_merge_states", "test_methods", "test_moments", "test_norms"),
    *("test_offsets", "test_shifted_means"),
}

os.environ.setdefault("KERAS_BACKEND", "jax")  # Before anything imports Keras.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.devices()  # From here on the number is fixed.


def pytest_configure(config):
    """Compiles a program once for all workers and for the processes that tests start.

    Whoever names a folder in JAX_COMPILATION_CACHE_DIR finds the programs there the next time.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="jbn-compiled-")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_finish():
    """Spares the garbage collector what stays until the end."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _compile_fast(request):
    """Leaves out LLVM's optimizations, which change the last digits at most.

    Those of XLA stay, and with them the HLO. Files about last digits, and slow tests, run what
    users run.
    """
    fast = "not slow" in request.config.option.markexpr and request.path.stem not in LAST_DIGITS
    if fast != jax.config.read("jax_disable_most_optimizations"):
        jax.config.update("jax_disable_most_optimizations", fast)
        jax.clear_caches()


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
def platform(request, monkeypatch):
    """Traces what would be compiled for the platform "cpu", "gpu" or "tpu", and runs it here."""

    def form(*operands, default, **forms):
        name = "cuda" if request.param == "gpu" else request.param
        return forms.get(name, default)(*operands)

    if request.param == "cpu":
        yield request.param
        return
    monkeypatch.setattr(lax, "platform_dependent", form)
    jax.clear_caches()
    yield request.param
    jax.clear_caches()
