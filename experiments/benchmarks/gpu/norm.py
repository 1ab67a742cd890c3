"""Times one norm and a copy of the same array, to see what share of the bandwidth it reaches."""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import networks
from experiments.benchmarks.gpu.calls import Repeats, median_ms, seconds_a_call, summary
from experiments.benchmarks.gpu.piece import Key, Piece, Row, Settings
from experiments.benchmarks.gpu.tables import markdown
from experiments.benchmarks.stopwatch import Turn, interleaved

PASSES = {"forward": 3, "forward and backward": 8}
"""Smallest number of passes over x in each part. The forward pass reads x twice and writes y. The
backward pass reads x and dy twice and writes dx."""
COPY_PASSES = 2
COPY = "copy"
LIBRARIES = ("jbn", "flax.linen")
TORCH_LAYOUTS = {"torch": "contiguous_format", "torch, channels last": "channels_last"}
# The activations of these batches, 134 MB or more, do not fit into the 50 MB cache of an H100.
SHAPES = ((1024, 32, 32, 64), (1024, 16, 16, 256))
SMALL_SHAPES = ((8, 4, 4, 16),)


def processes(small: bool) -> list[list[Key]]:
    """Returns the keys: dtypes and shapes, all in one process."""
    shapes = SMALL_SHAPES if small else SHAPES
    dtypes = ("bfloat16", "float32")
    return [[{"dtype": dtype, "shape": list(shape)} for dtype in dtypes for shape in shapes]]


def measure(keys: list[Key], settings: Settings) -> Iterator[Row]:
    """Yields the times of each part, in turns, and the bandwidth of the copy."""
    repeats = Repeats(2, 2) if settings.small else Repeats(50, 30)
    for key in keys:
        dtype = jnp.dtype(key["dtype"])
        found = dict(turns(key["shape"], dtype, repeats.calls))
        seconds = interleaved(found, repeats.rounds)
        parts = {part: summary(taken, COPY) for part, taken in seconds.items()}
        copied = COPY_PASSES * math.prod(key["shape"]) * dtype.itemsize
        rate = copied / median_ms(parts["forward"])[COPY] / 1e6
        yield key | repeats._asdict() | {"copy_gb_per_s": round(rate, 3)} | parts


def turns(shape: Sequence[int], dtype: np.dtype, calls: int) -> Iterator[tuple[str, Turn]]:
    """Yields turns of the copy and of each library's norm, with features on the last axis.

    The norms have no activation.
    """
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape, np.float32) for _ in range(2))
    arrays = [jnp.asarray(array, dtype) for array in (x, dy)]
    copy = partial(jax.jit(lambda x: x + jnp.ones((), x.dtype)), arrays[0])
    yield COPY, _turn(dict.fromkeys(PASSES, copy), calls)
    for name in LIBRARIES:
        parts, learned = jax_parts(networks.norm_activations(dtype.name)[name], shape[-1])
        jitted = {part: partial(jax.jit(f), learned, *arrays) for part, f in parts.items()}
        yield name, _turn(jitted, calls)
    if find_spec("torch"):
        yield from _torch_norms(x, dy, dtype.name, calls)


def _turn(
    parts: dict[str, Callable[[], Any]],
    calls: int,
    wait: Callable[[Any], Any] = jax.block_until_ready,
) -> Turn:
    return lambda: {part: seconds_a_call(call, calls, wait) for part, call in parts.items()}


def jax_parts(
    norm: networks.NormActivation, features: int
) -> tuple[dict[str, Callable[..., Any]], list[Any]]:
    """Returns `f(learned, x, dy)` for each part, and `learned`, of a norm without its activation.

    In the part with both directions, dy depends on y, as in a network. So no pass over x can serve
    both directions.
    """
    step = networks.norm_step(norm._replace(activation=lambda y: y), features)

    def forward(learned, x, dy):
        return step.forward(learned, x)

    def both(learned, x, dy):
        y, pullback, state = jax.vjp(step.forward, learned, x, has_aux=True)
        y, dy = jax.lax.optimization_barrier((y, dy))
        return y, pullback(dy), state

    return dict(zip(PASSES, (forward, both), strict=True)), step.learned


def _torch_norms(
    x: np.ndarray, dy: np.ndarray, dtype: str, calls: int
) -> Iterator[tuple[str, Turn]]:
    """Yields turns of PyTorch in its two layouts of images, if it can use the device of JAX."""
    try:
        torch: Any = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        print(f"PyTorch is left out, because it cannot be imported: {error}")
        return
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        print("PyTorch is left out, because it finds no GPU.")
        return
    device = "cuda" if on_gpu else "cpu"

    def wait(_):
        if on_gpu:
            torch.cuda.synchronize()

    for name, layout in TORCH_LAYOUTS.items():
        module = torch.nn.BatchNorm2d(x.shape[-1], device=device)
        first, cotangent = (
            torch.tensor(np.moveaxis(array, -1, 1).copy(), device=device)
            .to(getattr(torch, dtype))
            .to(memory_format=getattr(torch, layout))
            for array in (x, dy)
        )
        first.requires_grad_()

        def both(module=module, first=first, cotangent=cotangent):
            first.grad = None
            module.zero_grad()
            module(first).backward(cotangent)

        forward = partial(module, first)
        yield name, _turn(dict(zip(PASSES, (forward, both), strict=True)), calls, wait)


def shares(row: Row, part: str) -> dict[str, float]:
    """Returns each library's share of the copy's bandwidth, as if it made only `PASSES` passes."""
    return {
        name: PASSES[part] / COPY_PASSES / times
        for name, times in row[part]["times_copy"].items()
        if name != COPY
    }


def table(rows: list[Row]) -> str:
    """Returns a Markdown table of milliseconds and of shares of the copy's bandwidth."""
    names = list(dict.fromkeys(name for row in rows for name in shares(row, "forward")))
    lines = [
        [f"{part}, {row['dtype']} {row['shape']}", f"{row['copy_gb_per_s']:.3g}"]
        + [
            f"{median_ms(row[part])[name]:.3f} ({shares(row, part)[name]:.0%})"
            if name in shares(row, part)
            else "n/a"
            for name in names
        ]
        for row in rows
        for part in PASSES
    ]
    return markdown(["ms (share of a copy's bandwidth)", "copy, GB/s", *names], lines)


PIECE = Piece(processes, measure, table)
