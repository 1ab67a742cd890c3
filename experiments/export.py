"""Exports a trained network: python -m experiments.export RUN FILE."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import tyro

import jbn.linen
from experiments.run.arithmetic import with_dtypes_of_run
from experiments.run.atomic import written
from experiments.run.command_line import cli
from experiments.run.errors import RunError, exit_code
from experiments.run.folder import check_output
from experiments.run.trained import Trained

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@dataclass(frozen=True)
class Arguments:
    """Writes a trained network as a file that needs only JAX and flatbuffers.

    The norms are folded into the convolutions where that is possible.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """File to write."""
    checkpoint: Literal["newest", "best"] = "newest"
    """The newest checkpoint, or the one with the best test accuracy."""
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    """Platforms that can run the file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    return exit_code(lambda: carry_out(cli(Arguments, "export", arguments)))


@with_dtypes_of_run
def carry_out(arguments: Arguments) -> None:
    """Writes the file, and prints how to run it.

    Raises:
      RunError: the folder holds no trained network, or there is no such platform.
    """
    unknown = set(arguments.platforms).difference(PLATFORMS)
    if unknown or not arguments.platforms:
        raise RunError(
            f"--platforms {' '.join(arguments.platforms)}: choose from {', '.join(PLATFORMS)}."
        )
    check_output(arguments.file)
    trained = Trained.open(arguments.run, arguments.checkpoint)
    shape = jax.export.symbolic_shape("n, ...", like=(1, *trained.image_shape))
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    exported = jax.export.export(jax.jit(folded(trained)), platforms=arguments.platforms)(images)
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    with written(arguments.file) as partial:
        partial.write_bytes(exported.serialize())
    print(
        f"Wrote {arguments.file}. Run it with JAX and flatbuffers alone:\n"
        "  import jax, jax.export\n"
        f"  network = jax.export.deserialize(open({str(arguments.file)!r}, 'rb').read())\n"
        f"  logits = network.call(images)  # uint8 [n, {str(trained.image_shape)[1:-1]}]\n"
        f"Classes: {', '.join(trained.classes)}"
    )


def folded(trained: Trained) -> Callable[[jax.Array], jax.Array]:
    """Returns `network(images) -> logits`, whose norms are folded into the convolutions."""
    learner, variables = trained.learner, trained.variables
    example = learner.normalize(trained.pixels, np.zeros((1, *trained.image_shape), np.uint8))
    weights = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
    network = jbn.linen.fold(learner.model, weights, example, strict=False, train=False)
    return lambda images: network.apply(
        network.variables, learner.normalize(trained.pixels, images), train=False
    )


if __name__ == "__main__":
    sys.exit(main())
