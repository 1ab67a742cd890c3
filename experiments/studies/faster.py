"""Measures the steps to an accuracy at many learning rates, and gradients by depth."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.config import Config
from experiments.data import Dataset
from experiments.learner import Learner, TrainState, loss
from experiments.placement import Images
from experiments.studies.tools import figures
from experiments.studies.tools.base import base, change, convolutions
from experiments.studies.tools.definition import Scale, Study
from experiments.studies.tools.phrases import interval, listed
from experiments.studies.tools.records import Records, Setting
from experiments.studies.tools.training import Training, accuracy, logits
from experiments.studies.tools.verdicts import Verdict, difference
from experiments.tables import spread, table

ARMS = {
    ("relu", "batch"): ("ReLU, batch norm", "tab:blue"),
    ("relu", "none"): ("ReLU, no norm", "tab:orange"),
    ("sigmoid", "batch"): ("sigmoid, batch norm", "tab:cyan"),
    ("sigmoid", "none"): ("sigmoid, no norm", "tab:red"),
}
_STEADY = ((0.0, 1.0), (1.0, 1.0))
_RELEVANT = 0.1
"""Threshold for steps, as a share of the steps without a norm."""
_CHANCE = 0.05
"""Largest probability of a difference by chance, for counts of runs."""


def settings(scale: Scale) -> list[Setting]:
    """Returns runs at multiples of the base rate, and deeper networks to measure gradients."""
    seeds = 1 if scale == "smoke" else 5
    factors: tuple[float, ...] = (0.1, 0.5, 1, 2, 5, 30, 100)
    factors = {"smoke": (1.0, 30.0), "cifar10": factors[1:-1]}.get(scale, factors)
    target = {"smoke": 0.15, "digits": 0.95, "cifar10": 0.45, "full": 0.75}[scale]
    rate = 0.02
    runs = []
    for (activation, norm), factor, seed in product(ARMS, factors, range(seeds)):
        config = _arm(scale, activation, norm, seed)
        config = change(config, optimizer={"learning_rate": rate * factor, "schedule": _STEADY})
        labels = {"measure": "steps", "target": target, "factor": factor, "base_rate": rate}
        runs.append(_setting(labels, activation, norm, config))
    for (activation, norm), seed in product(ARMS, range(seeds)):
        depth = 4 if scale == "smoke" else 8
        config = change(_arm(scale, activation, norm, seed), model={"depth": depth})
        runs.append(_setting({"measure": "gradients"}, activation, norm, config))
    return runs


def measure(setting: Setting, dataset: Dataset) -> dict[str, Any]:
    """Returns the steps to the target and all accuracies, or the norms of the layers' gradients."""
    training = Training(setting.config, dataset)
    if setting.labels["measure"] == "gradients":
        size = setting.config.batch_size
        batch = dataset.train_images[:size], dataset.train_labels[:size]
        return {"norms": training.call(_gradient_norms, *batch).tolist()}
    every = max(1, training.total_steps // 60)
    accuracies, reached = [], None
    for step in range(every, training.total_steps + 1, every):
        training.advance(every)
        accuracies.append(accuracy(training.call(logits, dataset.test_images), dataset.test_labels))
        if reached is None and accuracies[-1] >= setting.labels["target"]:
            reached = step
    return {"steps": reached, "every": every, "accuracies": np.round(accuracies, 4).tolist()}


def plot(records: Records, caption: str) -> Figure:
    """Draws the steps against the learning rate, and the gradients against the depth."""
    runs, gradients = records.where(measure="steps"), records.where(measure="gradients")
    target = runs[0].labels["target"]
    figure, (left, right) = figures.new(2, STUDY.question, caption, width=5)
    most = max(len(r.result["accuracies"]) * r.result["every"] for r in runs)
    for number, ((activation, norm), (label, color)) in enumerate(ARMS.items()):
        arm = runs.where(activation=activation, norm=norm)
        means = []
        for factor in arm.labels("factor"):
            steps = arm.where(factor=factor).values("steps")
            x = factor * 1.06 ** (number - 1.5)
            reached = steps[np.isfinite(steps)]
            failed = len(steps) - len(reached)
            left.plot([x] * len(reached), reached, "o", color=color, alpha=0.5, markersize=4)
            if failed:
                left.plot(x, most * 1.25 * 1.12**number, "x", color=color)
            means.append(steps.mean())
        left.plot(arm.labels("factor"), means, color=color, label=label)
    left.axhline(most * 1.12, color="0.6", linewidth=0.8, linestyle=":")
    left.set_ylim(top=most * 2.4)
    left.text(
        *(0.5, 0.99, "x: some or all seeds do not reach it"),
        **{"transform": left.transAxes, "fontsize": 8, "color": "0.3", "va": "top", "ha": "center"},
    )
    left.set(xscale="log", yscale="log", ylabel=f"steps to {target:.0%} test accuracy")
    rate = runs[0].labels["base_rate"]
    left.set(xlabel=f"learning rate, in multiples of {rate:g}", title="lower is faster")
    ticks = runs.labels("factor")
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.minorticks_off()
    low = np.nanmin(runs.values("steps")) if np.isfinite(runs.values("steps")).any() else most / 8
    steps = [s for s in (10, 20, 50, 100, 200, 300, 500, 1000, 5000) if low * 0.7 <= s <= most]
    left.set_yticks(steps, [str(s) for s in steps])
    layers = len(gradients[0].result["norms"])
    for (activation, norm), (label, color) in ARMS.items():
        norms = gradients.where(activation=activation, norm=norm).values("norms")
        figures.band(right, 1 + np.arange(layers), norms, label, color, log=True)
    right.set(
        yscale="log", xlabel="layer, from the input", title=f"{layers} layers, before training"
    )
    right.set_ylabel("norm of the kernel's gradient")
    right.legend(fontsize=8)
    return figure


def answer(records: Records) -> str:
    """Compares the networks at each learning rate, and each at its best rate."""
    runs, gradients = records.where(measure="steps"), records.where(measure="gradients")
    arms = {key: runs.where(activation=key[0], norm=key[1]) for key in ARMS}
    rows = [
        [label, *(_cell(arms[key].where(factor=f)) for f in runs.labels("factor"))]
        for key, (label, _) in ARMS.items()
    ]
    head = ["steps to the target, by learning rate", *(f"{f:g}x" for f in runs.labels("factor"))]
    relu, bare = arms["relu", "batch"], arms["relu", "none"]
    sigmoid, bare_sigmoid = arms["sigmoid", "batch"], arms["sigmoid", "none"]
    high = [f for f in (5, 30) if f in runs.labels("factor")]
    with_high, bare_high = (
        Records(r for r in arm if r.labels["factor"] in high) for arm in (relu, bare)
    )
    layers = len(gradients[0].result["norms"])
    norms = {
        label: gradients.where(activation=key[0], norm=key[1]).values("norms")
        for key, (label, _) in ARMS.items()
    }
    ratios = [f"{spread(n[:, 0] / n[:, -1]):.2g} ({label})" for label, n in norms.items()]
    return "\n\n".join(
        [
            table(head, rows),
            _at_best(relu, bare),
            (
                "**Batch norm allows high learning rates:"
                f" {_more_reach(with_high, bare_high)}.** At {listed(f'{f}' for f in high)} times"
                f" the base rate, {_reached(with_high)} runs with batch norm reached the target,"
                f" and {_reached(bare_high)} runs without a norm."
            ),
            (
                f"**Sigmoid units learn with batch norm: {_more_reach(sigmoid, bare_sigmoid)}.** At"
                " all learning rates together,"
                f" {_reached(sigmoid)} runs with batch norm reached the target, and"
                f" {_reached(bare_sigmoid)} runs without a norm."
            ),
            (
                f"We also compared gradients before training, in networks with {layers} layers. The"
                " norm of the first layer's gradient, divided by that of the last layer's, is"
                f" {listed(ratios)}."
            ),
        ]
    )


def method(records: Records) -> str:
    """Describes how the claim was measured."""
    run = records.where(measure="steps")[0]
    every, looks = run.result["every"], len(run.result["accuracies"])
    return (
        f"The network has {convolutions(records)}. We train it by SGD with Nesterov momentum 0.9,"
        f" with batches of {run.value('batch_size')} for at most {every * looks} steps. The"
        f" learning rate is constant. It is a multiple of {run.labels['base_rate']:g}, the base"
        " rate: 5x means 5 times the base rate. We measure the test accuracy every"
        f" {every} steps. Kernels are initialized as in He et al. 2015."
    )


def _arm(scale: Scale, activation: str, norm: str, seed: int) -> Config:
    config = base(scale, "faster")
    config = change(config, model={"activation": activation}, norm={"method": norm}, seed=seed)
    epochs = {"digits": 300 / 22, "cifar10": 600 / 78}.get(scale, config.epochs)
    return change(config, epochs=epochs)


def _setting(labels: dict[str, Any], activation: str, norm: str, config: Config) -> Setting:
    arm = {"activation": activation, "norm": norm, "seed": config.seed}
    return Setting({**labels, **arm}, config)


def _gradient_norms(
    learner: Learner, state: TrainState, data: Images, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Returns the norm of the gradient for each convolution's kernel, in order from the input."""
    x = learner.normalize(data, images)
    gradient = jax.grad(loss, argnums=1, has_aux=True)
    grads, _ = gradient(learner, state.params, state.batch_stats, x, labels)
    names = sorted((n for n in grads if n.startswith("ConvNorm")), key=lambda n: int(n[9:]))
    return jnp.stack([jnp.linalg.norm(grads[n]["Conv_0"]["kernel"]) for n in names])


def _reached(arm: Records) -> str:
    """Returns in words how many runs reached the target."""
    return f"{np.isfinite(arm.values('steps')).sum()} of {len(arm)}"


def _cell(arm: Records) -> str:
    steps = arm.values("steps")
    return f"{spread(steps):.0f}" if np.isfinite(steps).all() else f"{_reached(arm)} reached"


def _more_reach(more: Records, fewer: Records) -> Verdict:
    """Returns the verdict that more runs of one arm reach the target, by Fisher's exact test."""
    a, b = (np.isfinite(arm.values("steps")).mean() for arm in (more, fewer))
    if a == b:
        return "did not hold" if len(more) > 2 else "unclear"
    counts = [[np.isfinite(arm.values("steps")).sum() for arm in (more, fewer)]]
    counts.append([len(arm) - hits for arm, hits in zip((more, fewer), counts[0], strict=True)])
    probability: Any = stats.fisher_exact(counts)[1]
    sure = probability < _CHANCE
    return "unclear" if not sure else "held" if a > b else "did not hold"


def _at_best(with_norm: Records, without: Records) -> str:
    """Compares the arms, each at the fastest of the rates at which all seeds reach the target."""

    def best(arm):
        choices = [arm.where(factor=f) for f in arm.labels("factor")]
        choices = [c for c in choices if np.isfinite(c.values("steps")).all()]
        return min(choices, key=lambda c: c.values("steps").mean(), default=Records())

    chosen = best(with_norm), best(without)
    if not all(chosen):
        return (
            "**Batch norm needs fewer steps: unclear.** To compare the steps, each network needs a"
            " learning rate at which all seeds reach the target."
        )
    a, b = (c.values("steps") for c in chosen)
    rates = [c[0].labels["factor"] for c in chosen]
    fewer = difference(b, a, relevant=_RELEVANT * b.mean())
    target = chosen[0][0].labels["target"]
    return (
        f"**Batch norm needs fewer steps: {fewer.verdict}.** The target is {target:.0%} test"
        f" accuracy. At the best learning rates, the network with ReLU and batch norm needs"
        f" {spread(a):.0f} steps (at {rates[0]:g}x). The network with ReLU and without a norm needs"
        f" {spread(b):.0f} steps (at {rates[1]:g}x). Batch norm saves {fewer.mean:.0f} steps"
        f" ({interval(fewer.low, fewer.high, '.0f')}), which is a factor of"
        f" {b.mean() / a.mean():.2f}. The best rates are chosen by the means of the same runs."
    )


STUDY = Study(
    name="faster",
    question="Does batch norm allow fewer steps and higher learning rates?",
    claim=(
        "With batch norm, a network needs fewer steps, learns at high rates at which other networks"
        " fail, and learns even with sigmoid units (Ioffe & Szegedy 2015)."
    ),
    threshold=(
        f"For steps, the threshold is {_RELEVANT:.0%} of the steps without a norm. Counts of runs"
        " have another rule: the claim held if more runs with batch norm reach the target, and"
        f" Fisher's exact test gives less than {_CHANCE:.0%}. It did not hold if the shares of both"
        " are equal, or if the test shows that fewer runs with batch norm reach it."
    ),
    method=method,
    settings=settings,
    measure=measure,
    plot=plot,
    answer=answer,
)
