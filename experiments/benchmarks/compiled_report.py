"""Prints and draws the stored results of `compiled`.

Command: python -m experiments.benchmarks.compiled_report [--target h100|v5e|cpu]
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tyro

from experiments.benchmarks.compiled import RESULTS
from experiments.benchmarks.targets import Target

SHAPES = (("bfloat16", 64), ("bfloat16", 256), ("float32", 64), ("float32", 256))
Cell = tuple[float, float]


@dataclass(frozen=True)
class Arguments:
    """Prints stored results as Markdown tables and draws them."""

    target: Target = "h100"
    """Device that the programs were compiled for."""


def main(arguments: Arguments) -> None:
    """Reads, prints and draws."""
    path = RESULTS / f"compiled-{arguments.target}.json"
    result = json.loads(path.read_text())
    print(table(result), collectives(result), sep="\n\n")
    plot(result, path.with_suffix(".png"))


def cells(result: dict[str, Any], network: str) -> dict[str, dict[tuple[str, int], Cell]]:
    """Returns (peak, moved) by norm and shape, of the deepest network of a kind.

    Norms are followed by relu, except the in-place norm, which has leaky relu. The other norms with
    leaky relu are stored as well, but their results are hardly better.
    """
    rows = [
        row
        for row in result["rows"]
        if row["network"] == network and not row["form"].endswith("leaky")
    ]
    rows.sort(key=lambda row: not row["form"].startswith("jbn"))
    depth = max(row["depth"] for row in rows)
    found: dict[str, dict[tuple[str, int], Cell]] = {}
    for row in rows:
        if row["depth"] == depth:
            shape = row["dtype"], row["channels"]
            found.setdefault(row["form"], {})[shape] = row["peak"], row["moved"]
    return found


def table(result: dict[str, Any], network: str = "conv-norm-act") -> str:
    """Returns a Markdown table of peak memory / bytes moved, per layer in activations."""
    heads = [f"{dtype}, {channels} channels" for dtype, channels in SHAPES]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(SHAPES) + 1) + "|"]
    for name, values in cells(result, network).items():
        texts = [
            "{:.2f} / {:.2f}".format(*values[shape]) if shape in values else "" for shape in SHAPES
        ]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def collectives(result: dict[str, Any]) -> str:
    """Returns a Markdown table of the collectives of one norm on 8 devices."""
    lines = ["| collectives | forward | backward |", "|---|---|---|"]
    counts = result["collectives"].items()
    lines += [f"| {name} | {forward} | {backward} |" for name, (forward, backward) in counts]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws peak memory against bytes moved of narrow networks, with a panel for each dtype."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for axes, (dtype, channels) in zip(panels, (SHAPES[0], SHAPES[2]), strict=True):
        labels: dict[Cell, list[str]] = {}
        for name, values in cells(result, "conv-norm-act").items():
            peak, moved = values[dtype, channels]
            ours = name.startswith("jbn")
            axes.plot(moved, peak, "o" if ours else "s", ms=9 if ours else 6)
            near = (at for at in labels if _touch(at, (moved, peak)))
            labels.setdefault(next(near, (moved, peak)), []).append(name)
        for at, names in labels.items():
            text = ", ".join(names)
            axes.annotate(text, at, (4, 6), textcoords="offset points", fontsize=8)
        axes.set_title(f"{dtype}, {channels} channels")
        axes.set_xlabel("bytes moved per layer, in activations")
        axes.margins(x=0.18, y=0.15)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("peak memory per layer, in activations")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _touch(a: Cell, b: Cell) -> bool:
    """Returns whether the labels of two points would overlap."""
    return abs(a[0] - b[0]) < 0.5 and abs(a[1] - b[1]) < 0.05


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.benchmarks.compiled_report"))
