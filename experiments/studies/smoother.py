"""Measures the loss and its gradient along a step, in training with and without batch norm."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.data import Dataset
from experiments.learner import Learner, TrainState, loss
from experiments.placement import Images
from experiments.studies.tools import figures
from experiments.studies.tools.base import base, change, convolutions
from experiments.studies.tools.definition import Scale, Study
from experiments.studies.tools.phrases import interval
from experiments.studies.tools.records import Records, Setting
from experiments.studies.tools.training import Training
from experiments.studies.tools.verdicts import difference
from experiments.tables import spread, table

REACH = (0.5, 1.0, 2.0, 3.0, 4.0)
"""Step sizes in multiples of the learning rate, the range of Santurkar et al. 2018."""
_RELEVANT = 1.1
"""Threshold for a ratio of geometric means."""
MEASURES = {
    "range": "range of the loss along the step",
    "change": "largest change of the gradient (norm of the difference)",
    "turn": "largest change of the gradient, relative to its norm",
}


def settings(scale: Scale) -> list[Setting]:
    """Returns a run for each norm and seed."""
    seeds = {"smoke": 1, "digits": 5, "cifar10": 5, "full": 3}[scale]
    config = base(scale, "smoother")
    config = change(config, optimizer={"learning_rate": 0.02, "schedule": ((0.0, 1.0), (1.0, 1.0))})
    return [
        Setting({"norm": norm, "seed": seed}, change(config, norm={"method": norm}, seed=seed))
        for norm, seed in product(("batch", "none"), range(seeds))
    ]


def measure(setting: Setting, dataset: Dataset) -> dict[str, Any]:
    """Returns the step, the loss and the measures at about twenty points of the training."""
    training = Training(setting.config, dataset)
    every = max(1, training.total_steps // 20)
    random = np.random.default_rng(setting.config.seed)
    probes = []
    for step in range(0, training.total_steps, every):
        index = random.choice(len(dataset.train_labels), setting.config.batch_size, replace=False)
        batch = dataset.train_images[index], dataset.train_labels[index]
        sizes = [np.float32(setting.config.optimizer.learning_rate * reach) for reach in REACH]
        ahead = [training.call(_look_ahead, *batch, size) for size in sizes]
        losses, changes, norm = (
            np.array([a[k] for a in ahead]) for k in ("loss", "change", "norm")
        )
        probes.append(
            {
                "step": step,
                "loss": float(ahead[0]["here"]),
                "range": float(losses.max() - losses.min()),
                "change": float(changes.max()),
                "turn": float((changes / norm).max()),
            }
        )
        training.advance(every)
    return {name: [probe[name] for probe in probes] for name in probes[0]}


def plot(records: Records, caption: str) -> Figure:
    """Draws two of the measures against the training step, and the third against the loss."""
    figure, axes = figures.new(3, STUDY.question, caption, width=4.2)
    for norm in records.labels("norm"):
        arm = records.where(norm=norm)
        label, color = figures.METHODS[norm]
        steps = arm.values("step")[0]
        for axis, name in zip(axes, ("range", "change"), strict=False):
            figures.band(axis, steps, arm.values(name), label, color, log=True)
        axes[2].plot(
            arm.values("loss").ravel(), arm.values("turn").ravel(), ".", color=color, label=label
        )
    axes[0].set(title="loss along the step", ylabel="largest - smallest loss (nats)")
    axes[1].set(title="gradient along the step", ylabel="largest |change of gradient|")
    axes[2].set(title="the same, at equal loss", ylabel="largest |change| / |gradient|")
    axes[2].set(xlabel="training loss at that point (nats)", xscale="log")
    for axis in axes[:2]:
        axis.set(xlabel="training step")
    for axis in axes:
        axis.set(yscale="log")
        axis.legend()
    return figure


def answer(records: Records) -> str:
    """Compares means of the logarithms over each half of the training, and at equal losses."""
    seeds = {norm: records.where(norm=norm) for norm in ("none", "batch")}
    paragraphs, rows = [], []
    middle = len(records[0].result["step"]) // 2
    halves = {"first": slice(middle), "second": slice(middle, None)}
    for (name, label), (half, points) in product(MEASURES.items(), halves.items()):
        logs = {norm: np.log(arm.values(name)[:, points]).mean(1) for norm, arm in seeds.items()}
        smoother = difference(logs["none"], logs["batch"], relevant=np.log(_RELEVANT))
        low, mean, high = np.exp([smoother.low, smoother.mean, smoother.high])
        rows.append(
            [
                label,
                half,
                *(f"{spread(np.exp(values)):.3g}" for values in logs.values()),
                f"{mean:.2f} ({interval(low, high, '.2f')})",
                smoother.verdict,
            ]
        )
    head = ["geometric mean", "half of the training", "no norm", "batch norm", "ratio", "smoother?"]
    paragraphs.append(table(head, rows))
    losses = {norm: arm.values("loss") for norm, arm in seeds.items()}
    paragraphs.append(_at_equal_loss(seeds, losses))
    return "\n\n".join(paragraphs)


def _at_equal_loss(seeds, losses) -> str:
    # The range of losses that both networks passed through.
    low = max(np.quantile(values, 0.1) for values in losses.values())
    high = min(np.quantile(values, 0.9) for values in losses.values())
    turns = {}
    for norm, arm in seeds.items():
        inside = (losses[norm] >= low) & (losses[norm] <= high)
        turns[norm] = np.log(arm.values("turn")[inside])
    if low >= high or min(len(v) for v in turns.values()) < 3:
        return (
            "The losses of the two networks hardly overlap. So a comparison at equal losses is not"
            " possible."
        )
    ratio = np.exp(turns["none"].mean() - turns["batch"].mean())
    return (
        "Smaller losses and gradients also vary less. So we also compared the networks at losses"
        f" that both had, from {low:.3g} to {high:.3g}. There are {len(turns['none'])} such points"
        f" without a norm, and {len(turns['batch'])} with batch norm. At these points the"
        f" gradient's relative change is {ratio:.2f} times as large without a norm as with batch"
        " norm (ratio of geometric means)."
    )


def _look_ahead(
    learner: Learner,
    state: TrainState,
    data: Images,
    images: jax.Array,
    labels: jax.Array,
    size: jax.Array,
) -> dict[str, jax.Array]:
    """Returns the loss and the change of the gradient after a step of `size` against it."""

    def loss_and_grads(params):
        x = learner.normalize(data, images)
        grad = jax.value_and_grad(loss, argnums=1, has_aux=True)
        (value, _), grads = grad(learner, params, state.batch_stats, x, labels)
        return value, grads

    here, grads = loss_and_grads(state.params)
    moved = jax.tree.map(lambda p, g: p - size * g, state.params, grads)
    after, there = loss_and_grads(moved)
    change = optax.tree.norm(jax.tree.map(jnp.subtract, there, grads))
    return {"here": here, "loss": after, "change": change, "norm": optax.tree.norm(grads)}


def method(records: Records) -> str:
    """Describes how the claim was measured."""
    run = records[0]
    return (
        f"The network has {convolutions(records)}. We train it for {run.value('epochs'):g} epochs"
        f" with batches of {run.value('batch_size')}, learning rate"
        f" {run.value('optimizer.learning_rate'):g} and Nesterov momentum 0.9. At"
        f" {len(run.result['step'])} points of the training we take a batch, and try steps against"
        f" its gradient with {REACH[0]:g} to {REACH[-1]:g} times the learning rate. After each of"
        " these steps, which all start at the same point, we compute the loss and the gradient of"
        " the same batch again."
    )


STUDY = Study(
    name="smoother",
    question="Does batch norm make the loss smoother along the step?",
    claim=(
        "With batch norm, the loss and its gradient change less along the direction of a step. So"
        " larger steps are safe (Santurkar et al. 2018)."
    ),
    threshold=(
        f"The threshold is a factor of {_RELEVANT:g} between the geometric means without a norm and"
        " with batch norm. The test is made on logarithms."
    ),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
