"""Classifies images with a trained network: python -m experiments.predict RUN IMAGE..."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from experiments.data import DataError
from experiments.data.image_files import read_one
from experiments.run.arithmetic import with_dtypes_of_run
from experiments.run.command_line import cli
from experiments.run.errors import RunError, complain, exit_code
from experiments.run.trained import Trained


@dataclass(frozen=True)
class Arguments:
    """Classifies images with a trained network."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE...")]
    """Image files. They get the size of the network's images."""
    checkpoint: Literal["newest", "best"] = "newest"
    """The newest checkpoint, or the one with the best test accuracy."""
    top: int = 3
    """Number of classes to print for each image."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    return exit_code(lambda: carry_out(cli(Arguments, "predict", arguments)))


@with_dtypes_of_run
def carry_out(arguments: Arguments) -> None:
    """Prints the most probable classes of each image, with their probabilities.

    Raises:
      DataError: an image cannot be read. The classes of the others are printed before.
      RunError: the folder holds no trained network, or one for images that no file has.
    """
    if not arguments.images:
        raise RunError("Name at least one image: python -m experiments.predict RUN IMAGE...")
    if arguments.top < 1:
        raise RunError(f"--top {arguments.top} must be at least 1.")
    trained = Trained.open(arguments.run, arguments.checkpoint)
    if trained.image_shape[-1] not in (1, 3):
        raise RunError(f"The network takes {trained.image_shape[-1]} channels, which no file has.")
    images, errors = _read(arguments.images, trained)
    if images:
        stacked = np.stack([image for _, image in images])
        probabilities = np.asarray(jax.nn.softmax(trained.apply(trained.variables, stacked)))
        for (path, _), shares in zip(images, probabilities, strict=True):
            best = np.argsort(-shares)[: arguments.top]
            classes = ", ".join(f"{trained.classes[index]} {shares[index]:.1%}" for index in best)
            print(f"{path}: {classes}", flush=True)
    for error in errors[:-1]:
        complain(f"error: {error}")
    if errors:
        raise errors[-1]


def _read(
    paths: Sequence[Path], trained: Trained
) -> tuple[list[tuple[Path, np.ndarray]], list[DataError]]:
    """Returns the images that can be read, and an error for each of the others."""
    images, errors = [], []
    for path in paths:
        try:
            image = read_one(path, trained.image_shape, trained.learner.config.data)
            images.append((path, image))
        except DataError as error:
            errors.append(error)
    return images, errors


if __name__ == "__main__":
    sys.exit(main())
