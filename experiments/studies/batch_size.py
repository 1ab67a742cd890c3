"""The normalization batch from 2 to all of the optimizer's, by method and way of inference."""

from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.data import Dataset
from experiments.report import percent
from experiments.studies import figures
from experiments.studies.base import base, change, convolutions
from experiments.studies.definition import Scale, Study
from experiments.studies.phrases import difference, listed, spread, table
from experiments.studies.records import Records, Setting
from experiments.studies.training import Training, accuracy, logits, logits_by_batch, recalibrated

MODES = {
    "accuracy": ("moving averages", "tab:blue"),
    "recalibrated": ("recalibrated statistics", "tab:cyan"),
    "by_batch": ("test batches' own statistics", "tab:gray"),
}
_ANY = "any"
_BATCH = 128


def settings(scale: Scale) -> list[Setting]:
    """Returns runs of each method, at each normalization batch where it has one."""
    sizes = {"smoke": (2,), "cifar10": (2, 8, _BATCH)}.get(scale, (2, 4, 8, 32, _BATCH))
    rates = (0.05, 0.1, 0.2, 0.4)
    rates = {"smoke": (0.1,), "digits": rates[:3]}.get(scale, rates)
    methods = ("batch", "running") if scale == "smoke" else tuple(figures.METHODS)
    seeds = 1 if scale == "smoke" else 3
    runs = []
    for method in methods:
        own_sizes = (_ANY,) if method in ("none", "group") else sizes
        for size, rate, seed in product(own_sizes, rates, range(seeds)):
            config = base(scale, "batch_size")
            grouped = method in ("batch", "renorm")
            config = change(
                config,
                norm={"method": method, "group_size": size if grouped else None},
                optimizer={"learning_rate": rate},
                batch_size=min(_BATCH, config.data.train_size or _BATCH),
                epochs={"smoke": 1.0, "cifar10": 8.0}.get(scale, 12.0),
                seed=seed,
            )
            labels = {"norm": method, "size": size, "rate": rate, "seed": seed}
            runs.append(Setting(labels, config))
    return runs


def measure(setting: Setting, dataset: Dataset) -> dict[str, Any]:
    """Returns test accuracies in each way of inference that the method has."""
    training = Training(setting.config, dataset)
    if setting.labels["norm"] == "running":
        training.finish_in_micro_batches(setting.labels["size"])
    else:
        training.advance(training.total_steps)
    images, labels = dataset.test_images[:2000], dataset.test_labels[:2000]
    result = {"accuracy": accuracy(training.call(logits, images), labels)}
    if setting.labels["norm"] == "batch":
        result["by_batch"] = accuracy(training.call(logits_by_batch, images), labels)
        training.state = training.call(recalibrated, dataset.train_images[:10_000])
        result["recalibrated"] = accuracy(training.call(logits, images), labels)
    return result


def plot(records: Records, caption: str) -> Figure:
    """Draws accuracy against the normalization batch: methods, and batch norm's inference."""
    figure, (left, right) = figures.new(2, STUDY.question, caption, width=5)
    sizes = records.where(norm="batch").labels("size")
    for method in records.labels("norm"):
        label, color = figures.METHODS[method]
        if _chosen(records, method, _ANY):
            flat = _chosen(records, method, _ANY).values("accuracy")[:, None]
            values = np.tile(flat, len(sizes))
            figures.band(left, sizes, values, label, color, linestyle="--", marker="")
        else:
            figures.band(left, sizes, _values(records, method, sizes, "accuracy"), label, color)
    for name, (label, color) in MODES.items():
        figures.band(right, sizes, _values(records, "batch", sizes, name), label, color)
    left.set(title="every method, by moving averages", ylabel="test accuracy")
    right.set(title="batch norm, by way of inference", ylabel="test accuracy")
    for axis in (left, right):
        figures.powers_of_two(axis, sizes)
        axis.set(xlabel="images normalised together in training")
        axis.legend(fontsize=8)
        percent(axis)
    return figure


def answer(records: Records) -> str:
    """Says what small normalization batches cost, and what helps."""
    sizes = records.where(norm="batch").labels("size")
    smallest, largest = sizes[0], sizes[-1]
    paragraphs = []
    for size in sizes[:-1]:
        loss = difference(
            *(_chosen(records, "batch", s).values("accuracy") for s in (largest, size)),
            relevant=0.01,
        )
        paragraphs.append(
            f"**Batch norm loses by a normalisation batch of {size}: {loss.verdict}.** Against"
            f" {largest} it loses {100 * loss.mean:.1f} points (95% interval {100 * loss.low:.1f}"
            f" to {100 * loss.high:.1f})."
        )
    batch = _chosen(records, "batch", smallest)
    better = []
    for method in records.labels("norm"):
        other = _chosen(records, method, smallest) or _chosen(records, method, _ANY)
        gain = difference(other.values("accuracy"), batch.values("accuracy"), relevant=0.01)
        if gain.verdict == "held":
            better.append(figures.METHODS[method][0])
    paragraphs.append(
        f"At {smallest}, by at least one point and clearly better than batch norm: "
        f"{listed(better) if better else 'none of the others'}."
    )
    modes = [f"{label} {spread(batch.values(n)):.1%}" for n, (label, _) in MODES.items()]
    paragraphs.append(f"Batch norm trained at {smallest}, by way of inference: {listed(modes)}.")
    rows = []
    for method in records.labels("norm"):
        arms = [_chosen(records, method, s) or _chosen(records, method, _ANY) for s in sizes]
        cells = (f"{spread(a.values('accuracy')):.1%} ({a[0].labels['rate']:g})" for a in arms)
        rows.append([figures.METHODS[method][0], *cells])
    head = ["test accuracy (rate)", *(f"{size} together" for size in sizes)]
    return "\n\n".join([*paragraphs, table(head, rows)])


def _chosen(records: Records, method: str, size: Any) -> Records:
    """The method at the learning rate that was best on the test images."""
    return records.where(norm=method, size=size).best("rate", "accuracy")


def _values(records: Records, method: str, sizes: list[int], name: str) -> np.ndarray:
    return np.array([_chosen(records, method, size).values(name) for size in sizes]).T


def method(records: Records) -> str:
    """Says how it was tried."""
    run = records[0]
    rates = listed(f"{rate:g}" for rate in records.labels("rate"))
    return (
        f"{convolutions(records)}, {run.value('epochs'):g} epochs of batches of"
        f" {run.value('batch_size')}, of which so many images are normalised together; the"
        " optimizer sees the mean gradient of all. Running batch norm takes the parts one after"
        f" another. Learning rate falling to 0 from one of {rates}, each method at each size at"
        " the best of them on the test images. Recalibrated: statistics of all training images at"
        " the final weights. Renorm's limits widen to"
        f" {run.value('norm.r_max'):g} and {run.value('norm.d_max'):g} in the first"
        f" {run.value('norm.widening_steps')} steps."
    )


STUDY = Study(
    name="batch_size",
    question="How small may the normalisation batch be?",
    claim=(
        "batch norm needs large batches: in small ones it is worse, and renorm, running batch norm"
        " and group norm are better."
    ),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
