"""Evaluates a trained network: python -m experiments.evaluate RUN [--data ...]."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from experiments.data import Dataset, all_for_tests, load
from experiments.evaluation import evaluate
from experiments.placement import place
from experiments.run.arithmetic import with_dtypes_of_run
from experiments.run.command_line import cli
from experiments.run.errors import RunError, exit_code
from experiments.run.folder import RunFolder
from experiments.run.stored import stored_run
from experiments.run.trained import Trained


@dataclass(frozen=True)
class Arguments:
    """Evaluates a trained network on the test images of its data, or on other images."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    data: str | None = None
    """Other data, an .npz file or a folder: its test images, or all if they are not divided."""
    data_dir: Path | None = None
    """Folder or archive with CIFAR-10 or CIFAR-100; by default the one of the run."""
    checkpoint: Literal["newest", "best"] = "newest"
    """The newest checkpoint, or the one with the best test accuracy."""
    output: Path | None = None
    """JSON file for the results; by default they are only printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    return exit_code(lambda: carry_out(cli(Arguments, "evaluate", arguments)))


@with_dtypes_of_run
def carry_out(arguments: Arguments) -> dict[str, Any]:
    """Evaluates, and prints the results; returns them.

    Raises:
      DataError: the data is missing or damaged.
      RunError: the folder holds no trained network, or the images do not fit it.
    """
    trained = Trained.open(arguments.run, arguments.checkpoint)
    config = trained.learner.config.data
    stored = stored_run(arguments.run)
    data_dir, variant = arguments.data_dir or stored.data_dir, stored.data_variant
    if arguments.data is not None:
        sizes: dict[str, Any] = {"train_size": None, "test_size": None}
        if not Path(arguments.data).is_dir():
            sizes["resize"] = None
        config = dataclasses.replace(config, dataset=arguments.data, **sizes)
        data_dir, variant = arguments.data_dir, None
    dataset = load(config, data_dir, variant)
    if arguments.data is not None:
        dataset = _labelled_alike(all_for_tests(dataset), trained)
    data = place(dataset)._replace(**trained.variables["pixels"])
    results = jax.jit(evaluate, static_argnums=0)(trained.learner, trained.state, data)
    results = {name: np.asarray(value).tolist() for name, value in results.items()}
    _print(dataset, trained, results)
    if arguments.output:
        record = {"run": str(arguments.run), "data": dataset.variant, "step": trained.step}
        RunFolder(arguments.output.parent).write(arguments.output.name, record | results)
    return results


def _labelled_alike(dataset: Dataset, trained: Trained) -> Dataset:
    """Returns the test images with the labels of the network's classes of the same names."""
    shape = dataset.test_images.shape[1:]
    if shape != trained.image_shape:
        raise RunError(
            f"{dataset.variant} has images of shape {shape}, and the network takes "
            f"{trained.image_shape}. Choose other images, or give them this shape."
        )
    unknown = sorted(set(dataset.classes) - set(trained.classes))
    if unknown:
        raise RunError(
            f"{dataset.variant} has the class {unknown[0]!r}, which the network does not know. Its "
            f"classes are: {', '.join(trained.classes)}."
        )
    numbers = np.array([trained.classes.index(name) for name in dataset.classes], np.int32)
    return dataset._replace(test_labels=numbers[dataset.test_labels], classes=trained.classes)


def _print(dataset: Dataset, trained: Trained, results: dict[str, Any]) -> None:
    config = trained.learner.config
    rows = {"accuracy": f"{results['accuracy']:.2%}"}
    if config.views != "plain":
        rows["accuracy with single views"] = f"{results['accuracy_plain']:.2%}"
    if trained.state.batch_stats:
        mode = "accuracy in training mode (normalized by batches of test images)"
        rows[mode] = f"{results['accuracy_batch_statistics']:.2%}"
    rows["loss"] = f"{results['loss']:.4f}"
    count = len(dataset.test_labels)
    print(f"{dataset.variant}: {count} test images, weights after step {trained.step}")
    for name, value in rows.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(main())
