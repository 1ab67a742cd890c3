"""Prints tables of the stored results, and draws the figure.

Command: python -m experiments.benchmarks.gpu.report FOLDER
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.benchmarks.gpu.pieces import PIECES
from experiments.run.folder import RunFolder


def report(folder: RunFolder) -> bool:
    """Prints a table of each piece with stored rows, and draws the figure of `norm`.

    Returns:
      Whether there are any results.
    """
    found = {n: piece for n, piece in PIECES.items() if (folder.path / f"{n}.json").exists()}
    for name, piece in found.items():
        content = folder.read(f"{name}.json")
        print(f"\n{name}, {where(content['environment'])}\n")
        print(piece.table(content["rows"]), flush=True)
    if "norm" in found:
        _draw(folder)
    return bool(found)


def where(environment: dict[str, Any]) -> str:
    """Returns the device and the version of JAX in words, and whether it is the small version."""
    small = ", small version" if environment["small"] else ""
    return f"on {environment['device']}, jax {environment['versions']['jax']}{small}"


def _draw(folder: RunFolder) -> None:
    if find_spec("matplotlib"):
        from experiments.benchmarks.gpu.figure import draw

        content = folder.read("norm.json")
        draw(content["rows"], where(content["environment"]), folder.path / "norm.png")
    else:
        print(
            "\nThe figure needs Matplotlib, which is missing here. On a machine with Matplotlib, "
            f"`python -m experiments.benchmarks.gpu.report {folder.path}` draws it."
        )


def main(folder: Annotated[Path, tyro.conf.Positional]) -> int:
    """Prints the tables of stored results and draws the figure; returns 1 if there are none.

    Args:
      folder: folder of the results, such as runs/gpu.
    """
    if report(RunFolder(folder)):
        return 0
    print(f"{folder} holds no results of python -m experiments.benchmarks.gpu.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.gpu.report"))
