"""The plots of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.ticker import PercentFormatter

from experiments.run.figures import STYLE, drawable, logarithmic, percent, save

Record = Mapping[str, Any]

COLORS = {
    **{"training": "tab:blue", "test": "tab:orange"},
    **{"inference mode": "tab:orange", "training mode": "tab:green"},
}
"""The same color for the same kind of evaluation: `test` is in inference mode."""

SMALLEST_SPAN = 0.1
"""Smallest difference between the ends of an axis of accuracies.

It keeps a difference of few images from filling the plot.
"""

LONGEST_NAME = 20
MOST_NUMBERED_CLASSES = 20
MOST_LAYERS_IN_LEGEND = 10


@dataclass(frozen=True)
class Plots:
    """The plots of a run.

    Attributes:
      folder: folder that the files are written to.
      train: records of the training steps.
      test: records of the evaluations.
      steps_per_epoch: number of steps in an epoch.
      classes: names of the classes.
    """

    folder: Path
    train: Sequence[Record]
    test: Sequence[Record]
    steps_per_epoch: float
    classes: Sequence[str]

    def write(self) -> None:
        """Writes all plots that the records allow."""
        with plt.rc_context(STYLE):
            self._curves()
            self._learning_rate()
            self._confusion()
            if self.test[-1].get("drift"):
                self._modes()
                self._drift()

    def _curves(self) -> None:
        figure, axes = plt.subplots(2, 1, figsize=(5.6, 5.6))
        width = max(1, round(self.steps_per_epoch / 5))
        label = f"training, mean of {width} steps" if width > 1 else "training"
        for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
            training = _smooth(_values(self.train, name), width)
            test = _values(self.test, name)
            axis.plot(
                self._epochs(self.train),
                training,
                label=label,
                color=COLORS["training"],
                alpha=0.8,
                marker="o" if np.isfinite(training).sum() == 1 else "",
            )
            points = _points(test)
            axis.plot(self._epochs(self.test), test, label="test", c=COLORS["test"], **points)
            axis.set(xlabel="epoch", xlim=(0, None), title=name)
            axis.legend()
            if name == "loss":
                logarithmic(axis, [*training, *test])
        _accuracy(axes[1])
        save(figure, self.folder / "curves.png")

    def _learning_rate(self) -> None:
        figure, axis = plt.subplots(figsize=(5.6, 3))
        rates = _values(self.train, "learning_rate")
        axis.plot(self._epochs(self.train), rates, marker="o" if len(rates) == 1 else "")
        axis.set(xlabel="epoch", xlim=(0, None), title="learning rate", ylim=(0, None))
        save(figure, self.folder / "learning_rate.png")

    def _modes(self) -> None:
        figure, axis = plt.subplots(figsize=(5.6, 3.2))
        curves = {"accuracy_plain": "inference mode", "accuracy_batch_statistics": "training mode"}
        for name, label in curves.items():
            values = _values(self.test, name)
            look: dict[str, Any] = {"color": COLORS[label], "zorder": 3, **_points(values)}
            if label == "training mode":  # Where both modes agree, both curves are to be seen.
                look |= {"linestyle": "--", "markerfacecolor": "none"}
            axis.plot(self._epochs(self.test), values, label=label, **look)
        axis.set(xlabel="epoch", xlim=(0, None), title="test accuracy")
        axis.legend()
        _accuracy(axis)
        save(figure, self.folder / "modes.png")

    def _drift(self) -> None:
        layers = list(self.test[-1]["drift"])
        colors = [plt.colormaps["viridis"](x) for x in np.linspace(0, 0.92, len(layers))]
        figure, axes = plt.subplots(2, 1, figsize=(7, 5.6))
        titles = {"mean": "means: difference / std", "var": "variances: |log ratio|"}
        for axis, (name, title) in zip(axes, titles.items(), strict=True):
            shown = []
            for layer, color in zip(layers, colors, strict=True):
                distances = [record.get("drift", {}).get(layer, {}) for record in self.test]
                values = _values(distances, name)
                shown += [*values]
                axis.plot(
                    self._epochs(self.test), values, color=color, label=layer, **_points(values)
                )
            axis.set(xlabel="epoch", xlim=(0, None), title=title)
            logarithmic(axis, shown)
        if len(layers) <= MOST_LAYERS_IN_LEGEND:
            handles, _ = axes[0].get_legend_handles_labels()
            names = [_short(layer, 30) for layer in layers]
            figure.legend(handles, names, loc="outside right upper", fontsize=8)
        else:
            _layer_bar(figure, axes, layers, colors)
        save(figure, self.folder / "drift.png")

    def _confusion(self) -> None:
        counts = np.array(self.test[-1]["confusion"])
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        number = len(counts)
        numbered = number <= MOST_NUMBERED_CLASSES
        side = max(3.0, 0.45 * number) if numbered else 6.0
        names = [_class_name(index, name) for index, name in enumerate(self.classes)]
        labels = 0.08 * max(map(len, names)) + 0.6
        figure, axis = plt.subplots(figsize=(side + labels + 0.9, side + labels))
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.grid(False)
        if numbered:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    color = "white" if shares[row, column] > 0.5 else "black"
                    size = 8 if count < 10_000 else 6
                    axis.text(
                        *(column, row, f"{count}"),
                        **{"ha": "center", "va": "center", "color": color, "fontsize": size},
                    )
        shown = range(0, number, math.ceil(number / MOST_NUMBERED_CLASSES))
        ticks = [names[index] for index in shown]
        fits = 0.1 * max(map(len, ticks)) < side / len(ticks)
        axis.set_xticks(shown, ticks, rotation=0 if fits else 90)
        axis.set_yticks(shown, ticks)
        axis.set(xlabel="prediction", ylabel="label", title="test images")
        bar = figure.colorbar(image, shrink=0.7, format=PercentFormatter(1))
        bar.set_label("share of the label's images")
        save(figure, self.folder / "confusion.png")

    def _epochs(self, records: Sequence[Record]) -> np.ndarray:
        return np.array([record["step"] for record in records]) / self.steps_per_epoch


def _values(records: Sequence[Record], name: str) -> np.ndarray:
    """Returns a metric of all records. It is NaN where it is missing."""
    found = (record.get(name) for record in records)
    return np.array([math.nan if value is None else value for value in found], float)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Returns for each value the mean over a window that ends with it, without NaN."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.concatenate([[0.0], np.where(finite, values, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], finite]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    count = counts[ends] - counts[starts]
    return np.where(count, (sums[ends] - sums[starts]) / np.maximum(count, 1), math.nan)


def _points(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Returns the look of a curve with a point for each evaluation."""
    return {"marker": "o", "markersize": 3 if len(values) > 5 else 6}


def _accuracy(axis: Axes) -> None:
    """Labels the vertical axis in percent, ends it near 0 and 1, and keeps it from being short."""
    percent(axis)
    lowest, highest = -0.02, 1.02
    low, high = axis.get_ylim()
    low, high = max(low, lowest), min(high, highest)
    span = max(high - low, SMALLEST_SPAN)
    low = min(max((low + high - span) / 2, lowest), highest - span)
    axis.set_ylim(low, low + span)


def _class_name(index: int, name: str) -> str:
    """Returns a name that fits the axes, with the class's number if the fonts lack a character."""
    shown = drawable(name)
    is_complete = shown == " ".join(name.split())
    return _short(shown if is_complete else f"{index}: {shown}", LONGEST_NAME)


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _layer_bar(figure: Any, axes: Any, layers: list[str], colors: Sequence[Any]) -> None:
    """Draws a bar with the colors of all layers and the names of some."""
    bounds = np.arange(len(layers) + 1) - 0.5
    scale = BoundaryNorm(bounds, len(layers))
    mappable = plt.cm.ScalarMappable(scale, ListedColormap(list(colors)))
    shown = np.unique(np.linspace(0, len(layers) - 1, MOST_LAYERS_IN_LEGEND).round().astype(int))
    bar = figure.colorbar(mappable, ax=axes, ticks=shown)
    names = [_short(layers[index], 30) for index in shown.tolist()]
    bar.ax.set_yticks(shown, names, fontsize=8)
    bar.ax.minorticks_off()
    bar.ax.invert_yaxis()
