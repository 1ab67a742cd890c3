"""The tables of what is stored, and the figure.

Command: python -m experiments.benchmarks.gpu.report FOLDER
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from experiments.benchmarks.gpu.pieces import PIECES
from experiments.run_folder import RunFolder


def report(folder: RunFolder) -> None:
    """Prints the table of each piece that has rows; draws the norm's."""
    for name, piece in PIECES.items():
        if (folder.path / f"{name}.json").exists():
            print(f"\n{name}\n\n{piece.table(folder.read(f'{name}.json')['rows'])}", flush=True)
    if not (folder.path / "norm.json").exists():
        return
    if find_spec("matplotlib"):
        from experiments.benchmarks.gpu.figure import draw

        draw(folder.read("norm.json"), folder.path / "norm.png")
    else:
        print(
            "\nThe figure needs Matplotlib, which is missing here. Where it is installed, "
            f"`python -m experiments.benchmarks.gpu.report {folder.path}` draws it."
        )


if __name__ == "__main__":
    report(RunFolder(Path(sys.argv[1])))
