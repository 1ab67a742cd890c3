"""Calls functions in their own processes, so that each has the GPU alone."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any


def alone(cache: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process; returns its result or raises its error.

    In that process, JAX allocates memory as it needs it, so that its peak can be read and memory is
    left for PyTorch. JAX caches compiled programs. A cached program runs without the compiler's
    search for the fastest convolutions, which needs its own memory.

    Args:
      cache: folder of compiled programs.
      function: function that is defined in a module.
      *arguments: arguments of the function, which are pickled.
    """
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(cache.absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    # The child sets its environment before it imports the function's module, which imports JAX.
    with ProcessPoolExecutor(1, get_context("spawn"), _prepare, (environment,)) as pool:
        return pool.submit(function, *arguments).result()


def _prepare(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process if its parent is killed, so that two never write the same results."""
    parent = parent_process()
    assert parent is not None, "a child runs this"
    parent.join()
    os._exit(1)
