"""Functions that draw the figures of all studies in the same way."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

METHODS = {
    "batch": ("batch norm", "tab:blue"),
    "none": ("no norm", "tab:orange"),
    "renorm": ("batch renorm", "tab:green"),
    "running": ("running batch norm", "tab:purple"),
    "group": ("group norm", "tab:brown"),
}
"""Name and color of each method, the same in all figures."""


def new(
    columns: int,
    title: str,
    caption: str,
    rows: int = 1,
    width: float = 4.4,
    height: float = 3.9,
) -> Any:
    """Returns a figure with a title above and a caption below, and its axes, row by row."""
    size = width * columns, height * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    figure.supxlabel(caption, fontsize=7.5, color="0.35")
    return figure, axes.ravel()


def band(
    axis: Axes,
    x: ArrayLike,
    values: np.ndarray,
    label: str,
    color: Any,
    log: bool = False,
    **line: Any,
) -> None:
    """Draws the mean over runs, and a band of one standard deviation around it.

    Args:
      axis: axes to draw in.
      x: horizontal positions.
      values: `[runs, x]`.
      label: name in the legend.
      color: color of the line and the band.
      log: whether to use the mean and the standard deviation of the logarithms.
      **line: options of the line.
    """
    values = np.log(values) if log else np.asarray(values)
    mean, std = values.mean(0), values.std(0, ddof=min(1, len(values) - 1))
    mean, low, high = (np.exp(v) if log else v for v in (mean, mean - std, mean + std))
    options: dict[str, Any] = {"marker": "o", "markersize": 3.5, **line}
    axis.plot(x, mean, color=color, label=label, **options)
    axis.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def depth_color(layer: int, layers: int) -> Any:
    """Returns the color of a layer, from dark at the input to light at the output."""
    return plt.colormaps["viridis"](layer / max(layers - 1, 1) * 0.9)


def points(axis: Axes, x: float, values: ArrayLike, color: str, **options: Any) -> None:
    """Draws each run as a point, slightly apart from the others, and their mean as a bar."""
    values = np.asarray(values, float)
    apart = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
    axis.plot(x + apart, values, "o", color=color, alpha=0.55, markersize=4.5, **options)
    axis.plot([x - 0.25, x + 0.25], [values.mean()] * 2, color=color, linewidth=2.5)


def powers_of_two(axis: Axes, values: ArrayLike) -> None:
    """Makes the horizontal axis logarithmic, with a label at each of the values."""
    values = np.asarray(values)
    axis.set_xscale("log", base=2)
    axis.set_xticks(values, [f"{v:g}" for v in values])
    axis.minorticks_off()
