"""Measures memory, bytes moved, residuals and collectives of compiled training steps.

Command: python -m experiments.benchmarks.compiled [--target h100|v5e|cpu] [--output FILE]
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.benchmarks import collectives, networks, program_cost, targets
from experiments.benchmarks.layers import DISTRIBUTIONS, installed
from experiments.benchmarks.networks import NormActivation, Shape
from experiments.run.environment import versions
from experiments.run.folder import RunFolder

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"conv-norm-act": networks.stack, "residual": networks.residual}
DEPTHS = {"h100": (8, 16), "v5e": (2,), "cpu": (8,)}
# A TPU keeps smaller activations on its chip, where they cost nothing.
BATCHES = {"h100": 128, "v5e": 2048, "cpu": 128}


@dataclass(frozen=True)
class Arguments:
    """Compiles training steps of jbn and its installed peers for a device, which may be absent."""

    target: targets.Target = "h100"
    """Device to compile for."""
    output: Path | None = None
    """JSON file for the results. By default it replaces the stored results of the target."""
    only: tuple[str, ...] = ()
    """Names of the norms to measure; all by default. Stored results of other norms are kept."""


def main(arguments: Arguments) -> int:
    """Measures, prints and stores; returns 1 if the target's compiler is missing, else 0."""
    path = arguments.output or RESULTS / f"compiled-{arguments.target}.json"
    if arguments.target == "cpu":
        jax.config.update("jax_num_cpu_devices", collectives.DEVICES)
    try:
        several = targets.devices(arguments.target, collectives.DEVICES)
    except targets.MissingCompiler as error:
        print(error, file=sys.stderr)
        return 1
    folder = RunFolder(path.parent)
    old = folder.read(path.name) if arguments.only and path.exists() else {}
    rows = [row for row in old.get("rows", []) if row["form"] not in arguments.only]
    packages = {DISTRIBUTIONS.get(library, library) for library, _ in installed().values()}
    result = {
        "target": arguments.target,
        "batch": BATCHES[arguments.target],
        "versions": versions("jax", "jaxlib", *_compilers(), *sorted(packages - {"jbn", "torch"})),
        "collectives": old.get("collectives", {}),
        "rows": rows,
    }
    for name, norm in collectives.norm_activations(several).items():
        if name in arguments.only or not arguments.only:
            counts = collectives.count(several, norm)
            print(name, "collectives forward and backward:", *counts, flush=True)
            result["collectives"][name] = counts
    for row in measure(arguments.target, arguments.only):
        print(*row.values(), flush=True)
        rows.append(row)
        folder.write(path.name, result)
    return 0


def measure(target: targets.Target, only: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields a row for each network, depth, shape and norm.

    Bytes are given for one layer, in multiples of the size of an activation.
    """
    for dtype in ("bfloat16", "float32"):
        for size, channels in ((32, 64), (16, 256)):
            shape = Shape(BATCHES[target], size, channels, dtype)
            for name, norm in networks.norm_activations(dtype).items():
                if only and name not in only:
                    continue
                about = {"form": name, "dtype": dtype, "channels": channels}
                for network, depth in (
                    *(("conv-norm-act", depth) for depth in DEPTHS[target]),
                    ("residual", DEPTHS[target][0]),
                ):
                    step, inputs = networks.step(NETWORKS[network], norm, shape, depth)
                    program = program_cost.read(
                        program_cost.compile_for(targets.devices(target), step, *inputs)
                    )
                    layer = shape.bytes * depth
                    yield about | {
                        "network": network,
                        "depth": depth,
                        "peak": round(program.peak_bytes / layer, 3),
                        "moved": round(program.moved_bytes / layer, 3),
                        "kept": round(saved_activations(norm, shape), 3),
                    }


def saved_activations(norm: NormActivation, shape: Shape) -> float:
    """Returns how many activations reverse mode saves for a norm and its activation, as traced."""
    layer = norm.make(shape.channels, 0.9)

    def forward(x):
        return norm.activation(layer.train(layer.state, x * 2)[0].astype(x.dtype))

    x = jax.ShapeDtypeStruct((32, 16, 16, shape.channels), jnp.dtype(shape.dtype))
    return program_cost.residual_bytes(norm.wrap(forward), x) / (x.size * x.dtype.itemsize)


def _compilers() -> list[str]:
    from importlib.util import find_spec

    plugins = {"libtpu": "libtpu", "jax_cuda12_plugin": "jax-cuda12-plugin"}
    return [package for module, package in plugins.items() if find_spec(module)]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, prog="python -m experiments.benchmarks.compiled")))
