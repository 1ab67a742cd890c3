"""Measures inference on one image: its latency, folded or not, and the effect of other images."""

import time
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jbn.linen
from experiments.config import Config
from experiments.data import Dataset
from experiments.learner import Learner
from experiments.studies.tools import figures
from experiments.studies.tools.base import base, change, convolutions
from experiments.studies.tools.definition import Scale, Study
from experiments.studies.tools.phrases import interval
from experiments.studies.tools.records import Records, Setting
from experiments.studies.tools.training import Training, logits, logits_by_batch
from experiments.studies.tools.verdicts import Verdict, difference
from experiments.tables import spread, table

NETS = {"small": "four convolutions, 8x8 images", "resnet20": "ResNet-20, 32x32 images"}
VARIANTS = {
    "none": ("no norm", "tab:orange"),
    "batch": ("batch norm", "tab:blue"),
    "folded": ("batch norm, folded", "tab:green"),
}
_IMAGES, _BATCHES, _SIZE = 12, 20, 8
_ROUNDING = 1e-5
"""Changes of a logit that are smaller, relative to the largest logit, are rounding."""
_RELEVANT = 0.02
"""Threshold for a time, as a share of the time with batch norm."""


def settings(scale: Scale) -> list[Setting]:
    """Returns networks to train, which classify images among others, and networks to time."""
    seeds = 1 if scale == "smoke" else 5
    config = change(base(scale, "real_time"), optimizer={"learning_rate": 0.1})
    runs = [
        Setting({"measure": "mates", "seed": seed}, change(config, seed=seed))
        for seed in range(seeds)
    ]
    nets = ("small",) if scale == "smoke" else NETS
    calls = {"smoke": 10, "digits": 300, "cifar10": 300, "full": 1000}[scale]
    for net, seed in product(nets, range(seeds)):
        labels = {"measure": "latency", "net": net, "calls": calls, "seed": seed}
        runs.append(Setting(labels, change(config, model={"name": net}, seed=seed)))
    return runs


def measure(setting: Setting, dataset: Dataset) -> dict[str, Any]:
    """Returns the effects of other images and of folding, or latencies in microseconds."""
    if setting.labels["measure"] == "mates":
        return _mates(setting.config, dataset)
    size = 8 if setting.labels["net"] == "small" else 32
    channels = 1 if setting.labels["net"] == "small" else 3
    x = jax.random.normal(jax.random.key(0), (1, size, size, channels))
    programs = {variant: _program(setting.config, variant, x) for variant in VARIANTS}
    for program in programs.values():
        jax.block_until_ready(program(x))
    seconds = {variant: [] for variant in VARIANTS}
    # They take turns, so that other work on the machine affects all of them.
    for _ in range(setting.labels["calls"]):
        for variant, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(x))
            seconds[variant].append(time.perf_counter() - start)
    return {variant: float(1e6 * np.median(times)) for variant, times in seconds.items()}


def _program(config: Config, variant: str, x: jax.Array) -> Any:
    """Returns the compiled inference of one image, `program(x)`."""
    config = change(config, norm={"method": "none" if variant == "none" else "batch"})
    model = Learner(config, num_classes=10, num_images=1).model
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(config.seed), x, False)
    apply = model.apply
    if variant == "folded":
        folded = jbn.linen.fold(model, variables, x, train=False)
        apply, variables = folded.apply, folded.variables
    # Variables are arguments. With constants, XLA would compute the norm's gain in advance.
    compiled = jax.jit(lambda variables, x: apply(variables, x, train=False)).lower(variables, x)
    return partial(compiled.compile(), variables)


def _mates(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Trains, and then classifies images alone and in batches with random others."""
    training = Training(config, dataset)
    training.advance(training.total_steps)
    random = np.random.default_rng(config.seed)
    images, labels = dataset.test_images[:_IMAGES], dataset.test_labels[:_IMAGES]
    others = dataset.test_images[_IMAGES:]
    batches = [
        np.concatenate([image[None], others[random.integers(len(others), size=_SIZE - 1)]])
        for image, _ in product(images, range(_BATCHES))
    ]

    def shares(function):
        scores = [training.call(function, batch)[0] for batch in batches]
        scores = np.reshape(scores, (_IMAGES, _BATCHES, -1))
        return scores, np.asarray(jax.nn.softmax(scores))

    alone = np.concatenate([training.call(logits, image[None]) for image in images])
    scores, running = shares(logits)
    _, own = shares(logits_by_batch)
    chosen = np.arange(_IMAGES), slice(None), labels
    return {
        "changed": float(np.abs(scores - alone[:, None]).max() / np.abs(alone).max()),
        "running": np.round(running[chosen[0], :, labels], 6).tolist(),
        "own": np.round(own[chosen[0], :, labels], 6).tolist(),
        "flipped": float(_flipped(running)),
        "flipped_own": float(_flipped(own)),
        "folding": _folding_error(training, images),
    }


def _flipped(probabilities: np.ndarray) -> np.ndarray:
    """Returns the share of images whose predicted class depends on the other images."""
    classes = probabilities.argmax(-1)
    return np.mean((classes != classes[:, :1]).any(1))


def _folding_error(training: Training, images: np.ndarray) -> float:
    """Returns the largest change of a logit by folding, relative to the largest logit."""
    model = Learner(training.config, len(training.dataset.classes), num_images=1).model
    x = jnp.asarray(training.call(_normalized, images))
    variables = {"params": training.state.params, "batch_stats": training.state.batch_stats}
    folded = jbn.linen.fold(model, variables, x, train=False)
    plain = jnp.asarray(model.apply(variables, x, train=False))
    other = jnp.asarray(folded.apply(folded.variables, x, train=False))
    return float(jnp.abs(plain - other).max() / jnp.abs(plain).max())


def _normalized(learner, state, data, images):
    return learner.normalize(data, images)


def plot(records: Records, caption: str) -> Figure:
    """Draws the latencies, and the probabilities of the true class among other images."""
    mates, timed = records.where(measure="mates"), records.where(measure="latency")
    nets = timed.labels("net")
    figure, axes = figures.new(1 + len(nets), STUDY.question, caption, width=4.4)
    for axis, net in zip(axes, nets, strict=False):
        for x, (variant, (_, color)) in enumerate(VARIANTS.items()):
            figures.points(axis, x, timed.where(net=net).values(variant), color)
        axis.set_xticks(range(len(VARIANTS)), [label for label, _ in VARIANTS.values()])
        axis.set(title=NETS[net], ylabel="time for one image (microseconds)")
        axis.set_ylim(bottom=0)
    right, first = axes[-1], mates[0].result
    for name, label, color, apart in (
        ("own", "by the batch's statistics", "tab:gray", -0.15),
        ("running", "by running statistics", "tab:blue", 0.15),
    ):
        for image, values in enumerate(first[name]):
            x = np.full(len(values), image + apart)
            right.plot(x, values, ".", color=color, alpha=0.5, label=label if image == 0 else "")
    right.set(title=f"the same image among {_SIZE - 1} others", ylim=(-0.03, 1.03))
    right.set(xlabel=f"image ({_BATCHES} batches for each, first seed)")
    right.set_ylabel("probability given to the true class")
    right.legend(fontsize=8, loc="lower left")
    return figure


def answer(records: Records) -> str:
    """Reports the effects of other images and of folding, and the latencies."""
    mates, timed = records.where(measure="mates"), records.where(measure="latency")
    changed, folding = (mates.values(name).max() for name in ("changed", "folding"))
    flipped = mates.values("flipped_own")
    paragraphs = [
        (
            "**With running statistics, an output depends on its own image alone:"
            f" {_within_rounding(changed, mates.values('flipped').max() == 0)}.** The largest"
            f" change of a logit is {changed:.1g} of the largest logit. With the batch's own"
            f" statistics, the predicted class of {spread(flipped):.0%} of the images depends on"
            f" the {_SIZE - 1} other images of the batch."
        ),
        (
            f"**Outputs are the same with folding: {_within_rounding(folding)}.** The largest"
            f" change of a logit is {folding:.1g} of the largest logit."
        ),
    ]
    rows = []
    for net in timed.labels("net"):
        arm = timed.where(net=net)
        plain, folded, none = (arm.values(name) for name in ("batch", "folded", "none"))
        # Differences are taken in pairs, because the variants were timed in turns.
        saved = difference(plain - folded, np.zeros(len(plain)), relevant=_RELEVANT * plain.mean())
        paragraphs.append(
            f"**Folding saves time for one image ({NETS[net]}): {saved.verdict}.** It saves"
            f" {saved.mean:.0f} microseconds ({interval(saved.low, saved.high, '.0f')}, from pairs"
            " of the same repetition). Folded inference takes"
            f" {folded.mean() / plain.mean():.0%} of the time with batch norm, and"
            f" {folded.mean() / none.mean():.0%} of the time without a norm."
        )
        rows.append([NETS[net], *(f"{spread(arm.values(v)):.0f}" for v in VARIANTS)])
    head = ["microseconds for one image", *(label for label, _ in VARIANTS.values())]
    return "\n\n".join([table(head, rows), *paragraphs])


def _within_rounding(change: float, same_classes: bool = True) -> Verdict:
    return "held" if change < _ROUNDING and same_classes else "did not hold"


def method(records: Records) -> str:
    """Describes how the claim was measured."""
    calls = records.where(measure="latency")[0].labels["calls"]
    return (
        f"We train a network with {convolutions(records)} for {records[0].value('epochs'):g}"
        f" epochs. Then we classify {_IMAGES} test images, each in {_BATCHES} batches with"
        f" {_SIZE - 1} random other images. For the latency we take networks with their initial"
        f" weights, and the median of {calls} calls of the compiled inference. Its weights are"
        " arguments, and the variants take turns. There, seeds are repetitions."
    )


STUDY = Study(
    name="real_time",
    question="How fast is inference on one image, and do other images matter?",
    claim=(
        "For inference on one example, batch norm costs time, and results depend on the batch. With"
        " running statistics, results do not depend on the batch. If batch norm is folded into the"
        " convolutions, it costs nothing."
    ),
    threshold=(
        f"For times, the threshold is {_RELEVANT:.0%} of the time with batch norm. Claims about"
        " outputs have another rule: they held if every logit changes by less than"
        f" {_ROUNDING:g} of the largest logit. With other images, all predicted classes must be the"
        " same, too. Otherwise they did not hold."
    ),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
