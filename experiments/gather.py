"""Adds the results of training runs to a small JSON file, and prints a table of all in it.

Command: python -m experiments.gather FILE FOLDER...
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.run.atomic import write_text
from experiments.run.command_line import cli
from experiments.run.errors import RunError, exit_code
from experiments.run.folder import RunFolder
from experiments.run.results import markdown, read_result, settings_of
from experiments.run.stored import PARTS

_PARTS = {"config", "environment", "outcome"}


@dataclass(frozen=True)
class Arguments:
    """Adds the results of training runs to a small JSON file, and prints a table of all in it."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """JSON file of the results, which is created if it is missing."""
    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER...")]
    """Folders of runs, or of several runs by one command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    return exit_code(lambda: carry_out(cli(Arguments, "gather", arguments)))


def carry_out(arguments: Arguments) -> None:
    """Adds the results, and prints the table.

    A run that the file holds is not added again.

    Raises:
      RunError: a folder holds no run, the file holds something else than results, or it holds
        another run of the same settings with the same seed or with other images.
    """
    file = arguments.file
    if not arguments.folders:
        raise RunError("Name at least one folder: python -m experiments.gather FILE FOLDER...")
    runs = _stored(file) if file.exists() else []
    for folder in _all_runs(arguments.folders):
        run = read_result(RunFolder(folder))
        if run not in runs:
            _check_fits(run, runs, f"{file} holds another run with the settings of {folder}")
            runs.append(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(runs, indent=1) + "\n")
    print(markdown(runs))


def _all_runs(folders: Iterable[Path]) -> Iterator[Path]:
    """Yields the folders of runs, also those in a folder of several runs."""
    for folder in folders:
        if (folder / PARTS).exists():
            yield from sorted(file.parent for file in folder.glob("*/config.json"))
        else:
            yield folder


def _check_fits(run: dict[str, Any], runs: Iterable[dict[str, Any]], found: str) -> None:
    """Checks that runs with the same settings have another seed and the same images."""
    images = "fingerprint"
    for other in (other for other in runs if settings_of(other) == settings_of(run)):
        if other["config"]["seed"] == run["config"]["seed"]:
            raise RunError(f"{found} and its seed. Choose another file, or another run.")
        if images in other and images in run and other[images] != run[images]:
            raise RunError(f"{found} but other images. Choose another file, or another run.")


def _stored(file: Path) -> list[dict[str, Any]]:
    try:
        runs = json.loads(file.read_text())
    except (OSError, ValueError):
        runs = None
    if isinstance(runs, list) and all(isinstance(r, dict) and r.keys() >= _PARTS for r in runs):
        return runs
    raise RunError(f"{file} holds no results of runs. Choose another file.")


if __name__ == "__main__":
    sys.exit(main())
