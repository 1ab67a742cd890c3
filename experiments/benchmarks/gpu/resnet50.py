"""Measures a training step of ResNet-50: images per second, and memory on the GPU."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.gpu import steps
from experiments.benchmarks.gpu.calls import Repeats
from experiments.benchmarks.gpu.piece import Key, Piece, Row, Settings
from experiments.benchmarks.gpu.tables import markdown
from experiments.benchmarks.linen_networks import Chain, ResNet50, training
from experiments.benchmarks.linen_norms import linen_norms
from experiments.benchmarks.resnet50 import BATCH, DTYPE


def processes(small: bool) -> list[list[Key]]:
    """Returns the keys. The network of the small version is a chain of dense layers."""
    cell = {"network": "chain", "batch": 8} if small else {"network": "resnet50", "batch": BATCH}
    return steps.processes([cell])


def measure(keys: list[Key], settings: Settings) -> Iterator[Row]:
    """Yields the rows of `steps.processes`."""
    return steps.measure(keys, make, Repeats(1, 2) if settings.small else Repeats(10, 15))


def make(key: Key, form: str) -> steps.Step:
    """Returns a step of SGD with momentum on random images."""
    init, step, x = network(key["network"], key["batch"], form)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal(x.shape, np.float32), x.dtype)
    labels = jnp.asarray(rng.integers(0, 10, key["batch"]), jnp.int32)
    state = jax.jit(init)(images[:2])
    return steps.Step(step, (state, images, labels), carries=True)


def network(name: str, batch: int, form: str) -> tuple[Any, Any, jax.ShapeDtypeStruct]:
    """Returns `init` and `step` of `linen_networks.training`, and the shape of the images."""
    norms = linen_norms(DTYPE)[form]
    sizes = {"resnet50": (224, 224, 3), "chain": (16,)}
    model = ResNet50(norms, DTYPE) if name == "resnet50" else Chain(norms, depth=2)
    init, step = training(model, optax.sgd(0.1, momentum=0.9), wrap=norms.wrap)
    return init, step, jax.ShapeDtypeStruct((batch, *sizes[name]), DTYPE)


def table(rows: list[Row]) -> str:
    """Returns a Markdown table of images per second and of both figures of memory by form."""
    batch = rows[0]["batch"]
    lines = []
    for form, values in steps.figures(rows, {"batch": batch}).items():
        if "ms" in values:
            values["rate"] = 1e3 * batch / values["ms"]
        shown = (("ms", ".1f"), ("rate", ",.0f"), ("peak_gb", ".2f"), ("compiled_gb", ".2f"))
        lines.append([form, *(steps.text(values, *how) for how in shown)])
    return markdown(["", "step, ms", "images/s", "GB measured", "GB by the compiler"], lines)


PIECE = Piece(processes, measure, table)
