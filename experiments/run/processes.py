"""Connects the processes of a run, makes the mesh of their devices, and catches signals."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from experiments.run.errors import Interrupted, RunError
from experiments.run.flags import Run
from experiments.run.meeting import meet

HEARTBEAT_TIMEOUT = 20
"""Seconds without a heartbeat after which a process counts as lost."""


@contextlib.contextmanager
def connected_processes(run: Run) -> Iterator[None]:
    """Joins the run's other processes, and waits for them at the end.

    Enter it before any device is used.

    Raises:
      RunError: the other processes cannot be reached.
    """
    if run.devices:
        # This fails if JAX has already started; `make_mesh` then checks the number of devices.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", run.devices)
    if not run.is_distributed:
        yield
        return
    jax.config.update("jax_enable_preemption_service", False)  # It would catch SIGTERM.
    addresses = {}
    if not run.distributed:
        assert run.coordinator is not None
        meet(run.coordinator, run.processes, run.process, run.wait)
        addresses = {
            "coordinator_address": run.coordinator,
            "num_processes": run.processes,
            "process_id": run.process,
        }
    try:
        jax.distributed.initialize(
            **addresses,
            initialization_timeout=round(run.wait),
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        advice = " Use --processes, --process and --coordinator." if run.distributed else ""
        raise RunError(f"The processes of the run could not join: {reason}{advice}") from error
    with _at_a_common_end(jax.distributed.shutdown):
        yield


@contextlib.contextmanager
def resume_hint(run: Run) -> Iterator[None]:
    """Prints the command that resumes the run if this process dies.

    If one of several processes is lost, JAX aborts the others before they can print anything. So
    each process starts a helper process, which prints the command for it.
    """
    if jax.process_count() == 1:
        yield
        return
    hint = (
        f"error: process {jax.process_index()} of {jax.process_count()} ended before the run was "
        "finished. It failed with an error above, or another process is gone. When all processes "
        f"have ended, resume with: {run.resume_command}"
    )
    script = Path(__file__).with_name("resume_hint.py")
    printer = subprocess.Popen(
        [sys.executable, str(script), hint],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Signals to this process's group must not reach the helper.
    )
    with _at_a_common_end(lambda: printer.communicate(b".")):
        yield


@contextlib.contextmanager
def _at_a_common_end(call: Callable[[], object]) -> Iterator[None]:
    """Calls a function at an end that all processes reach at the same step.

    They do so at the regular end, and with the errors `Interrupted` and `RunError`.
    """
    try:
        yield
    except (Interrupted, RunError):
        call()
        raise
    call()


def local_devices() -> Sequence[Any]:
    """Returns the devices of this process.

    Raises:
      RunError: JAX cannot use the platform of the environment variable JAX_PLATFORMS.
    """
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "it does not support these platforms here."
        platforms = f" of JAX_PLATFORMS={names}" if (names := os.getenv("JAX_PLATFORMS")) else ""
        raise RunError(f"JAX finds no devices{platforms}: {reason}") from error


def make_mesh(run: Run) -> Mesh:
    """Returns a mesh of the devices of all processes, on one axis `data`.

    It takes the first `run.devices` devices of each process, or all if that is None.

    Raises:
      RunError: a process has fewer devices, or the devices cannot share a batch evenly.
    """
    local = local_devices()
    if run.devices and run.devices > len(local):
        raise RunError(f"--devices {run.devices}: this process has only {len(local)} ({local[0]}).")
    devices = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[: run.devices]
    ]
    for name in ("batch_size", "eval_batch_size"):
        if getattr(run.config, name) % len(devices):
            raise RunError(
                f"{name}={getattr(run.config, name)} cannot be spread evenly over {len(devices)} "
                f"devices. Choose a multiple of {len(devices)}, or use fewer devices with "
                "--devices."
            )
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


class Signals:
    """Remembers SIGINT and SIGTERM, so that running steps end before the run does.

    A second SIGINT ends the process at once.

    Args:
      advice: what to tell who ends it so.
    """

    _received = 0

    def __init__(self, advice: str = ""):
        self._advice = advice

    def __enter__(self) -> Self:
        """Starts to catch the signals."""
        self._previous = {
            number: signal.signal(number, self._remember)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the previous handlers of the signals."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number, _):
        if number == signal.SIGINT == self._received:
            raise KeyboardInterrupt(self._advice)
        self._received = number
        name = signal.Signals(number).name
        hint = " A second Ctrl-C ends it at once." if number == signal.SIGINT else ""
        text = f"{name}: the run ends after this step.{hint}\n"
        # Printing is not safe here, because the signal may have interrupted another print.
        with contextlib.suppress(OSError):
            os.write(2, text.encode())

    def agreed(self) -> int:
        """Returns the number of a signal that any process received, or 0.

        All processes get the same number.
        """
        if jax.process_count() == 1:
            return self._received
        return int(np.max(multihost_utils.process_allgather(np.int32(self._received))))
