"""The processes of a run and their devices: how they join, agree and part."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from experiments.command import Interrupted, Run, RunError, resume_command

HEARTBEAT_TIMEOUT = 20
"""Seconds without a sign of life after which a process counts as gone."""


@contextlib.contextmanager
def connected_processes(run: Run) -> Iterator[None]:
    """Joins the run's other processes, before any device is used; waits for them at the end."""
    if run.devices:
        # Where JAX has started before, `make_mesh` checks the number of its devices.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", run.devices)
    if run.processes == 1:
        yield
        return
    jax.config.update("jax_enable_preemption_service", False)  # It would take SIGTERM for itself.
    jax.distributed.initialize(
        run.coordinator,
        run.processes,
        run.process,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
    )
    with _at_a_common_end(jax.distributed.shutdown):
        yield


@contextlib.contextmanager
def resume_hint(run: Run) -> Iterator[None]:
    """Has the command that resumes the run printed, should this process end on its own.

    Where one of several processes is lost, JAX aborts the others, which cannot print any more: a
    process that each has started before does it for them.
    """
    if run.processes == 1:
        yield
        return
    hint = (
        f"error: process {run.process} of {run.processes} ended in the middle of the run: it "
        "failed, as shown above, or another process is gone. Once all have ended, go on with: "
        + resume_command(run)
    )
    script = Path(__file__).with_name("resume_hint.py")
    printer = subprocess.Popen(
        [sys.executable, str(script), hint],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Signals to this process's group must not reach it.
    )
    with _at_a_common_end(lambda: printer.communicate(b".")):
        yield


@contextlib.contextmanager
def _at_a_common_end(call: Callable[[], object]) -> Iterator[None]:
    """Calls at an end that all processes reach at the same step."""
    try:
        yield
    except (Interrupted, RunError):
        call()
        raise
    call()


def make_mesh(run: Run) -> Mesh:
    """Returns all devices of all processes, or as many of each as asked for, on one axis `data`.

    Raises:
      RunError: there are fewer, or they cannot share a batch evenly.
    """
    local = jax.local_devices()
    if run.devices and run.devices > len(local):
        raise RunError(f"--devices {run.devices}: this process has {len(local)} ({local[0]}).")
    devices = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[: run.devices]
    ]
    for name in ("batch_size", "eval_batch_size"):
        if getattr(run.config, name) % len(devices):
            raise RunError(
                f"{name}={getattr(run.config, name)} cannot be spread evenly over {len(devices)} "
                "devices: choose a multiple, or fewer with --devices."
            )
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


class Signals:
    """Remembers the last SIGINT or SIGTERM, so that the steps in flight end first."""

    _received = 0

    def __enter__(self) -> "Signals":
        """Takes the signals from here on."""
        self._previous = {
            number: signal.signal(number, self._remember)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        """Gives them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number, _):
        self._received = number

    def agreed(self) -> int:
        """Returns the number of a signal that any process received, or 0; the same in all."""
        if jax.process_count() == 1:
            return self._received
        return int(np.max(multihost_utils.process_allgather(np.int32(self._received))))
