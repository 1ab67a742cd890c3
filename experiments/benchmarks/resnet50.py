"""Measures the memory of ResNet-50's training step, compiled for an H100, which may be absent.

Command: python -m experiments.benchmarks.resnet50 [--output FILE]
"""

import functools
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments.benchmarks import program_cost, targets
from experiments.benchmarks.linen_networks import ResNet50, training
from experiments.benchmarks.linen_norms import NetworkNorms, linen_norms
from experiments.run.environment import versions
from experiments.run.folder import RunFolder

RESULTS = Path(__file__).parent / "results" / "resnet50-h100.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "jax-cuda12-plugin")
DTYPE = jnp.dtype("bfloat16")
BATCH = 256
STEP = 8
# By default JAX takes 75% of a GPU's memory. A little above this limit, XLA starts to compute
# things twice.
LIMIT = int(0.75 * targets.H100_BYTES)


@dataclass(frozen=True)
class Arguments:
    """Compiles a step of bfloat16 ResNet-50 with jbn's norms and with Flax's batch norm."""

    output: Path = RESULTS
    """JSON file for the results."""


def main(arguments: Arguments) -> int:
    """Measures, prints and stores; returns 1 if the compiler is missing, else 0."""
    try:
        devices = targets.devices("h100")
    except targets.MissingCompiler as error:
        print(error, file=sys.stderr)
        return 1
    result: dict[str, Any] = {
        "batch": BATCH,
        "limit_bytes": LIMIT,
        "versions": versions(*PACKAGES),
        "rows": [],
    }
    for name, norms in linen_norms(DTYPE).items():
        result["rows"].append({"form": name} | measure(devices, norms))
        RunFolder(arguments.output.parent).write(arguments.output.name, result)
    print(table(result))
    return 0


def measure(devices: list[Any], norms: NetworkNorms) -> dict[str, int]:
    """Compiles a step of SGD with momentum for several batches of 224x224 images.

    The workspace of convolutions is missing, because a library on the GPU chooses it.

    Returns:
      `peak_bytes`, `total_bytes`, `moved_bytes`: see `program_cost.ProgramCost`; `largest_batch`:
      the largest multiple of 8 whose total is within the limit and for which XLA computes nothing
      twice; `largest_bytes`: its total.
    """
    init, step = training(ResNet50(norms, DTYPE), optax.sgd(0.1, momentum=0.9), wrap=norms.wrap)

    @functools.cache
    def compiled(batch: int):
        images = jax.ShapeDtypeStruct((batch, 224, 224, 3), DTYPE)
        labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
        state = jax.eval_shape(init, images)
        return program_cost.compile_for(devices, step, state, images, labels, donated=(0,))

    def needs(batch: int) -> float:
        computes_twice = re.search(r"%[\w.\-]+\.remat\d* = ", compiled(batch).as_text() or "")
        total = math.inf if computes_twice else program_cost.read(compiled(batch)).total_bytes
        print(f"batch {batch}: {total / 1e9:.2f} GB", flush=True)
        return total

    program = program_cost.read(compiled(BATCH))
    largest, total = largest_batch(needs, LIMIT)
    return {
        "peak_bytes": program.peak_bytes,
        "total_bytes": program.total_bytes,
        "moved_bytes": program.moved_bytes,
        "largest_batch": largest,
        "largest_bytes": int(total),
    }


def largest_batch(needs: Callable[[int], float], limit: float) -> tuple[int, float]:
    """Finds the largest batch within a limit: first by a straight line, then by trials around it.

    Args:
      needs: `needs(batch)`, which is about linear. It is called for multiples of `STEP`.
      limit: largest allowed value of `needs(batch)`.

    Returns:
      The batch, and `needs(batch)`.
    """
    small, large = needs(BATCH // 2), needs(BATCH)
    slope = (large - small) / (BATCH // 2)
    batch = int(BATCH + (limit - large) / slope) // STEP * STEP
    needed = needs(batch)
    while needed > limit:
        batch -= STEP
        needed = needs(batch)
    while (more := needs(batch + STEP)) <= limit:
        batch, needed = batch + STEP, more
    return batch, needed


def table(result: dict[str, Any]) -> str:
    """Returns gigabytes (1e9 bytes) and the largest batch as a Markdown table."""
    heads = ("", f"peak at batch {BATCH}, GB", "in all, GB", "moved, GB", "largest batch")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in result["rows"]:
        sizes = (row[f"{name}_bytes"] / 1e9 for name in ("peak", "total", "moved"))
        cells = (row["form"], *(f"{size:.2f}" for size in sizes), str(row["largest_batch"]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, prog="python -m experiments.benchmarks.resnet50")))
