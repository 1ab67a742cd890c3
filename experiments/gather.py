"""Adds the results of training runs to a small JSON file, and prints a table of all in it.

Command: python -m experiments.gather FILE FOLDER...
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.data.paths import is_special
from experiments.run.atomic import write_text
from experiments.run.command_line import cli
from experiments.run.errors import RunError, exit_code
from experiments.run.folder import RunFolder
from experiments.run.results import markdown, read_result, settings_of
from experiments.run.settings import changed
from experiments.run.stored import PARTS


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

    A run that the file holds is not added again. If it has gone on since, its result is replaced.

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
        place = next((i for i, other in enumerate(runs) if _is_same(other, run)), None)
        if place is None:
            _check_fits(run, runs, f"{file} holds another run with the settings of {folder}")
            runs.append(run)
        elif _scores(runs[place]) == _scores(run):
            # The stored outcome has the times of before the run was resumed.
            runs[place] = run | {"outcome": runs[place]["outcome"]}
        else:
            runs[place] = run
    table = markdown(runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(runs, indent=1) + "\n")
    print(table)


def _all_runs(folders: Iterable[Path]) -> Iterator[Path]:
    """Yields the folders of runs, also those in a folder of several runs."""
    for folder in folders:
        if (folder / PARTS).exists():
            found = sorted(file.parent for file in folder.glob("*/config.json"))
            if not found:
                raise RunError(f"{folder} holds no run.")
            yield from found
        else:
            yield folder


def _check_fits(run: dict[str, Any], runs: Iterable[dict[str, Any]], found: str) -> None:
    """Checks that runs with the same settings have another seed and the same images."""
    for other in (other for other in runs if settings_of(other) == settings_of(run)):
        if other["config"]["seed"] == run["config"]["seed"]:
            raise RunError(f"{found} and its seed. Choose another file, or another run.")
        if _are_same_images(other, run) is False:
            raise RunError(f"{found} but other images. Choose another file, or another run.")


def _is_same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Returns whether two results come from one run, which may have been resumed in between."""
    (before, start), (after, new_start) = settings_of(old), settings_of(new)
    are_same_images = _are_same_images(old, new)
    if are_same_images:  # They may have moved.
        after = changed(after, {"data": {"dataset": before.data.dataset}})
    return (
        (before, before.seed, start) == (after, after.seed, new_start)
        and are_same_images is not False
        and ("last_step" in old["outcome"] or _scores(old) == _scores(new))
    )


def _are_same_images(old: dict[str, Any], new: dict[str, Any]) -> bool | None:
    """Returns whether two runs had the same images, or None if an older version made one."""
    hashes = [run.get("fingerprint") for run in (old, new)]
    return None if None in hashes else hashes[0] == hashes[1]


def _scores(run: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in run["outcome"].items() if k not in ("seconds", "images_per_second")}


def _stored(file: Path) -> list[dict[str, Any]]:
    wrong = OSError, ValueError, KeyError, TypeError, AttributeError
    if not is_special(file):
        with contextlib.suppress(*wrong):
            runs = json.loads(file.read_text())
            if isinstance(runs, list):
                markdown(runs)  # It raises an error if these are no results.
                return runs
    raise RunError(f"{file} holds no results of runs. Choose another file.")


if __name__ == "__main__":
    sys.exit(main())
