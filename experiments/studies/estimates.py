"""Measures the errors of a batch's mean and variance, and the throughput of batches."""

import time
from itertools import product
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jbn.linen
from experiments.data import Dataset
from experiments.learner import Learner, TrainState
from experiments.placement import Images
from experiments.studies.tools import figures
from experiments.studies.tools.base import base, change, convolutions
from experiments.studies.tools.definition import Scale, Study
from experiments.studies.tools.phrases import listed
from experiments.studies.tools.records import Records, Setting
from experiments.studies.tools.training import Training
from experiments.studies.tools.verdicts import difference
from experiments.tables import spread, table

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DRAWS = 400
_MEASURED_ON = 10_000
"""Largest number of training images that the errors are measured on."""
_SLOPE, _TOLERANCE = -0.5, 0.05
"""The slope of the errors by the law, and its largest difference from a measured one."""
_RELEVANT = 0.1
"""Threshold for throughputs, as a share of that of the smallest batches."""
_TIMED_STEPS = 20


def settings(scale: Scale) -> list[Setting]:
    """Returns networks to train, whose statistics are measured, and training steps to time."""
    seeds = 2 if scale == "smoke" else 5
    sizes = (2, 64) if scale == "smoke" else (2, 8, 32, 128, 512, 1024)
    config = change(base(scale, "estimates"), optimizer={"learning_rate": 0.1})
    runs = [
        Setting({"measure": "errors", "seed": seed}, change(config, seed=seed))
        for seed in range(seeds)
    ]
    for norm, size, seed in product(("batch", "none"), sizes, range(seeds)):
        labels = {"measure": "throughput", "norm": norm, "size": size, "seed": seed}
        timed = change(config, norm={"method": norm}, batch_size=size, seed=seed)
        runs.append(Setting(labels, timed))
    return runs


def measure(setting: Setting, dataset: Dataset) -> dict[str, Any]:
    """Returns errors `[layers, sizes]` of a trained network, or the images per second of a step."""
    training = Training(setting.config, dataset)
    if setting.labels["measure"] == "throughput":
        training.advance(3)
        start = time.perf_counter()
        training.advance(_TIMED_STEPS)
        elapsed = time.perf_counter() - start
        return {"images_per_second": _TIMED_STEPS * setting.config.batch_size / elapsed}
    training.advance(training.total_steps)
    random = np.random.default_rng(setting.config.seed)
    images = dataset.train_images[:_MEASURED_ON]
    layers = training.call(_image_moments, images)
    errors = [_errors(means, squares, random) for means, squares, _ in layers]
    mean, var = np.transpose(errors, (1, 0, 2)).tolist()
    positions = [int(count) for *_, count in layers]
    return {"sizes": list(SIZES), "positions": positions, "mean": mean, "var": var}


def plot(records: Records, caption: str) -> Figure:
    """Draws the errors of the mean and of the variance, and the throughput."""
    errors, timed = records.where(measure="errors"), records.where(measure="throughput")
    figure, axes = figures.new(3, STUDY.question, caption, width=4.3)
    sizes = errors[0].result["sizes"]
    for axis, name in zip(axes, ("mean", "var"), strict=False):
        values = errors.values(name)
        for layer in range(values.shape[1]):
            color = figures.depth_color(layer, values.shape[1])
            figures.band(axis, sizes, values[:, layer], f"layer {layer + 1}", color, log=True)
        guide = values[:, :, 0].mean() / np.sqrt(sizes)
        axis.plot(sizes, guide, "k--", linewidth=1, label="1 / sqrt(images)")
        axis.set(yscale="log", xlabel="images in the batch")
        axis.legend(fontsize=8)
    axes[0].set(title="mean of the batch", ylabel="error, in standard deviations")
    axes[1].set(title="variance of the batch", ylabel="relative error")
    for norm in timed.labels("norm"):
        label, color = figures.METHODS[norm]
        arm = timed.where(norm=norm)
        rates = [arm.where(size=size).values("images_per_second") for size in arm.labels("size")]
        figures.band(axes[2], arm.labels("size"), np.transpose(rates), label, color)
    axes[2].set(title="training", ylabel="images per second", xlabel="images in the batch")
    axes[2].set_ylim(bottom=0)
    axes[2].legend()
    figures.powers_of_two(axes[0], sizes)
    figures.powers_of_two(axes[1], sizes)
    figures.powers_of_two(axes[2], timed.labels("size"))
    axes[2].tick_params("x", labelsize=9)
    return figure


def answer(records: Records) -> str:
    """Reports the slopes and the sizes of the errors, and the throughputs."""
    errors, timed = records.where(measure="errors"), records.where(measure="throughput")
    sizes = np.array(errors[0].result["sizes"])
    mean, var = errors.values("mean"), errors.values("var")
    slopes = {
        name: spread([np.polyfit(np.log(sizes), np.log(run.mean(0)), 1)[0] for run in values])
        for name, values in (("mean", mean), ("variance", var))
    }
    law = all(abs(slope.mean - _SLOPE) < _TOLERANCE for slope in slopes.values())
    rows = [
        [f"{sizes[at]}", *(f"{spread(values[:, :, at].mean(1)):.3f}" for values in (mean, var))]
        for at in range(len(sizes))
    ]
    head = ["images in the batch", "error of the mean", "error of the variance"]
    # The error of a mean over k independent values is 1 / sqrt(k).
    worth = [spread(1 / mean[:, layer, 0] ** 2) for layer in range(mean.shape[1])]
    positions = errors[0].result["positions"]
    beyond = any(w.mean - w.std > p for w, p in zip(worth, positions, strict=True))
    more = " It can be worth more values than it has positions, if they cancel in the mean."
    counts = [f"{w:.0f} (at {p} positions)" for w, p in zip(worth, positions, strict=True)]
    return "\n\n".join(
        [
            table(head, rows),
            (
                "**Errors fall as one over the square root of the batch size:"
                f" {'held' if law else 'did not hold'}.** On logarithmic axes, the slopes are"
                f" {slopes['mean']:.2f} for the mean and {slopes['variance']:.2f} for the variance."
                f" By the law they are {_SLOPE:g}, so a batch of four times the size halves the"
                " error. The errors in the table are means over the layers. Those of the mean are"
                " in standard deviations, and those of the variance are relative."
            ),
            (
                "In the layers from the input on, an image is worth"
                f" {listed(counts)} independent values.{more if beyond else ''}"
            ),
            *_throughput(timed),
        ]
    )


def _throughput(timed: Records) -> list[str]:
    sizes = timed.labels("size")
    batch, none = (
        {size: timed.where(norm=norm, size=size).values("images_per_second") for size in sizes}
        for norm in ("batch", "none")
    )
    least, most = batch[sizes[0]], batch[sizes[-1]]
    faster = difference(most, least, relevant=_RELEVANT * least.mean())
    cost = none[sizes[-1]].mean() / most.mean() - 1
    best = max(sizes, key=lambda size: batch[size].mean())
    rows = [
        [f"{size}", *(f"{spread(rates[size]):,.0f}" for rates in (batch, none))] for size in sizes
    ]
    return [
        table(["images in the batch", "images per second, batch norm", "no norm"], rows),
        (
            f"**Batches of {sizes[-1]:,} are processed faster than batches of {sizes[0]}:"
            f" {faster.verdict}.** The number of images per second is highest with batches of"
            f" {best}. With batches of {sizes[-1]:,}, a step takes {abs(cost):.0%}"
            f" {'more' if cost >= 0 else 'less'} time with batch norm than without a norm."
        ),
    ]


def _image_moments(
    learner: Learner, state: TrainState, data: Images, images: jax.Array
) -> list[tuple[jax.Array, jax.Array, int]]:
    """Returns each image's mean and mean square in the input of every norm, and its positions.

    The means are `[images, channels]`. The inputs are shifted and scaled first, so that over all
    images their mean is 0 and their variance is 1.
    """
    layers = []

    def keep(call, args, kwargs, context):
        if isinstance(context.module, jbn.linen.Norm) and context.method_name == "__call__":
            everything = jbn.moments(args[0])
            x = (args[0] - everything.mean) * jax.lax.rsqrt(everything.var)
            positions = x.shape[1] * x.shape[2]
            layers.append((jnp.mean(x, (1, 2)), jnp.mean(x**2, (1, 2)), positions))
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        x = learner.normalize(data, images)
        learner.apply(state.params, state.batch_stats, x, train=False)
    return layers


def _errors(means, squares, random) -> tuple[list[float], list[float]]:
    """Returns the root mean square errors of a batch's mean and variance for each size."""
    alive = np.isfinite(squares).all(0) & (squares.mean(0) > 0.5)
    means, squares = (np.asarray(a[:, alive], np.float64) for a in (means, squares))
    errors = []
    for size in SIZES:
        index = random.integers(len(means), size=(_DRAWS, size))
        mean = means[index].mean(1)
        var = squares[index].mean(1) - mean**2
        errors.append([np.sqrt(np.mean(mean**2)), np.sqrt(np.mean((var - 1) ** 2))])
    mean, var = np.transpose(errors).tolist()
    return mean, var


def method(records: Records) -> str:
    """Describes how the claim was measured."""
    return (
        f"We train a network with {convolutions(records)}, and compute the input of every norm for"
        f" the training images (at most {_MEASURED_ON:,}). We draw {_DRAWS} batches of each size"
        " with replacement, and compare the mean and the variance of each channel with those of all"
        " these images. Errors are root mean"
        f" squares over draws and channels. For the throughput we time {_TIMED_STEPS} training"
        " steps after the first three."
    )


STUDY = Study(
    name="estimates",
    question="How accurate are a batch's statistics, and how fast is a batch?",
    claim=(
        "Small batches give poor estimates of the mean and the variance, and large batches give"
        " good ones. Large batches are also processed faster."
    ),
    threshold=(
        "For throughputs, the threshold is"
        f" {_RELEVANT:.0%} of that of the smallest batches. The law of the errors has another rule:"
        f" it held if both slopes differ from {_SLOPE:g} by less than {_TOLERANCE:g}. Otherwise it"
        " did not hold."
    ),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
