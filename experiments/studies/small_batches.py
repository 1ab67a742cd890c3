"""Whole batches of 2 to 32 images at a steady rate: which methods still infer."""

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
from experiments.studies.training import Training, accuracy, logits

_NETWORKS = {
    "strided": "strided convolutions, norms behind activations",
    "small": "pooled convolutions, norms before activations",
}
_LAST_IMAGES = 256
_EPOCHS = 2.0
_STEADY = ((0.0, 1.0), (1.0, 1.0))


def settings(scale: Scale) -> list[Setting]:
    """Returns each network with each method at each batch size and rate."""
    smoke = scale == "smoke"
    methods = ("batch", "running") if smoke else tuple(figures.METHODS)
    sizes, rates = ((32,), (0.4,)) if smoke else ((2, 8, 32), (0.1, 0.4))
    seeds = {"smoke": 1, "digits": 5, "cifar10": 3, "full": 5}[scale]
    return [
        Setting(
            {"network": network, "norm": method, "size": size, "rate": rate, "seed": seed},
            change(
                base(scale, "small_batches"),
                model={"name": network},
                norm={"method": method},
                optimizer={"learning_rate": rate, "momentum": 0.0, "schedule": _STEADY},
                batch_size=size,
                epochs=_EPOCHS,
                seed=seed,
            ),
        )
        for network, method, size, rate, seed in product(
            _NETWORKS, methods, sizes, rates, range(seeds)
        )
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
    """Draws test accuracy against the batch size for each network and rate."""
    networks, rates = records.labels("network"), records.labels("rate")
    figure, axes = figures.new(len(rates), STUDY.question, caption, rows=len(networks))
    for axis, (network, rate) in zip(axes, product(networks, rates), strict=True):
        here = records.where(network=network, rate=rate)
        sizes = here.labels("size")
        for method in here.labels("norm"):
            label, color = figures.METHODS[method]
            figures.band(axis, sizes, _values(here, method, sizes, "accuracy"), label, color)
        label, color = figures.METHODS["batch"]
        label = f"{label}, in training"
        values = _values(here, "batch", sizes, "in_training")
        figures.band(axis, sizes, values, label, color, linestyle=":", marker="")
        figures.powers_of_two(axis, sizes)
        axis.set_title(f"{_NETWORKS[network]}\nlearning rate {rate:g}", fontsize=9)
        axis.set(ylim=(0, 1.02))
        percent(axis)
    for axis in axes[:: len(rates)]:
        axis.set_ylabel(f"test accuracy after {_EPOCHS:g} epochs")
    for axis in axes[-len(rates) :]:
        axis.set_xlabel("images in a batch")
    axes[-1].legend(fontsize=8)
    return figure


def answer(records: Records) -> str:
    """Compares batch norm and running batch norm at the smallest batch, by network and rate."""
    size = min(records.labels("size"))
    paragraphs = [
        _headline(records.where(network=network, size=size, rate=rate), network, size, rate)
        for network, rate in product(*(records.labels(name) for name in ("network", "rate")))
    ]
    sizes = (f"batches of {size}" for size in records.labels("size"))
    head = ["test accuracy", "network", "rate", *sizes]
    rows = []
    for network, name, at in product(*(records.labels(k) for k in ("network", "norm", "rate"))):
        here = records.where(network=network, norm=name, rate=at)
        cells = (
            f"{spread(here.where(size=s).values('accuracy')):.1%}" for s in here.labels("size")
        )
        rows.append([figures.METHODS[name][0], network, f"{at:g}", *cells])
    return "\n\n".join([*paragraphs, table(head, rows)])


def _headline(records: Records, network: str, size: int, rate: float) -> str:
    arms = {name: records.where(norm=name) for name in records.labels("norm")}
    batch, running = (arms[name].values("accuracy") for name in ("batch", "running"))
    trained = arms["batch"].values("in_training")
    gain = difference(running, batch, relevant=0.05)
    text = (
        f"**Running batch norm is better with {_NETWORKS[network]}, at batches of {size} and a rate"
        f" of {rate:g}: {gain.verdict}.** {spread(running):.1%} of the test images against"
        f" {spread(batch):.1%} with batch norm: {100 * gain.mean:+.1f} points (95% interval"
        f" {100 * gain.low:+.1f} to {100 * gain.high:+.1f}). Of its last {_LAST_IMAGES} training"
        f" images, normalised by their batches, batch norm had {spread(trained):.1%} right."
    )
    others = [
        f"{figures.METHODS[name][0]} {spread(arm.values('accuracy')):.1%}"
        for name, arm in arms.items()
        if name not in ("batch", "running")
    ]
    return f"{text} The others: {listed(others)}." if others else text


def _values(records: Records, method: str, sizes: list[int], name: str) -> np.ndarray:
    runs = records.where(norm=method)
    return np.array([runs.where(size=size).values(name) for size in sizes]).T


def method(records: Records) -> str:
    """Says how it was tried."""
    return (
        f"{_EPOCHS:g} epochs of plain SGD at a steady rate, so that smaller batches are more steps;"
        " what is normalised together is the whole batch. The strided network is fast.ai's (8, 16,"
        " 32, 32 channels), whose last norm sees 4 values of each image; the pooled one is that of"
        f" the other studies ({convolutions(records)}), whose last norms see a quarter of the"
        " image's pixels."
    )


STUDY = Study(
    name="small_batches",
    question="Which norms survive batches of two?",
    claim=(
        "in batches of 2 and at a large learning rate plain batch norm fails in inference and"
        " running batch norm does not (fast.ai's course, on MNIST: 26.0% and 97.3%)."
    ),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
