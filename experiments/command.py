"""The flags of the training command, the run's folder, and the errors that end a run early."""

import dataclasses
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro

from experiments.config import Config, differences, from_dict, to_dict
from experiments.configs import PRESETS
from experiments.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A training run: its configuration, its folder, its data and its devices."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Path | None = None
    """Folder of the run; by default runs/PRESET-TIME."""
    resume: Path | None = None
    """Folder of a run to continue."""
    data_dir: Path | None = None
    """Folder with CIFAR-10's unpacked binary files; by default they are downloaded and cached."""
    data_variant: str | None = None
    """Name that reports give to the data in --data-dir."""
    devices: int | None = None
    """Number of devices of each process; all by default. On a CPU, JAX creates this many."""
    processes: int = 1
    """Number of processes that train together. Start each with the same flags but --process."""
    process: int = 0
    """Number of this process, from 0."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 waits for the others."""
    chunk: int | None = None
    """Number of steps in one call of the device; by default 1 on a CPU and 50 elsewhere."""
    eval_every: float = 1.0
    """Number of epochs between evaluations. Each evaluation saves a checkpoint."""

    @property
    def folder(self) -> Path:
        """The folder of the run, new or resumed."""
        folder = self.resume or self.output
        assert folder is not None, "parse() names one"
        return folder


class RunError(Exception):
    """The run cannot start or continue. The message says what to do."""


class Interrupted(Exception):
    """A signal ended the run, and the state of the run is saved.

    Args:
      run: the run.
      number: number of the signal.
    """

    def __init__(self, run: Run, number: int):
        super().__init__(
            f"{signal.Signals(number).name} ended the run, and its state is saved. "
            f"Resume with: {resume_command(run)}"
        )
        self.exit_code = 128 + number


def parse(arguments: Sequence[str]) -> Run:
    """Returns the run that the command line describes.

    Raises:
      RunError: the preset is unknown, the folder to resume holds no run, or a flag for several
        processes is missing.
    """
    presets = ", ".join(PRESETS)
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else "digits"
    if name not in PRESETS:
        raise RunError(f"There is no preset {name!r}; choose one of: {presets}.")
    config = PRESETS[name]
    resume = tyro.cli(_Resume, args=arguments[named:], return_unknown_args=True, add_help=False)[0]
    if resume.resume and not named:
        config = _stored_config(resume.resume)
    run = tyro.cli(
        Run,
        default=Run(config),
        args=arguments[named:],
        prog=f"python -m experiments.train {name}",
        description=f"Trains a network. The first argument may name a preset: {presets}.",
    )
    _check_processes(run)
    if run.output or run.resume:
        return run
    time_of_day = datetime.now().strftime("%Y%m%d-%H%M%S")
    return dataclasses.replace(run, output=Path("runs") / f"{config.name}-{time_of_day}")


@dataclass(frozen=True)
class _Resume:
    resume: Path | None = None


def _check_processes(run: Run) -> None:
    if not 0 <= run.process < run.processes:
        raise RunError(
            f"--process {run.process} must be a number from 0 to {run.processes - 1}, because "
            f"--processes is {run.processes}."
        )
    if run.processes == 1:
        return
    if not run.coordinator:
        raise RunError(
            f"--processes {run.processes}: add --coordinator HOST:PORT, the address of process 0."
        )
    if not (run.output or run.resume):
        raise RunError(f"--processes {run.processes}: choose one folder for all with --output.")


def open_folder(run: Run) -> RunFolder:
    """Returns the run's folder.

    Raises:
      RunError: the folder of a new run holds a run already, or the folder to resume holds no run or
        a run with another configuration.
    """
    if run.resume is None and (run.folder / "config.json").exists():
        raise RunError(
            f"{run.folder} already holds a run. Continue it with --resume, or choose another "
            "--output."
        )
    old = run.config if run.resume is None else _stored_config(run.resume)
    changes = differences(to_dict(old), to_dict(run.config))
    if changes:
        raise RunError(
            f"{run.resume} holds a run with another configuration. Start a new run, or drop the "
            "flags that make these changes:\n  " + "\n  ".join(changes)
        )
    return RunFolder(run.folder, writes=run.process == 0)


def resume_command(run: Run) -> str:
    """Returns the command that resumes a run; with several processes, that of this process."""
    command = f"python -m experiments.train --resume {run.folder}"
    if run.processes == 1:
        return command
    return (
        f"{command} --processes {run.processes} --process {run.process} "
        f"--coordinator {run.coordinator}"
    )


def _stored_config(folder: Path) -> Config:
    try:
        return from_dict(RunFolder(folder).read("config.json"))
    except FileNotFoundError as error:
        raise RunError(
            f"--resume {folder}: the folder holds no run, because {error.filename} is missing."
        ) from error
