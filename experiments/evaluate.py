"""Evaluates a trained network: python -m experiments.evaluate RUN [--data ...]."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.data import NAMES, Tests, expanded, fingerprint, load, load_tests
from experiments.evaluation import evaluate
from experiments.run.arithmetic import with_dtypes_of_run
from experiments.run.command_line import cli
from experiments.run.errors import RunError, exit_code
from experiments.run.folder import RunFolder, check_output
from experiments.run.stored import check_images, stored_fingerprint, stored_run
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
    if arguments.output:
        check_output(arguments.output)
    trained = Trained.open(arguments.run, arguments.checkpoint)
    tests = _of_run(arguments, trained) if arguments.data is None else _other(arguments, trained)
    images, labels = jnp.asarray(tests.images), jnp.asarray(tests.labels)
    data = trained.pixels._replace(test_images=images, test_labels=labels)
    results = jax.jit(evaluate, static_argnums=0)(trained.learner, trained.state, data)
    results = {name: np.asarray(value).tolist() for name, value in results.items()}
    _print(tests, trained, results)
    if arguments.output:
        record = {"run": str(arguments.run), "data": tests.variant, "step": trained.step}
        RunFolder(arguments.output.parent).write(arguments.output.name, record | results)
    return results


def _of_run(arguments: Arguments, trained: Trained) -> Tests:
    """Returns the test images of the run."""
    stored, config = stored_run(arguments.run), trained.learner.config.data
    if config.dataset not in NAMES and not expanded(config.dataset).exists():
        raise RunError(
            f"{config.dataset}, the data of this run, is missing. Name other images with --data, "
            "or tell the run where it is, by resuming it with --data.dataset PATH."
        )
    data = load(config, arguments.data_dir or stored.data_dir, stored.data_variant)
    if stored_fingerprint(arguments.run):
        check_images(arguments.run, fingerprint(data))
    tests = Tests(data.test_images, data.test_labels, data.classes, data.variant)
    return _labelled_alike(tests, trained)


def _other(arguments: Arguments, trained: Trained) -> Tests:
    """Returns the images that `--data` names."""
    config = dataclasses.replace(trained.learner.config.data, dataset=arguments.data)
    if not expanded(config.dataset).is_dir():
        config = dataclasses.replace(config, resize=None)
    return _labelled_alike(load_tests(config, arguments.data_dir), trained)


def _labelled_alike(tests: Tests, trained: Trained) -> Tests:
    """Returns the images with the network's own labels, as int32."""
    images = tests.images
    if images.shape[-1] == 1 and trained.image_shape[-1] == 3:
        # Training on a folder does the same with the grey images among coloured ones.
        images = np.repeat(images, 3, -1)
    shape = images.shape[1:]
    if shape != trained.image_shape:
        raise RunError(
            f"{tests.variant} has images of shape {shape}, and the network takes "
            f"{trained.image_shape}. Choose other images, or give them this shape."
        )
    numbers = _numbers(tests, trained.classes)
    return tests._replace(images=images, labels=numbers, classes=trained.classes)


def _numbers(tests: Tests, classes: tuple[str, ...]) -> np.ndarray:
    """Returns the places of the labels in the network's classes."""
    if tests.classes is None:
        low, high = int(tests.labels.min()), int(tests.labels.max())
        if low < 0 or high >= len(classes):
            raise RunError(
                f"{tests.variant} holds labels from {low} to {high}, and the network has "
                f"{len(classes)} classes. Number them from 0 to {len(classes) - 1}, in this order: "
                f"{', '.join(classes)}."
            )
        return tests.labels.astype(np.int32)
    places = [classes.index(name) if name in classes else -1 for name in tests.classes]
    numbers = np.array(places, np.int32)[tests.labels]
    if numbers.min() < 0:
        unknown = tests.classes[tests.labels[numbers.argmin()]]
        raise RunError(
            f"{tests.variant} has the class {unknown!r}, which the network does not know. Its "
            f"classes are: {', '.join(classes)}."
        )
    return numbers


def _print(tests: Tests, trained: Trained, results: dict[str, Any]) -> None:
    config = trained.learner.config
    rows = {"accuracy": f"{results['accuracy']:.2%}"}
    if config.views != "plain":
        rows["accuracy with single views"] = f"{results['accuracy_plain']:.2%}"
    if trained.state.batch_stats:
        mode = "accuracy in training mode (normalized by batches of test images)"
        rows[mode] = f"{results['accuracy_batch_statistics']:.2%}"
    rows["loss"] = f"{results['loss']:.4f}"
    count = len(tests.labels)
    print(f"{tests.variant}: {count} test images, weights after step {trained.step}")
    for name, value in rows.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(main())
