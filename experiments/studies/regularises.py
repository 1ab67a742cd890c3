"""Measures the gap between training and test accuracy, with batch norm and without its noise."""

from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.data import Dataset
from experiments.studies.tools import figures
from experiments.studies.tools.base import RATES, base, best_rate, change, convolutions
from experiments.studies.tools.definition import Scale, Study
from experiments.studies.tools.phrases import points, threshold
from experiments.studies.tools.records import Records, Setting
from experiments.studies.tools.training import Training, accuracy, cross_entropy, logits
from experiments.studies.tools.verdicts import difference
from experiments.tables import spread, table

ARMS = {
    "none": ({"method": "none"}, "no norm", "tab:orange"),
    "batch 4": ({"method": "batch", "group_size": 4}, "batch norm\nof 4", "#9ecae1"),
    "batch 16": ({"method": "batch", "group_size": 16}, "batch norm\nof 16", "#4292c6"),
    "batch 64": ({"method": "batch"}, "batch norm\nof 64", "#08519c"),
    "renorm": ({"method": "renorm"}, "renorm\n(little noise)", "tab:green"),
}
_RELEVANT = 0.005
"""Threshold for a difference of two gaps."""
_NAMES = {arm: label.replace("\n", " ") for arm, (_, label, _) in ARMS.items()}


def settings(scale: Scale) -> list[Setting]:
    """Returns runs of each arm at two sizes of the training set and three learning rates."""
    seeds = {"smoke": 1, "digits": 5, "cifar10": 3, "full": 5}[scale]
    sizes = {
        "smoke": (128,),
        "digits": (128, 512),
        "cifar10": (512, 2_048),
        "full": (2_000, 10_000),
    }[scale]
    arms = ("none", "batch 64") if scale == "smoke" else ARMS
    rates = (0.1,) if scale == "smoke" else RATES
    steps = {"smoke": 2, "digits": 300, "cifar10": 600, "full": 3_000}[scale]
    runs = []
    for size, arm, rate, seed in product(sizes, arms, rates, range(seeds)):
        config = change(base(scale, "regularises"), batch_size=64, seed=seed)
        config = change(
            config,
            data={"train_size": size},
            norm=ARMS[arm][0],
            optimizer={"learning_rate": rate},
            epochs=steps / (size // config.batch_size),
        )
        labels = {"images": size, "arm": arm, "rate": rate, "seed": seed}
        runs.append(Setting(labels, config))
    return runs


def measure(setting: Setting, dataset: Dataset) -> dict[str, Any]:
    """Returns accuracy and loss on training and test images, in inference."""
    training = Training(setting.config, dataset)
    training.advance(training.total_steps)
    train = training.call(logits, dataset.train_images)
    test = training.call(logits, dataset.test_images)
    values = {
        "train_accuracy": accuracy(train, dataset.train_labels),
        "accuracy": accuracy(test, dataset.test_labels),
        "train_loss": cross_entropy(train, dataset.train_labels),
        "loss": cross_entropy(test, dataset.test_labels),
    }
    return {**values, "gap": values["train_accuracy"] - values["accuracy"]}


def plot(records: Records, caption: str) -> Figure:
    """Draws the gap of each arm, with a panel for each size."""
    sizes = records.labels("images")
    figure, axes = figures.new(len(sizes), STUDY.question, caption, width=5.2)
    for axis, size in zip(axes, sizes, strict=True):
        arms = _chosen(records.where(images=size))
        for x, (arm, runs) in enumerate(arms.items()):
            figures.points(axis, x, 100 * runs.values("gap"), ARMS[arm][2])
        axis.set_xticks(range(len(arms)), [ARMS[arm][1] for arm in arms], fontsize=8)
        axis.set(title=f"{size:,} training images", ylabel="training - test accuracy (points)")
        axis.set_ylim(bottom=0)
    return figure


def answer(records: Records) -> str:
    """Compares the gaps of the arms, and reports the effect of small normalization batches."""
    paragraphs, rows = [], []
    for size in records.labels("images"):
        arms = _chosen(records.where(images=size))
        gaps = {arm: runs.values("gap") for arm, runs in arms.items()}
        smaller = difference(gaps["none"], gaps["batch 64"], relevant=_RELEVANT)
        paragraphs.append(
            f"**Batch norm makes the gap smaller with {size:,} training images:"
            f" {smaller.verdict}.** With batch norm of 64, the gap is"
            f" {points(smaller, 'smaller', 'larger')} than without a norm. {_noise(gaps)}"
        )
        for arm, runs in arms.items():
            cells = [f"{spread(runs.values(n)):.1%}" for n in ("train_accuracy", "accuracy", "gap")]
            cells.append(f"{spread(runs.values('loss')):.3f}")
            rows.append([f"{size:,}", _NAMES[arm], f"{runs[0].labels['rate']:g}", *cells])
    head = ["training images", "norm", "learning rate"]
    head += ["training accuracy", "test accuracy", "gap", "test loss"]
    return "\n\n".join([table(head, rows), *paragraphs])


def _noise(gaps: dict[str, np.ndarray]) -> str:
    sentences = []
    for noise, (one, other), names in (
        ("small batches", ("batch 64", "batch 4"), ("With batch norm of 4", "with 64")),
        ("batches of 64", ("renorm", "batch 64"), ("With batch norm of 64", "with renorm")),
    ):
        if one in gaps and other in gaps:
            less = difference(gaps[one], gaps[other], relevant=_RELEVANT)
            sentences.append(
                f"**The noise of {noise} makes the gap smaller: {less.verdict}.** {names[0]}, it is"
                f" {points(less, 'smaller', 'larger')} than {names[1]}."
            )
    return " ".join(sentences)


def _chosen(records: Records) -> dict[str, Records]:
    """Returns the runs of each arm at the learning rate with the best test accuracy."""
    return {arm: records.where(arm=arm).best("rate", "accuracy") for arm in records.labels("arm")}


def method(records: Records) -> str:
    """Describes how the claim was measured."""
    run, images = records[0], records[0].labels["images"]
    batch = run.value("batch_size")
    steps = round(run.value("epochs") * (images // batch))
    return (
        f"The network has {convolutions(records)}. We train it for {steps} steps of {batch} images,"
        " without augmentation and without weight decay."
        f" {best_rate(records, 'each norm and number of training images')} Batch norm of 4"
        " normalizes 4 images of a batch together. Renorm normalizes by running statistics within"
        " its limits, so its training has little of the noise of a batch."
    )


STUDY = Study(
    name="regularises",
    question="Does batch norm narrow the gap between training and test?",
    claim=(
        "Batch norm regularizes, because the noise of its statistics narrows the gap between"
        " training and test accuracy."
    ),
    threshold=threshold(_RELEVANT, "the gap, which is training accuracy minus test accuracy"),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
