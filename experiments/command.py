"""The training command: its flags, the folder that they name, and how it ends early."""

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
    """A configuration, and how it is carried out."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Path | None = None
    """Folder of the run; by default runs/PRESET-TIME."""
    resume: Path | None = None
    """Folder of a run to go on with."""
    data_dir: Path | None = None
    """Folder with CIFAR-10's binary files, unpacked; by default they are fetched and cached."""
    data_variant: str | None = None
    """What reports call the data of --data-dir."""
    devices: int | None = None
    """Number of devices of each process, by default all; on a CPU, that many are made."""
    processes: int = 1
    """Number of processes that train together; each is started with these same flags."""
    process: int = 0
    """Which of them this is, from 0; the one flag in which they differ."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 waits for the others."""
    chunk: int | None = None
    """Steps in one call of the device; by default 1 on a CPU, else 50."""
    eval_every: float = 1.0
    """Epochs between evaluations, each of which saves a checkpoint."""

    @property
    def folder(self) -> Path:
        """The run's, old or new."""
        folder = self.resume or self.output
        assert folder is not None, "parse() names one"
        return folder


class RunError(Exception):
    """The run cannot start or go on; the message says what to do."""


class Interrupted(Exception):
    """A signal asked the run to end; its state is saved.

    Args:
      run: which one.
      number: of the signal.
    """

    def __init__(self, run: Run, number: int):
        super().__init__(
            f"Ended by {signal.Signals(number).name}; saved. Go on with: {resume_command(run)}"
        )
        self.exit_code = 128 + number


def parse(arguments: Sequence[str]) -> Run:
    """Returns the run that the command line describes.

    Raises:
      RunError: the preset is unknown, the folder to resume holds no run, or the processes cannot
        find each other.
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
            f"--process {run.process}: give a number from 0 to --processes {run.processes} less 1."
        )
    if run.processes == 1:
        return
    if not run.coordinator:
        raise RunError(f"--processes {run.processes}: add --coordinator HOST:PORT of process 0.")
    if not (run.output or run.resume):
        raise RunError(f"--processes {run.processes}: name their one folder with --output.")


def open_folder(run: Run) -> RunFolder:
    """Returns the run's folder, after checking that it is new or holds the same configuration.

    Raises:
      RunError: it is neither.
    """
    if run.resume is None and (run.folder / "config.json").exists():
        raise RunError(f"{run.folder} holds a run: resume it, or choose another --output.")
    old = run.config if run.resume is None else _stored_config(run.resume)
    changes = differences(to_dict(old), to_dict(run.config))
    if changes:
        raise RunError(
            f"{run.resume} holds a run of another configuration; start a new one, or drop the "
            "flags that change it:\n  " + "\n  ".join(changes)
        )
    return RunFolder(run.folder, writes=run.process == 0)


def resume_command(run: Run) -> str:
    """Returns the command that goes on with a run, of this process where there are several."""
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
            f"--resume {folder}: there is no run; {error.filename} is missing."
        ) from error
