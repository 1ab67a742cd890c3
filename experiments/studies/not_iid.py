"""Measures training with batches that hold few classes."""

from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.data import Dataset
from experiments.run.figures import percent
from experiments.studies.tools import figures
from experiments.studies.tools.base import (
    ON_TEST_IMAGES,
    RATES,
    TEST_IMAGES,
    base,
    best_rate,
    change,
    convolutions,
)
from experiments.studies.tools.definition import Scale, Study
from experiments.studies.tools.phrases import listed, points, threshold
from experiments.studies.tools.records import Records, Setting
from experiments.studies.tools.training import Training, accuracy, logits, logits_by_batch
from experiments.studies.tools.verdicts import difference
from experiments.tables import spread, table

_RELEVANT = 0.02
"""Threshold for a difference of two test accuracies."""
METHODS = ("batch", "renorm", "running", "group", "none")


def settings(scale: Scale) -> list[Setting]:
    """Returns runs of each method, with 1, 2, 4 or any number of classes in a batch."""
    seeds = 1 if scale == "smoke" else 3
    classes = {"smoke": (2,), "cifar10": (1, 2, None)}.get(scale, (1, 2, 4, None))
    methods = ("batch", "none") if scale == "smoke" else METHODS
    rates = (0.1,) if scale == "smoke" else RATES
    runs = []
    for method, count, rate, seed in product(methods, classes, rates, range(seeds)):
        config = change(base(scale, "not_iid"), norm={"method": method}, seed=seed)
        config = change(config, epochs=6.0) if scale == "cifar10" else config
        config = change(config, optimizer={"learning_rate": rate}, classes_per_batch=count)
        labels = {"norm": method, "classes": count or "any", "rate": rate, "seed": seed}
        runs.append(Setting(labels, config))
    return runs


def measure(setting: Setting, dataset: Dataset) -> dict[str, Any]:
    """Returns test accuracies in inference and training mode, and the last training accuracy."""
    training = Training(setting.config, dataset)
    metrics = training.advance(training.total_steps)
    images, labels = dataset.test_images[:TEST_IMAGES], dataset.test_labels[:TEST_IMAGES]
    return {
        "accuracy": accuracy(training.call(logits, images), labels),
        "accuracy_by_batch": accuracy(training.call(logits_by_batch, images), labels),
        "train_accuracy": float(metrics["accuracy"][-20:].mean()),
    }


def plot(records: Records, caption: str) -> Figure:
    """Draws the accuracy against the classes in a batch, by method, and by mode of batch norm."""
    figure, (left, right) = figures.new(2, STUDY.question, caption, width=5)
    classes = sorted(records.labels("classes"), key=lambda c: 99 if c == "any" else c)
    x = np.arange(len(classes))
    for method in records.labels("norm"):
        label, color = figures.METHODS[method]
        figures.band(left, x, _values(records, method, classes, "accuracy"), label, color)
    modes = {
        "train_accuracy": ("its training batches", "tab:gray"),
        "accuracy_by_batch": ("test images, mixed,\nby their own statistics", "tab:cyan"),
        "accuracy": ("test images,\nby running statistics", "tab:blue"),
    }
    for name, (label, color) in modes.items():
        figures.band(right, x, _values(records, "batch", classes, name), label, color)
    left.set(title="all methods, in inference", ylabel="test accuracy")
    right.set(title="batch norm alone", ylabel="accuracy")
    for axis in (left, right):
        axis.set_xticks(x, ["mixed" if c == "any" else str(c) for c in classes])
        axis.set(xlabel="classes in a training batch", ylim=(0, 1.03))
        axis.legend(fontsize=8)
        percent(axis)
    return figure


def answer(records: Records) -> str:
    """Reports what few classes cost with and without batch norm, and which methods are better."""
    few = [c for c in records.labels("classes") if c != "any"]
    rows = []
    for method in records.labels("norm"):
        arms = [_chosen(records, method, c) for c in records.labels("classes")]
        cells = (f"{spread(a.values('accuracy')):.1%} ({a[0].labels['rate']:g})" for a in arms)
        rows.append([figures.METHODS[method][0], *cells])
    paragraphs = [_with_few(records, count) for count in few]
    head = ["test accuracy (learning rate)", *map(_classes, records.labels("classes"))]
    return "\n\n".join([table(head, rows), *paragraphs])


def _with_few(records: Records, count: int) -> str:
    batch = _chosen(records, "batch", count)
    inference, own = batch.values("accuracy"), batch.values("accuracy_by_batch")
    train = batch.values("train_accuracy")
    sentences = []
    if "any" in records.labels("classes"):
        loss, loss_without = (
            difference(
                *(_chosen(records, method, c).values("accuracy") for c in ("any", count)),
                relevant=_RELEVANT,
            )
            for method in ("batch", "none")
        )
        sentences.append(
            f"**Batch norm is worse with {_classes(count)} in a batch: {loss.verdict}.** Its test"
            f" accuracy is {points(loss, 'lower', 'higher')} than with mixed batches. Without a"
            f" norm, it is {points(loss_without, 'lower', 'higher')}."
        )
        if loss_without.verdict == "held":
            sentences.append("So such batches harm training without a norm, too.")
    sentences.append(
        f"With batch norm, the test accuracy is {spread(inference):.1%} by running statistics, and"
        f" {spread(own):.1%} by the test images' own statistics. In the last training batches, the"
        f" accuracy was {spread(train):.1%}."
    )
    better = [
        f"{figures.METHODS[method][0]} ({spread(values):.1%})"
        for method in records.labels("norm")
        if method != "batch"
        for values in [_chosen(records, method, count).values("accuracy")]
        if difference(values, inference, relevant=_RELEVANT).verdict == "held"
    ]
    names = listed(better) if better else "no other method"
    sentences.append(
        f"{names[0].upper()}{names[1:]} {'are' if len(better) > 1 else 'is'} clearly better than"
        " batch norm."
    )
    return " ".join(sentences)


def _classes(count: Any) -> str:
    if count == "any":
        return "mixed"
    return f"{count} class" if count == 1 else f"{count} classes"


def _chosen(records: Records, method: str, classes: Any) -> Records:
    """Returns the runs of a method and number of classes at the best learning rate."""
    return records.where(norm=method, classes=classes).best("rate", "accuracy")


def _values(records: Records, method: str, classes: list[Any], name: str) -> np.ndarray:
    arms = [_chosen(records, method, count).values(name) for count in classes]
    runs = min(len(arm) for arm in arms)
    return np.array([arm[:runs] for arm in arms]).T


def method(records: Records) -> str:
    """Describes how the claim was measured."""
    run = records[0]
    counts = [str(count) for count in records.labels("classes") if count != "any"]
    return (
        f"The network has {convolutions(records)}. We train it for {run.value('epochs'):g} epochs"
        f" with batches of {run.value('batch_size')}. A batch holds equal parts of"
        f" {listed(counts, 'or')} classes, or images that are mixed at random."
        f" {best_rate(records, 'each method and number of classes')} Running statistics have a"
        f" decay of {run.value('norm.decay'):g}. {ON_TEST_IMAGES}"
    )


STUDY = Study(
    name="not_iid",
    question="What happens if a batch holds few classes?",
    claim=(
        "If a batch holds few classes, its statistics differ from those of the data, and batch norm"
        " fails in inference. Batch renorm and running batch norm work (Ioffe 2017)."
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
