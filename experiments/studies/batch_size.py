"""Measures normalization over parts of a batch, by method and by statistics in inference."""

from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.data import Dataset
from experiments.run.figures import percent
from experiments.studies.tools import figures
from experiments.studies.tools.base import (
    ON_TEST_IMAGES,
    TEST_IMAGES,
    base,
    best_rate,
    change,
    convolutions,
)
from experiments.studies.tools.definition import Scale, Study
from experiments.studies.tools.phrases import listed, points, threshold
from experiments.studies.tools.records import Records, Setting
from experiments.studies.tools.training import (
    Training,
    accuracy,
    logits,
    logits_by_batch,
    recalibrated,
)
from experiments.studies.tools.verdicts import difference
from experiments.tables import spread, table

MODES = {
    "accuracy": ("running statistics", "tab:blue"),
    "recalibrated": ("recalibrated statistics", "tab:cyan"),
    "by_batch": ("the test images' own statistics", "tab:gray"),
}
"""The statistics in inference: name and color."""
_ANY = "any"
_BATCH = 128
_RECALIBRATED_ON = 10_000
"""Largest number of training images that statistics are recalibrated on."""
_RELEVANT = 0.01
"""Threshold for a difference of two test accuracies."""


def settings(scale: Scale) -> list[Setting]:
    """Returns runs of each method, at each size of the normalization batch if it has one."""
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
            group = {"group_size": size} if method in ("batch", "renorm") else {}
            config = change(
                config,
                norm={"method": method, **group},
                optimizer={"learning_rate": rate},
                batch_size=min(_BATCH, config.data.train_size or _BATCH),
                epochs={"smoke": 1.0, "cifar10": 8.0}.get(scale, 12.0),
                seed=seed,
            )
            labels = {"norm": method, "size": size, "rate": rate, "seed": seed}
            runs.append(Setting(labels, config))
    return runs


def measure(setting: Setting, dataset: Dataset) -> dict[str, Any]:
    """Returns test accuracies by running statistics, and for batch norm also by others."""
    training = Training(setting.config, dataset)
    if setting.labels["norm"] == "running":
        training.finish_in_micro_batches(setting.labels["size"])
    else:
        training.advance(training.total_steps)
    images, labels = dataset.test_images[:TEST_IMAGES], dataset.test_labels[:TEST_IMAGES]
    result = {"accuracy": accuracy(training.call(logits, images), labels)}
    if setting.labels["norm"] == "batch":
        result["by_batch"] = accuracy(training.call(logits_by_batch, images), labels)
        training.state = training.call(recalibrated, dataset.train_images[:_RECALIBRATED_ON])
        result["recalibrated"] = accuracy(training.call(logits, images), labels)
    return result


def plot(records: Records, caption: str) -> Figure:
    """Draws the accuracy against the normalization batch: all methods, and batch norm alone."""
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
    left.set(title="all methods, with running statistics", ylabel="test accuracy")
    right.set(title="batch norm, by statistics in inference", ylabel="test accuracy")
    for axis in (left, right):
        figures.powers_of_two(axis, sizes)
        axis.set(xlabel="images normalized together in training")
        axis.legend(fontsize=8)
        percent(axis)
    return figure


def answer(records: Records) -> str:
    """Reports what small normalization batches cost, and which methods help."""
    sizes = records.where(norm="batch").labels("size")
    smallest, largest = sizes[0], sizes[-1]
    paragraphs = []
    for size in sizes[:-1]:
        loss = difference(
            *(_chosen(records, "batch", s).values("accuracy") for s in (largest, size)),
            relevant=_RELEVANT,
        )
        paragraphs.append(
            f"**Normalization over {size} images costs accuracy: {loss.verdict}.** With batch norm"
            f" over {size} images, the test accuracy is {points(loss, 'lower', 'higher')} than over"
            f" {largest} images."
        )
    batch = _chosen(records, "batch", smallest)
    better = []
    for method in records.labels("norm"):
        other = _chosen(records, method, smallest) or _chosen(records, method, _ANY)
        gain = difference(other.values("accuracy"), batch.values("accuracy"), relevant=_RELEVANT)
        if gain.verdict == "held":
            better.append(figures.METHODS[method][0])
    names = listed(better) if better else "no other method"
    paragraphs.append(
        f"With normalization over {smallest} images, {names}"
        f" {'are' if len(better) > 1 else 'is'} clearly better than batch norm."
    )
    modes = [f"{spread(batch.values(n)):.1%} with {label}" for n, (label, _) in MODES.items()]
    paragraphs.append(
        f"After training with batch norm over {smallest} images, the test accuracy is"
        f" {listed(modes)}."
    )
    rows = []
    for method in records.labels("norm"):
        arms = [_chosen(records, method, s) or _chosen(records, method, _ANY) for s in sizes]
        cells = (f"{spread(a.values('accuracy')):.1%} ({a[0].labels['rate']:g})" for a in arms)
        rows.append([figures.METHODS[method][0], *cells])
    head = ["test accuracy (learning rate)", *(f"over {size} images" for size in sizes)]
    return "\n\n".join([table(head, rows), *paragraphs])


def _chosen(records: Records, method: str, size: Any) -> Records:
    """Returns the runs of a method and size at the learning rate with the best test accuracy."""
    return records.where(norm=method, size=size).best("rate", "accuracy")


def _values(records: Records, method: str, sizes: list[int], name: str) -> np.ndarray:
    return np.array([_chosen(records, method, size).values(name) for size in sizes]).T


def method(records: Records) -> str:
    """Describes how the claim was measured."""
    run = records[0]
    return (
        f"The network has {convolutions(records)}. We train it for {run.value('epochs'):g} epochs"
        f" with batches of {run.value('batch_size')} images. A batch is split into parts, and the"
        " images of a part are normalized together. The optimizer uses the mean gradient of all"
        " parts."
        " Running batch norm takes the parts one after another."
        f" {best_rate(records, 'each method and size')} {ON_TEST_IMAGES} Recalibrated"
        f" statistics are those of the training images (at most {_RECALIBRATED_ON:,}) at the final"
        " weights."
        f"{_limits(records.where(norm='renorm'))}"
    )


def _limits(renorm: Records) -> str:
    if not renorm:
        return ""
    r_max, d_max, steps = (
        renorm[0].value(f"norm.{name}") for name in ("r_max", "d_max", "widening_steps")
    )
    return f" The limits of renorm widen to {r_max:g} and {d_max:g} in the first {steps} steps."


STUDY = Study(
    name="batch_size",
    question="How small may the normalization batch be?",
    claim=(
        "Batch norm needs large batches. With small batches it is worse, and batch renorm, running"
        " batch norm and group norm are better."
    ),
    threshold=(
        f"{threshold(_RELEVANT, 'test accuracy')} A method is clearly better than batch norm if the"
        " claim that it is better held."
    ),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
