"""How far a batch's mean and variance are from those of all data, and what a batch costs."""

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
from experiments.studies import figures
from experiments.studies.base import base, change, convolutions
from experiments.studies.definition import Scale, Study
from experiments.studies.phrases import difference, listed, spread
from experiments.studies.records import Records, Setting
from experiments.studies.training import Training

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DRAWS = 400
_TIMED_STEPS = 20


def settings(scale: Scale) -> list[Setting]:
    """Returns trained nets whose statistics are looked at, and steps to be timed."""
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
    """Returns errors `[layers, sizes]` of a trained net, or the images per second of a step."""
    training = Training(setting.config, dataset)
    if setting.labels["measure"] == "throughput":
        training.advance(3)
        start = time.perf_counter()
        training.advance(_TIMED_STEPS)
        elapsed = time.perf_counter() - start
        return {"images_per_second": _TIMED_STEPS * setting.config.batch_size / elapsed}
    training.advance(training.total_steps)
    random = np.random.default_rng(setting.config.seed)
    images = dataset.train_images[:10_000]
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
        axis.plot(sizes, guide, "k--", linewidth=1, label="as 1 / sqrt(images)")
        axis.set(yscale="log", xlabel="images in the batch")
        axis.legend(fontsize=8)
    axes[0].set(title="mean of the batch", ylabel="error, in standard deviations")
    axes[1].set(title="variance of the batch", ylabel="error, relative")
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
    """Gives the errors' slopes and sizes, and the throughputs."""
    errors, timed = records.where(measure="errors"), records.where(measure="throughput")
    sizes = np.array(errors[0].result["sizes"])
    mean, var = errors.values("mean"), errors.values("var")
    slopes = {
        name: spread([np.polyfit(np.log(sizes), np.log(run.mean(0)), 1)[0] for run in values])
        for name, values in (("mean", mean), ("variance", var))
    }
    law = all(abs(slope.mean + 0.5) < 0.05 for slope in slopes.values())
    examples = [
        f"with {sizes[at]} images the mean is off by {spread(mean[:, :, at].mean(1)):.2f} standard "
        f"deviations and the variance by {spread(var[:, :, at].mean(1)):.0%}"
        for at in (1, 5, 8)
    ]
    # A mean over k independent values is off by 1 / sqrt(k).
    worth = [spread(1 / mean[:, layer, 0] ** 2) for layer in range(mean.shape[1])]
    positions = errors[0].result["positions"]
    beyond = any(w.mean - w.std > p for w, p in zip(worth, positions, strict=True))
    more = ", more than its positions where these cancel in the mean" if beyond else ""
    counts = [f"{w:.0f} (of {p} positions)" for w, p in zip(worth, positions, strict=True)]
    paragraphs = [
        (
            "**Errors fall as one over the root of the batch:"
            f" {'held' if law else 'did not hold'}.** The slopes in the double logarithm are"
            f" {slopes['mean']:.2f} for the mean and {slopes['variance']:.2f} for the variance"
            " (-0.5 by that law), so four times the batch halves the error. Over the layers,"
            f" {listed(examples)}. Layer by layer an image counts as much as {listed(counts)}"
            f" independent values{more}."
        ),
        *_throughput(timed),
    ]
    return "\n\n".join(paragraphs)


def _throughput(timed: Records) -> list[str]:
    arm = timed.where(norm="batch")
    sizes = arm.labels("size")
    rates = {size: arm.where(size=size).values("images_per_second") for size in sizes}
    faster = difference(rates[sizes[-1]], rates[sizes[0]], relevant=0.1 * rates[sizes[0]].mean())
    bare = timed.where(norm="none", size=sizes[-1]).values("images_per_second")
    cost = bare.mean() / rates[sizes[-1]].mean() - 1
    best = max(sizes, key=lambda size: rates[size].mean())
    listing = ", ".join(f"{spread(rates[size]):,.0f} at {size}" for size in sizes)
    return [
        f"**Larger batches are processed faster: {faster.verdict}.** Images per second: {listing};"
        f" the most at {best}. At {sizes[-1]} a step takes {abs(cost):.0%}"
        f" {'longer' if cost >= 0 else 'less'} with batch norm than without."
    ]


def _image_moments(
    learner: Learner, state: TrainState, images: jax.Array
) -> list[tuple[jax.Array, jax.Array, int]]:
    """Each image's mean and mean square of every norm's input `[images, channels]`; its positions.

    The inputs are shifted and scaled so that over all images their mean is 0, their variance 1.
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
        learner.apply(state.params, state.batch_stats, learner.normalize(images), train=False)
    return layers


def _errors(means, squares, random) -> tuple[list[float], list[float]]:
    """Root mean square errors of batches' mean and variance, a number for each size."""
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
    """Says how it was tried."""
    return (
        f"Of a trained net ({convolutions(records)}) every norm's input is taken over all training"
        f" images; {_DRAWS} batches of each size are drawn with replacement, and their mean and"
        " variance of each channel compared with those of all images (root mean square over draws"
        f" and channels). Throughput: {_TIMED_STEPS} training steps after the first three."
    )


STUDY = Study(
    name="estimates",
    question="How good are a batch's statistics, and how fast is a batch?",
    claim=(
        "small batches estimate mean and variance badly, large ones well, and large ones are "
        "processed faster."
    ),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
