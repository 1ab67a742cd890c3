"""Writes the report of a run, `report.md` with plots, from the files in the run's folder.

Command: python -m experiments.report FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.run_folder import RunFolder

STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "font.size": 10,
    "grid.alpha": 0.3,
}


def write_report(folder: RunFolder) -> None:
    """Writes `report.md` and its plots into the folder of a finished run."""
    summary, train, test = (
        folder.read("summary.json"),
        folder.records("train"),
        folder.records("test"),
    )
    with plt.rc_context(STYLE):
        _plot_curves(folder.path / "curves.png", train, test, summary)
        _plot_learning_rate(folder.path / "learning_rate.png", train, summary)
        _plot_modes(folder.path / "modes.png", test, summary)
        _plot_confusion(folder.path / "confusion.png", test[-1], summary)
        if test[-1]["drift"]:
            _plot_drift(folder.path / "drift.png", test, summary)
    text = _text(summary, folder.read("config.json"), folder.read("environment.json"), test[-1])
    (folder.path / "report.md").write_text(text)


def _text(summary, config, environment, last) -> str:
    def table(rows: dict[str, Any]) -> str:
        return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])

    seconds = summary["seconds"]
    result = {
        "test accuracy": f"{summary['accuracy']:.2%}",
        "test accuracy with single views": f"{summary['accuracy_plain']:.2%}",
        "test accuracy in training mode": f"{summary['accuracy_batch_statistics']:.2%}",
        "best test accuracy during training": f"{summary['best_accuracy']:.2%}",
        "test loss": f"{summary['loss']:.4f}",
        "data": summary["data"],
        "steps": summary["steps"],
        "parameters": f"{summary['num_params']:,}",
        "training": f"{seconds['training']:.1f} s, {summary['images_per_second']:,.0f} images/s",
        "evaluation": f"{seconds['evaluating']:.1f} s",
        "compilation, not counted above": f"{seconds['compiling']:.1f} s",
    }
    machine = {
        "device": f"{environment['devices']} x {environment['device']}",
        "CPU cores": environment["cpus"],
        "Python": environment["python"],
        **environment["versions"],
        "commit": environment["commit"] or "unknown",
    }
    choices = {
        key: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        for key, value in config.items()
    }
    drift = "" if not last["drift"] else _DRIFT
    return _PAGE.format(
        preset=summary["preset"],
        result=table(result),
        drift=drift,
        choices=table(choices),
        machine=table(machine),
    )


_DRIFT = """
## Running statistics and statistics of a batch

The plots show the distance of the running mean from the mean of a batch, in standard deviations,
and the logarithm of the ratio of their variances. Both are root mean squares over the features of a
layer.

![Distance between running and batch statistics, by layer](drift.png)
"""

_PAGE = """# {preset}

{result}

## Loss and accuracy

![Loss and accuracy over epochs](curves.png)

## Training mode and inference mode

Training mode normalizes the test images by the statistics of each batch, and inference mode by the
running statistics. The images and the weights are the same.

![Accuracy in both modes over epochs](modes.png)
{drift}
## Confusion matrix

![Confusion matrix](confusion.png)

## Learning rate

![Learning rate over epochs](learning_rate.png)

## Configuration

{choices}

## Machine

{machine}
"""


def _epochs(records, summary) -> np.ndarray:
    return np.array([record["step"] for record in records]) / summary["steps_per_epoch"]


def _values(records, key) -> np.ndarray:
    return np.array([record[key] for record in records])


def _smooth(values, width) -> np.ndarray:
    """Returns for each value the mean over a window that ends with it."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _plot_curves(path, train, test, summary) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    width = max(1, summary["steps_per_epoch"] // 5)
    for axis, key in zip(axes, ("loss", "accuracy"), strict=True):
        smooth = _smooth(_values(train, key), width)
        axis.plot(_epochs(train, summary), smooth, label="training", alpha=0.8)
        axis.plot(_epochs(test, summary), _values(test, key), "o-", ms=3, label="test")
        axis.set(xlabel="epoch", title=key)
        axis.legend()
    axes[0].set_yscale("log")
    percent(axes[1])
    save(figure, path)


def _plot_learning_rate(path, train, summary) -> None:
    figure, axis = plt.subplots(figsize=(5, 3))
    axis.plot(_epochs(train, summary), _values(train, "learning_rate"))
    axis.set(xlabel="epoch", title="learning rate", ylim=(0, None))
    save(figure, path)


def _plot_modes(path, test, summary) -> None:
    figure, axis = plt.subplots(figsize=(5, 3.2))
    curves = {
        "accuracy_plain": "running statistics",
        "accuracy_batch_statistics": "batch statistics",
    }
    for key, label in curves.items():
        axis.plot(_epochs(test, summary), _values(test, key), "o-", ms=3, label=label)
    axis.set(xlabel="epoch", title="test accuracy")
    axis.legend()
    percent(axis)
    save(figure, path)


def _plot_drift(path, test, summary) -> None:
    layers = list(test[-1]["drift"])
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    titles = {"mean": "means: difference / std", "var": "variances: |log ratio|"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for index, layer in enumerate(layers):
            color = plt.colormaps["viridis"](index / max(len(layers) - 1, 1) * 0.9)
            values = [record["drift"][layer][key] for record in test]
            axis.plot(_epochs(test, summary), values, "o-", ms=3, color=color, label=layer)
        axis.set(xlabel="epoch", title=title, yscale="log")
    if len(layers) <= 8:
        axes[1].legend(fontsize=8)
    else:
        axes[1].set_title(f"{titles['var']} ({len(layers)} layers, dark to light)")
    save(figure, path)


def _plot_confusion(path, last, summary) -> None:
    confusion = np.array(last["confusion"])
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    classes = summary["classes"]
    figure, axis = plt.subplots(figsize=(5.6, 5.2))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.grid(False)
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(len(classes)), classes, rotation=45 if len(classes[0]) > 1 else 0)
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="prediction", ylabel="label", title="test images")
    save(figure, path)


def percent(axis: Axes) -> None:
    """Labels the vertical axis in percent."""
    axis.yaxis.set_major_formatter(PercentFormatter(1))


def save(figure: Figure, path: Path) -> None:
    """Writes the figure to a file and closes it."""
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    write_report(RunFolder(Path(sys.argv[1])))
