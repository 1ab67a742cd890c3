"""Classifies images with a trained network: python -m experiments.predict RUN IMAGE..."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from experiments.data.image_files import read_one
from experiments.run.arithmetic import with_dtypes_of_run
from experiments.run.command_line import cli
from experiments.run.errors import RunError, exit_code
from experiments.run.trained import Trained


@dataclass(frozen=True)
class Arguments:
    """Classifies images with a trained network."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE...")]
    """Image files. They are resized to the network's size."""
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
      DataError: an image cannot be read.
      RunError: the folder holds no trained network, or one for images that no file has.
    """
    if not arguments.images:
        raise RunError("Name at least one image: python -m experiments.predict RUN IMAGE...")
    if arguments.top < 1:
        raise RunError(f"--top {arguments.top} must be at least 1.")
    trained = Trained.open(arguments.run, arguments.checkpoint)
    if trained.image_shape[-1] not in (1, 3):
        raise RunError(f"The network takes {trained.image_shape[-1]} channels, which no file has.")
    images = np.stack([read_one(path, trained.image_shape) for path in arguments.images])
    probabilities = np.asarray(jax.nn.softmax(trained.apply(trained.variables, images)))
    for path, shares in zip(arguments.images, probabilities, strict=True):
        best = np.argsort(-shares)[: arguments.top]
        classes = ", ".join(f"{trained.classes[index]} {shares[index]:.1%}" for index in best)
        print(f"{path}: {classes}")


if __name__ == "__main__":
    sys.exit(main())
