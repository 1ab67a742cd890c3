"""Draws the share of a copy's bandwidth that each library's norm reaches."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.benchmarks.gpu.norm import PASSES, shares
from experiments.run.figures import STYLE, percent, save

COLORS = {
    "jbn": "tab:blue",
    "flax.linen": "tab:orange",
    "torch": "tab:red",
    "torch, channels last": "tab:pink",
}


def draw(rows: list[dict[str, Any]], where: str, path: Path) -> None:
    """Draws a panel for each part, with bars for each dtype and shape.

    Args:
      rows: rows of the piece `norm`.
      where: place of the measurement in words.
      path: path of the picture.
    """
    names = [name for name in COLORS if any(name in shares(row, "forward") for row in rows)]
    width = 0.8 / len(names)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(PASSES), figsize=(10, 3.8), sharey=True)
        for axis, (part, passes) in zip(panels, PASSES.items(), strict=True):
            for number, name in enumerate(names):
                at = np.arange(len(rows)) + (number - (len(names) - 1) / 2) * width
                values = [shares(row, part).get(name, 0) for row in rows]
                bars = axis.bar(at, values, width, color=COLORS[name], label=name)
                axis.bar_label(bars, [f"{value:.0%}" for value in values], fontsize=7)
            axis.axhline(1, color="0.3", linewidth=1, linestyle="--")
            axis.set_xticks(np.arange(len(rows)), [_label(row) for row in rows], fontsize=8)
            axis.set_title(f"{part}: at least {passes} passes over x; 100% is a copy")
            axis.grid(axis="x", visible=False)
        percent(panels[0])
        panels[0].set_ylabel("share of a copy's bandwidth")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.suptitle(f"One batch norm {where}")
        save(figure, path)


def _label(row: dict[str, Any]) -> str:
    return f"{row['dtype']}\n{'x'.join(map(str, row['shape']))}"
