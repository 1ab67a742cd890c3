"""Measures the stacks of layers of `compiled`: time and memory on the GPU."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import networks
from experiments.benchmarks.compiled import BATCHES, DEPTHS
from experiments.benchmarks.gpu import steps
from experiments.benchmarks.gpu.calls import Repeats
from experiments.benchmarks.gpu.piece import Key, Piece, Row, Settings
from experiments.benchmarks.gpu.tables import markdown
from experiments.benchmarks.networks import Shape

BATCH, DEPTH = BATCHES["h100"], DEPTHS["h100"][-1]


def cells(small: bool) -> list[Key]:
    """Returns the shapes of activations and the numbers of layers."""
    if small:
        return [{"depth": 2, **Shape(4, 8, 8, "float32")._asdict()}]
    return [
        {"depth": DEPTH, **Shape(BATCH, size, channels, dtype)._asdict()}
        for dtype in ("bfloat16", "float32")
        for size, channels in ((32, 64), (16, 256))
    ]


def processes(small: bool) -> list[list[Key]]:
    """Returns the keys, a list for each process."""
    return steps.processes(cells(small))


def measure(keys: list[Key], settings: Settings) -> Iterator[Row]:
    """Yields the rows of `steps.processes`."""
    return steps.measure(keys, make, Repeats(1, 2) if settings.small else Repeats(20, 30))


def make(key: Key, form: str) -> steps.Step:
    """Returns the training step of a form, with random kernels and images."""
    shape = Shape(**{name: key[name] for name in Shape._fields})
    norm = networks.norm_activations(shape.dtype)[form]
    function, (kernels, _, x) = networks.step(networks.stack, norm, shape, key["depth"])
    states = jax.tree.leaves([norm.make(shape.channels, 0.9).state] * key["depth"])
    rng = np.random.default_rng(0)

    def random(like: Any, deviation: float) -> jax.Array:
        return jnp.asarray(rng.standard_normal(like.shape, np.float32) * deviation, like.dtype)

    deviation = (2 / (9 * shape.channels)) ** 0.5
    return steps.Step(function, ([random(k, deviation) for k in kernels], states, random(x, 1.0)))


def table(rows: list[Row]) -> str:
    """Returns a Markdown table of time and of both figures of memory by form and shape."""
    found = {tuple(row[name] for name in ("dtype", "size", "channels")): row for row in rows}
    shown = {
        f"{dtype}, {channels} channels": steps.figures(
            rows, {"dtype": dtype, "size": size, "channels": channels}
        )
        for dtype, size, channels in found
    }
    lines = [
        [form]
        + [
            f"{steps.text(v[form], 'ms', '.2f')} / {steps.text(v[form], 'peak_gb', '.3f')}"
            f" / {steps.text(v[form], 'compiled_gb', '.3f')}"
            for v in shown.values()
        ]
        for form in steps.FORMS
    ]
    return markdown(["ms / GB measured / GB by the compiler", *shown], lines)


PIECE = Piece(processes, measure, table)
