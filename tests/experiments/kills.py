"""Kills training processes at random moments, and compares what is left with an undisturbed run.

Command: python -m tests.experiments.kills [--kills 60] [--seed 0]

Half of the processes are killed while they write a checkpoint. A killed run is resumed until it is
finished; then its metrics and its last and best state must equal the undisturbed run's, bit for
bit.
"""

import contextlib
import dataclasses
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.run.folder import RunFolder
from experiments.run.trained import Trained
from experiments.tables import table
from tests.launch import start

FLAGS = (
    *("digits", "--data.train-size", "512", "--model.width", "4", "--model.depth", "2"),
    *("--eval-every", "0.25", "--devices", "1"),
)
EPOCHS = 4.0
STEPS_PER_EPOCH = 8
TIMES = ("seconds", "compiling")
"""Fields of records that differ between equal runs."""

TIMEOUT = 300.0
"""Seconds after which a process counts as hanging."""

Moment = Callable[[subprocess.Popen, Path], str | None]
"""Waits for a moment in the life of a process; returns its name, or None if the process ended."""


class Wrong(Exception):
    """A run did something that it must not do."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Kills training processes, and compares what is left with an undisturbed run."""

    kills: int = 60
    """Number of processes to kill."""
    seed: int = 0
    """Seed of the moments."""


def begin(folder: Path, epochs: float = EPOCHS) -> subprocess.Popen:
    """Starts or resumes the run in a folder."""
    if (folder / "config.json").exists():
        flags: Sequence[str] = ("--resume", str(folder), "--devices", "1")
    else:
        flags = (*FLAGS, "--epochs", str(epochs), "--output", str(folder))
    return start("experiments.train", *flags, env=os.environ | {"JAX_PLATFORMS": "cpu"})


def end(process: subprocess.Popen, *codes: int) -> str:
    """Waits for the end of a process; returns its output.

    Raises:
      Wrong: it hangs, or its exit code is none of `codes`.
    """
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise Wrong(f"The process hangs. It printed:\n{process.communicate()[0]}") from error
    if process.returncode not in codes:
        raise Wrong(f"Exit code {process.returncode}, not {codes}. It printed:\n{output}")
    return output


def finish(folder: Path, epochs: float = EPOCHS) -> str:
    """Starts or resumes the run in a folder and waits until it is finished; returns its output."""
    return end(begin(folder, epochs), 0)


def kill(folder: Path, moment: Moment, epochs: float = EPOCHS) -> str | None:
    """Starts or resumes a run, and kills its process; returns what `moment` returns."""
    process = begin(folder, epochs)
    name = moment(process, folder)
    if name is None:
        end(process, 0)
        return None
    process.kill()
    end(process, -signal.SIGKILL, 0)
    return None if process.returncode == 0 else name


def after(seconds: float) -> Moment:
    """Returns the moment this many seconds after the start."""

    def moment(process: subprocess.Popen, folder: Path) -> str | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return None
        return f"after {seconds:.2f} s, at {steps(folder)} steps"

    return moment


def in_write(number: int, delay: float = 0.0) -> Moment:
    """Returns the moment in which a checkpoint is written.

    Args:
      number: which of the checkpoints that the process writes, from 1.
      delay: seconds since the write was seen.
    """

    def moment(process: subprocess.Popen, folder: Path) -> str | None:
        left, seen, now = written(folder), 0, set()
        while seen < number:
            if process.poll() is not None:
                return None
            before, now = now, written(folder) - left
            seen += bool(now - before)
            left &= written(folder)
            time.sleep(0.0005)
        time.sleep(delay)
        path = min(now)
        return f"in the write of {path.parent.name}/{path.name}, {1000 * delay:.0f} ms later"

    return moment


def written(folder: Path) -> set[Path]:
    """Returns the checkpoints that are partly written."""
    return {path for path in (folder / "checkpoints").glob("*/*") if "tmp" in path.name}


def steps(folder: Path) -> int:
    """Returns the number of training steps in the metrics."""
    return len(RunFolder(folder).records("train"))


def outcome(folder: Path) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Returns the records of a run without their times, and its last and its best state."""
    records = [
        {name: value for name, value in record.items() if name not in TIMES}
        for record in RunFolder(folder).records()
    ]
    states = [Trained.open(folder, which).state for which in ("newest", "best")]
    return records, [np.asarray(leaf) for leaf in jax.tree.leaves(states)]


def check_equal(folder: Path, whole: Path) -> None:
    """Checks that a run has the records and the states of an undisturbed run, in its order.

    Raises:
      Wrong: it has not.
    """
    (records, state), (expected, last) = outcome(folder), outcome(whole)
    if records != expected:
        pairs = itertools.zip_longest(records, expected)
        a, b = next((a, b) for a, b in pairs if a != b)
        raise Wrong(f"{folder}: the record {a} differs from {b}.")
    for a, b in zip(state, last, strict=True):
        if a.dtype != b.dtype or a.tobytes() != b.tobytes():
            raise Wrong(f"{folder}: the last or the best state differs.")


def saved(folder: Path, which: str) -> list[int]:
    """Returns the steps of the newest or best checkpoints."""
    paths = (folder / "checkpoints" / which).iterdir()
    return [int(path.name) for path in paths if path.name.isdecimal()]


def damage(checkpoints: Path) -> None:
    """Cuts off all files in a folder of checkpoints."""
    for path in checkpoints.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])


def damage_newest(whole: Path, folder: Path) -> str:
    """Kills a run and damages its newest checkpoints; it goes on from the best one."""
    stop_after(folder, 13)
    damage(folder / "checkpoints" / "newest")
    newest, best = (max(saved(folder, which)) for which in ("newest", "best"))
    output = finish(folder)
    if newest >= best and f"newest/{newest} cannot be read" not in output:
        raise Wrong(f"Nobody is told of the damaged checkpoints:\n{output}")
    check_equal(folder, whole)
    return output


def damage_all(whole: Path, folder: Path) -> str:
    """Kills a run and damages all its checkpoints; the error names them, and none is deleted."""
    stop_after(folder, 13)
    damage(folder / "checkpoints")
    files = sorted((folder / "checkpoints").rglob("*"))
    output = end(begin(folder), 2)
    error = output.splitlines()[-1]
    for which in ("newest", "best"):
        for step in saved(folder, which):
            if f"checkpoints/{which}/{step}" not in error:
                raise Wrong(f"The error does not name {which}/{step}:\n{output}")
    if sorted((folder / "checkpoints").rglob("*")) != files:
        raise Wrong(f"Files of {folder}/checkpoints were deleted.")
    return error


def terminate_in_last_step(whole: Path, folder: Path) -> str:
    """Sends SIGTERM when the last step is done and not evaluated; the run finishes."""
    process = begin(folder)
    wait_for(process, lambda: steps(folder) == round(EPOCHS * STEPS_PER_EPOCH))
    process.terminate()
    output = end(process, 0)
    check_equal(folder, whole)
    return output


def terminate(whole: Path, folder: Path) -> str:
    """Sends SIGTERM in the middle; the state is saved, and the resumed run equals the other."""
    process = begin(folder)
    wait_for(process, lambda: steps(folder) >= 13)
    process.terminate()
    output = end(process, 128 + signal.SIGTERM)
    if f"Resume with: python -m experiments.train --resume {folder}" not in output:
        raise Wrong(f"Nobody is told how to resume:\n{output}")
    if not (folder / "checkpoints" / "newest" / str(steps(folder))).exists():
        raise Wrong(f"Step {steps(folder)} is not saved.")
    finish(folder)
    check_equal(folder, whole)
    return output


def write_twice(whole: Path, folder: Path) -> str:
    """Resumes a run that another process still trains; the second process ends."""
    first = begin(folder)
    wait_for(first, lambda: steps(folder) >= 5)
    first.send_signal(signal.SIGSTOP)
    try:
        output = end(begin(folder), 2)
    finally:
        first.send_signal(signal.SIGCONT)
    if f"process {first.pid} on" not in output.splitlines()[-1]:
        raise Wrong(f"The error does not name process {first.pid}:\n{output}")
    end(first, 0)
    check_equal(folder, whole)
    return output


def start_twice(whole: Path, folder: Path) -> str:
    """Starts two runs with one folder at the same time; one of them ends."""
    processes = [begin(folder), begin(folder)]
    outputs = [end(process, 0, 2) for process in processes]
    codes = [process.returncode for process in processes]
    if sorted(codes) != [0, 2]:
        raise Wrong(f"The exit codes are {codes}:\n{''.join(outputs)}")
    check_equal(folder, whole)
    return outputs[codes.index(2)]


SCENES: tuple[Callable[[Path, Path], str], ...] = (
    *(damage_newest, damage_all, terminate_in_last_step, terminate, write_twice, start_twice),
)


def stop_after(folder: Path, count: int) -> None:
    """Starts a run and kills it after a number of steps."""
    process = begin(folder)
    wait_for(process, lambda: steps(folder) >= count)
    process.kill()
    end(process, -signal.SIGKILL)


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Waits until a condition holds.

    Raises:
      Wrong: the process has ended before.
    """
    while not condition():
        if process.poll() is not None:
            raise Wrong(f"The process ended too early. It printed:\n{process.communicate()[0]}")
        time.sleep(0.002)


def moments(seed: int, duration: float) -> Iterator[Moment]:
    """Returns endless random moments, every second one of them in a write."""
    choose = random.Random(seed)
    while True:
        yield after(choose.uniform(0, duration))
        yield in_write(choose.randint(1, 8), choose.choice((0.0, 0.0, 0.003, 0.01, 0.03)))


def main(arguments: Arguments) -> int:
    """Kills processes and prints a line for each, and a table; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="jbn-kills-") as name:
        folder, cache = Path(name), {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        os.environ.update(cache)
        finish(folder / "compiles", 0.25)
        started = time.monotonic()
        finish(folder / "whole")
        duration = time.monotonic() - started
        print(f"An undisturbed run takes {duration:.1f} s.", flush=True)
        counts = _kill_many(arguments, folder, duration)
        for scene in SCENES:
            counts["scenes"] += 1
            path = folder / scene.__name__
            counts["failures"] += _fails(
                scene.__name__, lambda s=scene, p=path: s(folder / "whole", p)
            )
    print(table(["what", "number"], [(name, str(count)) for name, count in counts.items()]))
    return 1 if counts["failures"] else 0


def _kill_many(arguments: Arguments, folder: Path, duration: float) -> dict[str, int]:
    counts = dict.fromkeys(
        ("killed", "killed in a write", "runs", "runs equal to the undisturbed one"), 0
    ) | {"scenes": 0, "failures": 0}
    schedule = moments(arguments.seed, duration)
    while counts["killed"] < arguments.kills:
        counts["runs"] += 1
        path = folder / f"run-{counts['runs']}"

        def one_run(path=path) -> str:
            kills = 0
            while counts["killed"] < arguments.kills:
                name = kill(path, next(schedule))
                if name is None:
                    break
                kills += 1
                counts["killed"] += 1
                counts["killed in a write"] += name.startswith("in the write")
                print(f"kill {counts['killed']:3}  {path.name}  {name}", flush=True)
            if not (path / "summary.json").exists():
                finish(path)
            check_equal(path, folder / "whole")
            return f"equal to the undisturbed run after {kills} kills"

        failed = _fails(path.name, one_run)
        counts["failures"] += failed
        counts["runs equal to the undisturbed one"] += not failed
    return counts


def _fails(name: str, scene: Callable[[], str]) -> bool:
    try:
        output = scene()
    except Wrong as error:
        print(f"{name}: WRONG: {error}", flush=True)
        return True
    print(f"{name}: as it must be: {output.strip().splitlines()[-1]}", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
