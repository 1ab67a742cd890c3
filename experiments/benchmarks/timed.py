"""Forward and backward in seconds, jbn and its installed peers interleaved in one process.

Command: python -m experiments.benchmarks.timed [--rounds N] [--output FILE]
"""

import importlib
import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks import networks
from experiments.benchmarks.layers import DISTRIBUTIONS, installed
from experiments.run_folder import RunFolder, versions

RESULTS = Path(__file__).parent / "results"
SHAPES = ((64, 32, 32, 64), (64, 16, 16, 256), (64, 64, 64, 16), (4096, 256))
PEERS = ("jbn", "jbn, in place", "flax.linen", "torch")

Step = Callable[[], Any]


@dataclass(frozen=True)
class Arguments:
    """Times a norm and its activation, forward and backward, in float32 on this machine."""

    rounds: int = 30
    """In each round every library takes one step, in random order."""
    output: Path | None = None
    """Where the results go, as JSON; by default beside this file, named after the device."""


def main(arguments: Arguments) -> None:
    """Times, prints and stores."""
    device = jax.devices()[0]
    path = arguments.output or RESULTS / f"timed-{device.platform}.json"
    packages = {DISTRIBUTIONS.get(library, library) for library, _ in installed().values()}
    result = {
        "device": device.device_kind,
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions("jax", "jaxlib", *sorted(packages - {"jbn"})),
        "rounds": arguments.rounds,
        "rows": [],
    }
    for shape in SHAPES:
        seconds = interleaved(dict(steps(shape)), arguments.rounds)
        ours = seconds["jbn"]
        row = {
            "shape": shape,
            "median_ms": {name: round(1e3 * median(s), 3) for name, s in seconds.items()},
            "times_jbn": {
                name: round(median(a / b for a, b in zip(s, ours, strict=True)), 3)
                for name, s in seconds.items()
            },
        }
        print(row, flush=True)
        result["rows"].append(row)
    RunFolder(path.parent).write(path.name, result)


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each step in each round, after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for number in range(-2, rounds):
        for name in order.sample(list(steps), len(steps)):
            start = time.perf_counter()
            steps[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def steps(shape: tuple[int, ...]) -> Iterator[tuple[str, Step]]:
    """Yields a training step of each library: gradients of x and of what the norm learns."""
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    found = networks.forms("float32")
    for name in PEERS:
        if name in found:
            yield name, _jax_step(found[name], jnp.asarray(x), jnp.asarray(dy))
        elif name in installed():
            yield name, _torch_step(x, dy)


def _jax_step(form: networks.Form, x: jax.Array, dy: jax.Array) -> Step:
    layer = form.make(x.shape[-1], 0.9)
    leaves, structure = jax.tree.flatten(layer.state)
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def loss(learned, x):
        new = list(leaves)
        for i, leaf in zip(floats, learned, strict=True):
            new[i] = leaf
        y, state = layer.train(jax.tree.unflatten(structure, new), x)
        return jnp.vdot(form.activation(y), dy), state

    step = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    return lambda: jax.block_until_ready(step([leaves[i] for i in floats], x))


def _torch_step(x: np.ndarray, dy: np.ndarray) -> Step:
    """PyTorch's, with its features on the axis that it wants them on."""
    torch: Any = importlib.import_module("torch")
    module = torch.nn.BatchNorm2d(x.shape[-1]) if x.ndim == 4 else torch.nn.BatchNorm1d(x.shape[-1])
    first = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    cotangent = torch.tensor(np.moveaxis(dy, -1, 1).copy())

    def step():
        first.grad = None
        module.zero_grad()
        torch.relu(module(first)).backward(cotangent)

    return step


if __name__ == "__main__":
    main(tyro.cli(Arguments))
