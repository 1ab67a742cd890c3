"""Adds the results of training runs to a small JSON file, and prints a table of all in it.

Command: python -m experiments.gather FILE FOLDER...
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.run.atomic import write_text
from experiments.run.errors import RunError, exit_code
from experiments.run.folder import RunFolder
from experiments.run.results import markdown, read_result

_PARTS = {"config", "environment", "outcome"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    file, *folders = map(Path, arguments)
    return exit_code(lambda: write(file, folders))


def write(file: Path, folders: Iterable[Path]) -> None:
    """Adds the results of the runs in the folders to the file, and prints the table of all.

    A run that the file holds is not added again.

    Raises:
      RunError: a folder holds no run, or the file holds something else than results.
    """
    runs = _stored(file) if file.exists() else []
    for run in map(read_result, map(RunFolder, folders)):
        if run not in runs:
            runs.append(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(runs, indent=1) + "\n")
    print(markdown(runs))


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
