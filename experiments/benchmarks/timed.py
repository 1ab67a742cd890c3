"""Times jbn and its installed peers on this machine, in turns.

Command: python -m experiments.benchmarks.timed [--rounds N] [--compilations N] [--output FILE]
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.benchmarks import memory
from experiments.benchmarks.layers import DISTRIBUTIONS, installed
from experiments.benchmarks.stopwatch import compared, interleaved, table
from experiments.benchmarks.turns import (
    linen_compilation_turns,
    nnx_compilation_turns,
    norm_turns,
    resnet20_turns,
)
from experiments.run.environment import environment, versions
from experiments.run.folder import RunFolder

RESULTS = Path(__file__).parent / "results"
SHAPES = ((64, 32, 32, 64), (64, 16, 16, 256), (64, 64, 64, 16), (4096, 256))
BATCH = 128
SMALL_IMAGES = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
TO = "jbn"


@dataclass(frozen=True)
class Arguments:
    """Times norms, a step of ResNet-20 and the compilation of ResNet-50, in float32."""

    rounds: int = 30
    """Number of rounds. In each round every library takes one turn, in random order."""
    compilations: int = 5
    """Number of rounds of tracing, lowering and compiling."""
    output: Path | None = None
    """JSON file for the results. By default it replaces the stored results of this backend."""


def main(arguments: Arguments) -> None:
    """Times, prints and stores."""
    memory.choose("fresh")  # This comes before JAX starts its threads.
    path = arguments.output or RESULTS / f"timed-{jax.default_backend()}.json"
    packages = {DISTRIBUTIONS.get(library, library) for library, _ in installed().values()}
    result: dict[str, Any] = environment("noise") | {
        "load_before": os.getloadavg()[0],
        "versions": versions("jax", "jaxlib", "optax", *sorted(packages - {"jbn"})),
        "rows": [],
    }
    for row in measure(arguments.rounds, arguments.compilations):
        print(row, flush=True)
        result["rows"].append(row)
        RunFolder(path.parent).write(path.name, result)
    print(table(result["rows"], TO))


def measure(rounds: int, compilations: int) -> Iterator[dict[str, Any]]:
    """Yields a row for each timed part, with the name of the part (`what`) and its data."""
    for kind in memory.MEMORIES:
        if memory.choose(kind):
            for shape in SHAPES:
                yield from rows(dict(norm_turns(shape)), rounds, shape=shape, memory=kind)
            yield from rows(dict(resnet20_turns(BATCH)), rounds, batch=BATCH, memory=kind)
    for library, turns in (("Linen", linen_compilation_turns), ("NNX", nnx_compilation_turns)):
        for row in rows(dict(turns(SMALL_IMAGES)), compilations, warm_up=1):
            yield row | {"what": f"{row['what']} ResNet-50 in {library}"}


def rows(turns: Any, rounds: int, warm_up: int = 5, **about: Any) -> Iterator[dict[str, Any]]:
    """Yields a row for each part of the turns."""
    for part, seconds in interleaved(turns, rounds, warm_up).items():
        yield {"what": part} | about | {"rounds": rounds} | compared(seconds, TO)


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.benchmarks.timed"))
