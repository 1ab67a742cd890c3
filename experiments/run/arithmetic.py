"""How JAX computes in a run: its types, their promotion and its random numbers."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.config import Config
from experiments.run.errors import RunError
from experiments.run.stored import stored_config


@contextlib.contextmanager
def arithmetic(config: Config) -> Iterator[None]:
    """Sets how JAX computes in a run, whatever the settings of the environment are."""
    with (
        jax.enable_x64(config.precision == "float64"),
        # Flax's group norm mixes dtypes in bfloat16, and JAX's integers do in float64.
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        # The random numbers of a run must not change when it is resumed elsewhere.
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.disable_jit(False),
        jax.transfer_guard("allow"),
    ):
        yield


def with_dtypes_of_run(command: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Decorates a function of a command's arguments, of which `run` names a run's folder.

    The function has 64-bit types if the run has.
    """

    @functools.wraps(command)
    def wrapped(arguments):
        with arithmetic(stored_config(arguments.run)):
            return command(arguments)

    return wrapped


def check_dtypes(run: Path) -> None:
    """Checks that JAX has 64-bit types if the run has.

    Raises:
      RunError: it has not.
    """
    x64: Any = jax.config
    if stored_config(run).precision == "float64" and not x64.jax_enable_x64:
        raise RunError(
            f"{run} was trained in float64. Call jax.config.update('jax_enable_x64', True) first."
        )
