"""Measures training on inputs of another scale, changed test images, and adapted statistics."""

from itertools import product
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.data import Dataset
from experiments.learner import Learner, TrainState
from experiments.placement import Images
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
from experiments.studies.tools.perturb import PERTURBATIONS, perturb
from experiments.studies.tools.phrases import listed, threshold
from experiments.studies.tools.records import Records, Setting
from experiments.studies.tools.training import Training, accuracy, logits, logits_by_batch
from experiments.studies.tools.verdicts import Verdict, difference
from experiments.tables import spread, table
from jbn._norms.method import Wrapped, replaced_method

SIZES = (1, 4, 16, 64, 256)
_RELEVANT = 0.01
"""Threshold for a difference of two test accuracies."""
WEIGHTS = (0, 16)
"""Values of N, the number of images that the training statistics count as."""
ADAPTED_TO = {"brightness": 0.5, "contrast": 0.25, "noise": 0.3, "blur": 1.0}
"""The changes of test images that the statistics are adapted to, each at one level."""

_NEITHER = "not clearly different"


def settings(scale: Scale) -> list[Setting]:
    """Returns runs at several scales of the input."""
    seeds = {"smoke": 1, "digits": 5, "cifar10": 3, "full": 5}[scale]
    gains = (0.1, 0.3, 1.0, 3.0, 10.0)
    gains = {"smoke": (1.0,), "cifar10": gains[::2]}.get(scale, gains)
    runs = []
    rates = (0.1,) if scale == "smoke" else RATES
    for norm, gain, rate, seed in product(("batch", "none"), gains, rates, range(seeds)):
        config = change(base(scale, "robust"), norm={"method": norm}, seed=seed)
        config = change(config, data={"gain": gain}, optimizer={"learning_rate": rate})
        runs.append(Setting({"norm": norm, "gain": gain, "rate": rate, "seed": seed}, config))
    return runs


def measure(setting: Setting, dataset: Dataset) -> dict[str, Any]:
    """Returns the accuracies on plain and on perturbed images, and with adapted statistics."""
    training = Training(setting.config, dataset)
    training.advance(training.total_steps)
    images, labels = dataset.test_images[:TEST_IMAGES], dataset.test_labels[:TEST_IMAGES]
    result: dict[str, Any] = {"accuracy": accuracy(training.call(logits, images), labels)}
    if setting.labels["gain"] != 1:
        return result
    result["perturbed"] = {
        name: [
            [level, accuracy(training.call(logits, perturb(images, name, level)), labels)]
            for level in levels
        ]
        for name, (_, levels, _, _) in PERTURBATIONS.items()
    }
    if setting.labels["norm"] == "batch":
        result["adapted"] = [
            [name, size, weight, _adapted_accuracy(training, name, size, weight)]
            for name, size, weight in product(ADAPTED_TO, SIZES, WEIGHTS)
        ]
    return result


def _adapted_accuracy(training: Training, name: str, size: int, weight: int) -> float:
    """Returns the accuracy on batches of `size` perturbed images, with adapted statistics."""
    labels = training.dataset.test_labels[:TEST_IMAGES]
    images = perturb(training.dataset.test_images[:TEST_IMAGES], name, ADAPTED_TO[name])
    # All images come in a random order. Some come again to fill the last batch.
    order = np.random.default_rng(0).permutation(len(labels))
    order = np.resize(order, -(-len(labels) // size) * size)
    batches = images[order].reshape(-1, size, *images.shape[1:])
    scores = training.call(_adapted_logits, batches, np.float32(weight))
    return accuracy(scores.reshape(len(order), -1), labels[order])


def _adapted_logits(
    learner: Learner, state: TrainState, data: Images, batches: jax.Array, weight: jax.Array
) -> jax.Array:
    """Returns the logits of batches `[batches, size, ...]`, normalized by adapted statistics."""
    with replaced_method(lambda method: _Blended(method, weight=weight)):
        return jax.vmap(lambda images: logits_by_batch(learner, state, data, images))(batches)


class _Blended(Wrapped):
    """Normalizes by a weighted mean of the running statistics and the statistics of the batch."""

    weight: Any

    def train_vectors(self, state, batch):
        share = self.weight / (self.weight + batch.examples)
        mean = share * state.mean + (1 - share) * batch.mean
        var = share * state.var + (1 - share) * batch.var
        return self.infer_vectors(state._replace(mean=mean, var=var)), state


def plot(records: Records, caption: str) -> Figure:
    """Draws the accuracy by scale of training inputs, by perturbation, and with adaptation."""
    records = _chosen(records)
    figure, axes = figures.new(4, STUDY.question, caption, rows=2, width=3.3, height=3.3)
    *axes, legend = axes
    for norm in records.labels("norm"):
        label, color = figures.METHODS[norm]
        arm = records.where(norm=norm)
        gains = arm.labels("gain")
        values = np.transpose([arm.where(gain=gain).values("accuracy") for gain in gains])
        figures.band(axes[0], gains, values, label, color)
        for axis, name in zip(axes[1:], PERTURBATIONS, strict=False):
            levels, values = _perturbed(arm, name)
            figures.band(axis, levels, values, label, color)
    axes[0].set(xscale="log", title="trained on another scale")
    axes[0].set_xlabel("standard deviation of the inputs")
    axes[0].set_xticks(records.labels("gain"), [f"{gain:g}" for gain in records.labels("gain")])
    axes[0].minorticks_off()
    for axis in axes[::4]:
        axis.set_ylabel("test accuracy")
    for axis, (name, (_, levels, _, meaning)) in zip(axes[1:], PERTURBATIONS.items(), strict=False):
        article = "" if name in ("noise", "blur") else "another "
        axis.set(title=f"tested with {article}{name}", xlabel=meaning)
        if name in ("scale", "contrast"):
            axis.set_xscale("log")
            axis.set_xticks(levels, [f"{level:g}" for level in levels])
            axis.minorticks_off()
    last = axes[-1]
    sizes, adapted = _adapted(records.where(norm="batch"))
    for (weight, values), color in zip(adapted.items(), ("tab:green", "tab:purple"), strict=False):
        figures.band(
            last, sizes, values, f"adapted, training statistics\ncount as {weight} images", color
        )
    for norm, label in (("batch", "batch norm, not adapted"), ("none", "no norm")):
        values = _unadapted(records.where(norm=norm))
        last.axhline(values.mean(), color=figures.METHODS[norm][1], linestyle="--", label=label)
    figures.powers_of_two(last, sizes)
    last.set(title="adapted (mean of four changes)", xlabel="images in a test batch")
    legend.axis("off")
    legend.legend(*_all_labels(axes[0], last), loc="center", frameon=False)
    for axis in axes:
        axis.set_ylim(0, 1.02)
        percent(axis)
    return figure


def _all_labels(*axes):
    pairs = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    return zip(*pairs, strict=True)


def answer(records: Records) -> str:
    """Compares the networks at every scale and perturbation, with and without adaptation."""
    records = _chosen(records)
    batch, none = (records.where(norm=norm) for norm in ("batch", "none"))
    return "\n\n".join(
        [*_scales(batch, none), *_perturbations(batch, none), *_adaptation(batch, none)]
    )


def _scales(batch: Records, none: Records) -> list[str]:
    """Compares the networks that were trained at other scales."""
    gains = [gain for gain in batch.labels("gain") if gain != 1]
    if not gains:
        return []
    pairs = [[arm.where(gain=g).values("accuracy") for arm in (batch, none)] for g in gains]
    words = [_compared(*pair) for pair in pairs]
    rows = [
        [f"{gain:g}", *(f"{spread(values):.1%}" for values in pair), word]
        for gain, pair, word in zip(gains, pairs, words, strict=True)
    ]
    spans = batch.values("accuracy")
    plain = [f"{spread(arm.where(gain=1.0).values('accuracy')):.1%}" for arm in (batch, none)]
    return [
        table(["scale in training", "batch norm", "no norm", "batch norm is"], rows),
        (
            f"**Batch norm is better if the inputs have another scale: {_at_all(words)}.** It is"
            f" clearly better at {words.count('better')} of {len(words)} scales. At scale 1, the"
            f" test accuracy is {plain[0]} with batch norm, and {plain[1]} without a norm. With"
            " batch norm, the accuracies at all scales and seeds lie between"
            f" {spans.min():.1%} and {spans.max():.1%}."
        ),
    ]


def _perturbations(batch: Records, none: Records) -> list[str]:
    """Compares the networks on changed test images."""
    rows, words = [], []
    for name, (_, _, neutral, _) in PERTURBATIONS.items():
        (levels, more), (_, less) = (_perturbed(arm, name) for arm in (batch, none))
        for at, level in enumerate(levels):
            if level != neutral:
                words.append(_compared(more[:, at], less[:, at]))
                cells = f"{spread(more[:, at]):.1%}", f"{spread(less[:, at]):.1%}"
                rows.append([name, f"{level:g}", *cells, words[-1]])
    return [
        table(["change of test images", "level", "batch norm", "no norm", "batch norm is"], rows),
        (
            f"**Batch norm is better on changed test images: {_at_all(words)}.** There are"
            f" {len(PERTURBATIONS)} kinds of change, with {len(rows)} levels in all. Batch norm is"
            f" clearly better at {words.count('better')} levels, and clearly worse at"
            f" {words.count('worse')}. The running statistics come from the training images, and"
            " do not fit the changed images."
        ),
    ]


def _compared(batch: np.ndarray, none: np.ndarray) -> str:
    if difference(batch, none, _RELEVANT).verdict == "held":
        return "better"
    return "worse" if difference(none, batch, _RELEVANT).verdict == "held" else _NEITHER


def _at_all(words: list[str]) -> Verdict:
    if "worse" in words:
        return "did not hold"
    return "unclear" if _NEITHER in words else "held"


def _adaptation(batch: Records, none: Records) -> list[str]:
    """Compares adapted statistics with those of the training images."""
    sizes, adapted = _adapted(batch)
    plain, bare = _unadapted(batch), _unadapted(none)
    rows, sentences = [], []
    for weight, values in adapted.items():
        rows.append([f"{weight}", *(f"{spread(values[:, at]):.1%}" for at in range(len(sizes)))])
        gains = [difference(values[:, at], plain, _RELEVANT) for at in range(len(sizes))]
        held = [size for size, gain in zip(sizes, gains, strict=True) if gain.verdict == "held"]
        sentences.append(
            f"With N = {weight}, adapted statistics are clearly better {_where(held, sizes)}."
        )
    return [
        table(["N", *(f"test batches of {size}" for size in sizes)], rows),
        (
            "**Adaptation of the statistics to the test images.** N is the number of images that"
            " the training statistics count as. The table shows the mean test accuracy over"
            f" {len(ADAPTED_TO)} changes ({', '.join(ADAPTED_TO)}), each at one"
            f" level. Without adaptation it is {spread(plain):.1%} with batch norm, and"
            f" {spread(bare):.1%} without a norm. {' '.join(sentences)}"
        ),
    ]


def _where(held: list[int], sizes: list[int]) -> str:
    """Returns in words at which sizes a claim held: "from 4 images on" if at all from there."""
    if not held:
        return "at no size"
    if held == sizes[-len(held) :]:
        return f"from {held[0]} images on" if len(held) > 1 else f"only with {held[0]} images"
    return f"only with {listed(map(str, held))} images"


def _chosen(records: Records) -> Records:
    """Returns the runs of each network and scale at the rate with the best test accuracy."""
    pairs = product(records.labels("norm"), records.labels("gain"))
    return Records(
        run
        for norm, gain in pairs
        for run in records.where(norm=norm, gain=gain).best("rate", "accuracy")
    )


def _perturbed(arm: Records, name: str) -> tuple[list[float], np.ndarray]:
    """Returns the levels, and accuracies `[runs, levels]`."""
    pairs = np.array([r.result["perturbed"][name] for r in arm.where(gain=1.0)])
    return pairs[0, :, 0].tolist(), pairs[:, :, 1]


def _unadapted(arm: Records) -> np.ndarray:
    """Returns the accuracy of each run without adaptation, as a mean over `ADAPTED_TO`."""
    rows = []
    for name, level in ADAPTED_TO.items():
        levels, values = _perturbed(arm, name)
        rows.append(values[:, levels.index(level)])
    return np.mean(rows, 0)


def _adapted(batch: Records) -> tuple[list[int], dict[int, np.ndarray]]:
    """Returns the batch sizes, and accuracies `[runs, sizes]` by N, means over `ADAPTED_TO`."""
    runs = [r.result["adapted"] for r in batch.where(gain=1.0)]
    sizes = list(dict.fromkeys(size for _, size, _, _ in runs[0]))
    weights = dict.fromkeys(weight for *_, weight, _ in runs[0])

    def mean(run, size, weight):
        return np.mean([value for _, s, w, value in run if (s, w) == (size, weight)])

    return sizes, {
        weight: np.array([[mean(run, size, weight) for size in sizes] for run in runs])
        for weight in weights
    }


def method(records: Records) -> str:
    """Describes how the claim was measured."""
    run = records[0]
    return (
        f"The network has {convolutions(records)}. We train it for {run.value('epochs'):g} epochs"
        f" with batches of {run.value('batch_size')}. {best_rate(records, 'each norm and scale')}"
        " Test images are changed first, and then normalized by the mean and the standard deviation"
        " of the training images. They are not clipped. Adapted statistics are a weighted mean: the"
        " training statistics count as N images, and the statistics of a test batch count as its"
        " number of images. They are adapted in one layer after another, from the input on"
        f" (Schneider et al. 2020). {ON_TEST_IMAGES}"
    )


STUDY = Study(
    name="robust",
    question="Does batch norm make a network robust to changed inputs?",
    claim=(
        "With batch norm, the scale and the shift of the inputs do not matter in training, and a"
        " network is robust to changes of its inputs. Statistics that are adapted to the test"
        " images undo such changes."
    ),
    threshold=(
        f"{threshold(_RELEVANT, 'test accuracy')} Batch norm is clearly better or worse if this"
        " claim held. A claim about several scales or levels held if batch norm"
        " is clearly better at all of them. It did not hold if batch norm is clearly worse at one"
        " of them."
    ),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
