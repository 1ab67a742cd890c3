"""Sets up eight CPU devices, and strict promotion of dtypes and ranks in the library's tests."""

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

os.environ.setdefault("KERAS_BACKEND", "jax")  # This comes before the first import of Keras.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.devices()  # This fixes the number of devices.


def pytest_configure(config):
    """Shares compiled programs among all workers and the processes that tests start.

    If JAX_COMPILATION_CACHE_DIR names a folder, the next test run finds the programs there.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="jbn-compiled-")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_finish():
    """Excludes the objects that live until the end from garbage collection."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _compile_fast(request):
    """Leaves out LLVM's optimizations, which change the last digits at most.

    XLA's optimizations stay, and with them the HLO. Files that test last digits, and slow tests,
    run the same programs as users do.
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
    """Makes promotion an error, except in the experiments, which use libraries that promote."""
    if "experiments" not in request.path.parts:
        request.getfixturevalue("strict_promotion")


@pytest.fixture
def x64():
    """Allows 64-bit types in one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def platform(request, monkeypatch):
    """Traces the code for the platform "cpu", "gpu" or "tpu", and runs it on the CPU."""

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
