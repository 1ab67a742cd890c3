"""Whole batches of 2 to 32 images at several learning rates: which methods still infer."""

from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.data import Dataset
from experiments.report import percent
from experiments.studies import figures
from experiments.studies.base import base, change
from experiments.studies.records import Records, Setting
from experiments.studies.study import Scale, Study
from experiments.studies.training import Training, accuracy, logits
from experiments.studies.words import difference, listed, spread, table

_LAST_IMAGES = 256


def settings(scale: Scale) -> list[Setting]:
    """Returns one epoch of each method at each batch size and rate."""
    smoke = scale == "smoke"
    methods = ("batch", "running") if smoke else tuple(figures.METHODS)
    sizes, rates, seeds = ((32,), (0.4,), 1) if smoke else ((2, 4, 8, 32), (0.05, 0.2, 0.4), 3)
    return [
        Setting(
            {"norm": method, "size": size, "rate": rate, "seed": seed},
            change(
                base(scale, "small_batches"),
                norm={"method": method},
                optimizer={"learning_rate": rate, "momentum": 0.0},
                batch_size=size,
                epochs=1.0,
                seed=seed,
            ),
        )
        for method, size, rate, seed in product(methods, sizes, rates, range(seeds))
    ]


def measure(setting: Setting, dataset: Dataset) -> dict[str, Any]:
    """Returns test accuracy, and that of the last training images as they were trained on."""
    training = Training(setting.config, dataset)
    metrics = training.advance(training.total_steps)
    last = max(1, _LAST_IMAGES // setting.config.batch_size)
    predictions = training.call(logits, dataset.test_images[:2000])
    return {
        "accuracy": accuracy(predictions, dataset.test_labels[:2000]),
        "in_training": float(np.mean(metrics["accuracy"][-last:])),
    }


def plot(records: Records, caption: str) -> Figure:
    """Draws test accuracy against the batch size at each rate, and batch norm's in training."""
    rates = records.labels("rate")
    figure, axes = figures.new(len(rates), STUDY.question, caption)
    for axis, rate in zip(axes, rates, strict=True):
        at_rate = records.where(rate=rate)
        sizes = at_rate.labels("size")
        for method in at_rate.labels("norm"):
            label, color = figures.METHODS[method]
            figures.band(axis, sizes, _values(at_rate, method, sizes, "accuracy"), label, color)
        label, color = figures.METHODS["batch"]
        label = f"{label}, in training"
        values = _values(at_rate, "batch", sizes, "in_training")
        figures.band(axis, sizes, values, label, color, linestyle=":", marker="")
        figures.powers_of_two(axis, sizes)
        axis.set(title=f"learning rate {rate:g}", xlabel="images in a batch", ylim=(0, 1.02))
        percent(axis)
    axes[0].set_ylabel("test accuracy after an epoch")
    axes[-1].legend(fontsize=8, loc="lower right")
    return figure


def answer(records: Records) -> str:
    """Says whether batch norm fails in inference at the smallest batch and the largest rate."""
    size, rate = min(records.labels("size")), max(records.labels("rate"))
    arms = {n: records.where(norm=n, size=size, rate=rate) for n in records.labels("norm")}
    batch, running = (arms[name].values("accuracy") for name in ("batch", "running"))
    gain = difference(running, batch, relevant=0.05)
    trained = arms["batch"].values("in_training")
    lost = difference(trained, batch, relevant=0.05)
    others = (
        f"{figures.METHODS[name][0]} {spread(arm.values('accuracy')):.1%}"
        for name, arm in arms.items()
        if name not in ("batch", "running")
    )
    parts = [
        f"**Running batch norm is better at batches of {size} and a rate of {rate:g}:"
        f" {gain.verdict}.** {spread(running):.1%} of the test images against"
        f" {spread(batch):.1%} with batch norm: {100 * gain.mean:+.1f} points (95% interval"
        f" {100 * gain.low:+.1f} to {100 * gain.high:+.1f}).",
        f"**Batch norm fails there in inference, not in training: {lost.verdict}.** Of its last"
        f" {_LAST_IMAGES} training images, normalised by their batches,"
        f" {spread(trained):.1%} were right.",
    ]
    if rest := list(others):
        parts.append(f"The others there: {listed(rest)}.")
    head = ["test accuracy", "rate", *(f"batches of {s}" for s in records.labels("size"))]
    rows = []
    for name, at in product(records.labels("norm"), records.labels("rate")):
        runs = [records.where(norm=name, rate=at, size=s) for s in records.labels("size")]
        cells = (f"{spread(r.values('accuracy')):.1%}" for r in runs)
        rows.append([figures.METHODS[name][0], f"{at:g}", *cells])
    return "\n\n".join([*parts, table(head, rows)])


def _values(records: Records, method: str, sizes: list[int], name: str) -> np.ndarray:
    runs = records.where(norm=method)
    return np.array([runs.where(size=size).values(name) for size in sizes]).T


STUDY = Study(
    name="small_batches",
    question="Which norms survive batches of two?",
    claim=(
        "in batches of 2 and at a large learning rate plain batch norm fails in inference and"
        " running batch norm does not (fast.ai's course, on MNIST: 26.0% and 97.3%)."
    ),
    method=(
        "Four convolutions (16, 16, 32, 32 channels), one epoch of plain SGD, so that smaller"
        " batches are more steps; the learning rate falls to 0. What is normalised together is the"
        " whole batch."
    ),
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
