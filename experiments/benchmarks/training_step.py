"""Compiles whole training steps for GPUs and TPUs, which may be absent.

Command: python -m experiments.benchmarks.training_step [--output FILE]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks import program_cost
from experiments.benchmarks.targets import Target, devices
from experiments.config import Config
from experiments.configs import PRESETS
from experiments.learner import Learner, train
from experiments.placement import Images
from experiments.run.environment import versions
from experiments.run.folder import RunFolder
from experiments.run.trained import state_shapes, with_sharding

RESULTS = Path(__file__).parent / "results" / "training_step.json"
PRESET = "cifar10"
CASES: list[tuple[Target, int]] = [("h100", 1), ("h100", 8), ("v5e", 1), ("v5e", 4), ("v5e", 256)]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "jax-cuda12-plugin", "libtpu")
CIFAR10 = (50_000, 10_000, (32, 32, 3))
"""Number of training and test images, and an image's shape."""


@dataclass(frozen=True)
class Arguments:
    """Compiles the training step of the preset cifar10 for H100s and TPUs v5e."""

    output: Path = RESULTS
    """JSON file for the results."""


def main(arguments: Arguments) -> None:
    """Prints and stores the cost of each step as soon as it is compiled."""
    config = PRESETS[PRESET]
    result: dict[str, Any] = {"versions": versions(*PACKAGES), "preset": PRESET, "rows": []}
    for target, count in CASES:
        row = {"target": target, "devices": count} | measure(config, CIFAR10, target, count)
        result["rows"].append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        RunFolder(arguments.output.parent).write(arguments.output.name, result)


def measure(
    config: Config, sizes: tuple[int, int, tuple[int, ...]], target: Target, count: int
) -> dict[str, int]:
    """Compiles one training step; returns its cost.

    Args:
      config: configuration of the run.
      sizes: number of training and test images, and the shape of an image.
      target: kind of device.
      count: number of devices that share a batch.

    Returns:
      `norms`: number of layers with running statistics; `collectives`: number of operations that
      exchange data between devices; `temp_bytes`: temporary memory of a device. On a TPU most of
      this memory is a copy of all images, with each row padded to 128 values.
    """
    mesh = Mesh(np.array(devices(target, count)), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    train_size, test_size, shape = sizes
    images: Any = [
        jax.ShapeDtypeStruct((size, *rest), dtype, sharding=everywhere)
        for size in (train_size, test_size)
        for rest, dtype in ((shape, jnp.uint8), ((), jnp.int32))
    ]
    pixels: Any = jax.ShapeDtypeStruct(shape[-1:], jnp.float32, sharding=everywhere)
    data = Images(*images, mean=pixels, std=pixels)
    learner = Learner(config, num_classes=10, num_images=train_size)
    state = with_sharding(state_shapes(learner, shape), everywhere)
    with jax.set_mesh(mesh):
        step = jax.jit(train, static_argnums=(0, 3), donate_argnums=1)
        program = program_cost.read(step.lower(learner, state, data, 1).compile())
    paths = [path for path, _ in jax.tree.leaves_with_path(state.batch_stats)]
    return {
        "norms": len({path[:-1] for path in paths}),
        "collectives": program.collectives,
        "temp_bytes": program.peak_bytes,
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.benchmarks.training_step"))
