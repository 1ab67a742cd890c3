"""Measures inference after training with batches of 2 to 32 images at a constant rate."""

from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.data import Dataset
from experiments.run.figures import percent
from experiments.studies.tools import figures
from experiments.studies.tools.base import ON_TEST_IMAGES, TEST_IMAGES, base, change, convolutions
from experiments.studies.tools.definition import Scale, Study
from experiments.studies.tools.phrases import points, threshold
from experiments.studies.tools.records import Records, Setting
from experiments.studies.tools.training import Training, accuracy, logits
from experiments.studies.tools.verdicts import difference
from experiments.tables import spread, table

_NETWORKS = {
    "strided": ("strided", "norms after activations"),
    "small": ("pooled", "norms before activations"),
}
"""Name of each network, and the places of its norms."""
_LAST_IMAGES = 256
_RELEVANT = 0.05
"""Threshold for a difference of two test accuracies."""
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
    """Returns the accuracies on test images, and on the last training images in training mode."""
    training = Training(setting.config, dataset)
    metrics = training.advance(training.total_steps)
    last = max(1, _LAST_IMAGES // setting.config.batch_size)
    predictions = training.call(logits, dataset.test_images[:TEST_IMAGES])
    return {
        "accuracy": accuracy(predictions, dataset.test_labels[:TEST_IMAGES]),
        "in_training": float(np.mean(metrics["accuracy"][-last:])),
    }


def plot(records: Records, caption: str) -> Figure:
    """Draws the test accuracy against the batch size for each network and learning rate."""
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
        name, places = _NETWORKS[network]
        axis.set_title(f"{name} network, {places}\nlearning rate {rate:g}", fontsize=9)
        axis.set(ylim=(0, 1.02))
        percent(axis)
    for axis in axes[:: len(rates)]:
        axis.set_ylabel(f"test accuracy after {_EPOCHS:g} epochs")
    for axis in axes[-len(rates) :]:
        axis.set_xlabel("images in a batch")
    axes[-1].legend(fontsize=8)
    return figure


def answer(records: Records) -> str:
    """Compares batch norm and running batch norm with the smallest batches."""
    size = min(records.labels("size"))
    paragraphs = [
        _headline(records.where(network=network, size=size, rate=rate), network, size, rate)
        for network, rate in product(*(records.labels(name) for name in ("network", "rate")))
    ]
    sizes = (f"batches of {size}" for size in records.labels("size"))
    head = ["test accuracy", "network", "learning rate", *sizes]
    rows = []
    for network, name, at in product(*(records.labels(k) for k in ("network", "norm", "rate"))):
        here = records.where(network=network, norm=name, rate=at)
        cells = (
            f"{spread(here.where(size=s).values('accuracy')):.1%}" for s in here.labels("size")
        )
        rows.append([figures.METHODS[name][0], _NETWORKS[network][0], f"{at:g}", *cells])
    return "\n\n".join([table(head, rows), *paragraphs])


def _headline(records: Records, network: str, size: int, rate: float) -> str:
    arms = {name: records.where(norm=name) for name in records.labels("norm")}
    batch, running = (arms[name].values("accuracy") for name in ("batch", "running"))
    trained = arms["batch"].values("in_training")
    gain = difference(running, batch, relevant=_RELEVANT)
    return (
        f"**Running batch norm is better in the {_NETWORKS[network][0]} network with batches of"
        f" {size} at a learning rate of {rate:g}: {gain.verdict}.** Its test accuracy"
        f" is {points(gain, 'higher', 'lower')} than that of batch norm. In training mode, batch"
        f" norm classified {spread(trained):.1%} of the last {_LAST_IMAGES} training images"
        " correctly."
    )


def _values(records: Records, method: str, sizes: list[int], name: str) -> np.ndarray:
    runs = records.where(norm=method)
    return np.array([runs.where(size=size).values(name) for size in sizes]).T


def method(records: Records) -> str:
    """Describes how the claim was measured."""
    return (
        f"We train for {_EPOCHS:g} epochs by plain SGD at a constant learning rate, so smaller"
        " batches mean more steps. The whole batch is normalized together. The strided network is"
        " fast.ai's, with convolutions of 8, 16, 32 and 32 channels and norms after the"
        " activations. Its last norm sees 4 values of each image. The pooled network is that of the"
        f" other studies, with {convolutions(records)} and norms before the activations. Its last"
        f" norms see a quarter of the image's pixels. {ON_TEST_IMAGES}"
    )


STUDY = Study(
    name="small_batches",
    question="Which norms work with batches of two?",
    claim=(
        "With batches of 2 and a large learning rate, plain batch norm fails in inference, and"
        " running batch norm works (fast.ai's course, on MNIST: 26.0% and 97.3% accuracy)."
    ),
    threshold=threshold(_RELEVANT, "test accuracy"),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
