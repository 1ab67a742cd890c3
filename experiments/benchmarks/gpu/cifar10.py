"""Measures the preset `cifar10` with many seeds: accuracy, and seconds by airbench94's clock.

That clock covers whitening, training and the views of test images. It leaves out loading,
compilation and evaluations in between. Here one program does everything that the clock covers.
"""

import dataclasses
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.gpu.piece import Key, Piece, Row, Settings
from experiments.benchmarks.gpu.tables import markdown, spread
from experiments.benchmarks.stopwatch import clock
from experiments.config import Config
from experiments.configs import PRESETS
from experiments.data import CIFAR10_CLASSES, Dataset, load
from experiments.evaluation import evaluate
from experiments.learner import Learner, init, train
from experiments.models import Airbench
from experiments.placement import place

SEEDS = 20


def processes(small: bool) -> list[list[Key]]:
    """Returns the keys, which are seeds. All share one process, which compiles once."""
    return [[{"seed": seed} for seed in range(2 if small else SEEDS)]]


def measure(keys: list[Key], settings: Settings) -> Iterator[Row]:
    """Yields accuracy and seconds of each seed.

    Raises:
      DataError: the data is missing or damaged.
    """
    config, dataset = config_and_images(settings)
    images = place(dataset)
    learner = Learner(config, len(dataset.classes), len(dataset.train_labels))
    run = jax.jit(whole_run(learner)).lower(images, np.int32(0)).compile()
    jax.block_until_ready(run(images, np.int32(SEEDS)))  # This warms up.
    for key in keys:
        found: dict[str, Any] = {}
        seconds = clock(
            lambda key=key, found=found: found.update(
                jax.block_until_ready(run(images, np.int32(key["seed"])))
            )
        )
        values = {name: round(float(value), 6) for name, value in found.items()}
        yield (
            key
            | {"data": dataset.variant, "epochs": config.epochs}
            | values
            | {"seconds": round(seconds, 4)}
        )


def config_and_images(settings: Settings) -> tuple[Config, Dataset]:
    """Returns the preset and CIFAR-10.

    The small version is a few steps of a narrow network on images of noise.
    """
    config = PRESETS["cifar10"]
    if not settings.small:
        return config, load(config.data, settings.data_dir, settings.data_variant)
    narrow = Airbench(widths=(8, 8, 8))
    config = dataclasses.replace(
        config, model=narrow, epochs=1.0, batch_size=32, eval_batch_size=32, precision="float32"
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 64).astype(np.int32)
    noise = images[:32], labels[:32], images[32:], labels[32:]
    return config, Dataset(*noise, classes=CIFAR10_CLASSES, variant="noise")


def whole_run(learner: Learner) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """Returns `run(images, seed)`, which trains from the first step to the last and evaluates."""

    def run(images, seed):
        state = init(learner, images, seed)
        state, metrics = train(learner, state, images, learner.total_steps)
        tested = evaluate(learner, state, images)
        shown = {name: tested[name] for name in ("accuracy", "accuracy_plain", "loss")}
        return shown | {"training_loss": metrics["loss"][-1]}

    return run


def table(rows: list[Row]) -> str:
    """Returns a Markdown table of the mean and the standard deviation over the seeds."""
    lines = [
        [
            f"`cifar10`, {rows[0]['data']}",
            str(len(rows)),
            spread([row["accuracy"] for row in rows]),
            spread([row["accuracy_plain"] for row in rows]),
            f"{median(row['seconds'] for row in rows):.2f}",
        ]
    ]
    head = ["run", "seeds", "test accuracy", "without test-time augmentation", "seconds"]
    return markdown(head, lines)


PIECE = Piece(processes, measure, table)
