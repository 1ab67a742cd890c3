"""The timed code as a turn of each library: a norm, ResNet-20 and the compilation of ResNet-50."""

import gc
import importlib
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jbn.nnx
from experiments.benchmarks import networks, nnx_networks
from experiments.benchmarks.layers import installed
from experiments.benchmarks.linen_networks import ResNet50, training
from experiments.benchmarks.linen_norms import linen_norms
from experiments.benchmarks.stopwatch import Turn, clock
from experiments.models import ResNet20
from experiments.models.layers import Layers

NORMS = ("jbn", "jbn, in place", "flax.linen", "torch")
LINEN_NORMS = ("jbn", "jbn, in place", "flax.linen")


def norm_turns(shape: tuple[int, ...]) -> Iterator[tuple[str, Turn]]:
    """Yields turns of a norm and its activation, forward alone, and forward and backward.

    Features are on the last axis. The backward pass computes the gradients of x and of the norm's
    parameters.
    """
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    found = networks.norm_activations("float32")
    for name in NORMS:
        if name in found:
            yield name, _jax_norm(found[name], jnp.asarray(x), jnp.asarray(dy))
        elif name in installed():
            yield name, _torch_norm(x, dy)


def _jax_norm(norm: networks.NormActivation, x: jax.Array, dy: jax.Array) -> Turn:
    step = networks.norm_step(norm, x.shape[-1])
    forward, both = jax.jit(step.forward), jax.jit(step.gradients)
    return lambda: {
        "forward": clock(lambda: jax.block_until_ready(forward(step.learned, x))),
        "forward and backward": clock(lambda: jax.block_until_ready(both(step.learned, x, dy))),
    }


def _torch_norm(x: np.ndarray, dy: np.ndarray) -> Turn:
    """Returns a turn of PyTorch, which expects features on axis 1."""
    torch: Any = importlib.import_module("torch")
    module = torch.nn.BatchNorm2d(x.shape[-1]) if x.ndim == 4 else torch.nn.BatchNorm1d(x.shape[-1])
    first = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    cotangent = torch.tensor(np.moveaxis(dy, -1, 1).copy())

    def forward():
        return torch.relu(module(first))

    def both():
        first.grad = None
        module.zero_grad()
        forward().backward(cotangent)

    return lambda: {"forward": clock(forward), "forward and backward": clock(both)}


def resnet20_turns(batch: int) -> Iterator[tuple[str, Turn]]:
    """Yields turns of a step of plain SGD on 32x32 float32 images."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch, 32, 32, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, batch), jnp.int32)
    for name in LINEN_NORMS:
        norm = linen_norms(jnp.float32)[name].norm
        layers = Layers(norm, norm_activates=name == "jbn, in place")
        model = ResNet20().make(10, layers)
        init, step = training(model, optax.sgd(0.1), options=(True,))
        run = partial(jax.jit(step), jax.jit(init)(images), images, labels)
        yield (
            name,
            lambda run=run: {"step of ResNet-20": clock(lambda: jax.block_until_ready(run()))},
        )


def linen_compilation_turns(images: Any) -> Iterator[tuple[str, Turn]]:
    """Yields turns that trace, lower and compile a step of plain SGD on ResNet-50 in Linen.

    Args:
      images: abstract images `[batch, height, width, 3]`. They can be small, because the numbers of
        traced layers and of compiled operations do not depend on their size.
    """
    for name in LINEN_NORMS:
        model = ResNet50(linen_norms(images.dtype)[name], images.dtype)
        init, step = training(model, optax.sgd(0.1))
        yield name, _compilation(step, jax.eval_shape(init, images), images)


def nnx_compilation_turns(images: Any) -> Iterator[tuple[str, Turn]]:
    """Yields the same turns as `linen_compilation_turns`, in NNX."""
    for name, library in (("jbn", jbn.nnx), ("flax.nnx", nnx)):
        norm = partial(library.BatchNorm, momentum=0.9, dtype=images.dtype)
        init, step = nnx_networks.training(partial(_nnx_resnet50, norm), optax.sgd(0.1))
        yield name, _compilation(step, jax.eval_shape(init), images)


def _nnx_resnet50(norm: nnx_networks.Norm) -> nnx.Module:
    return nnx_networks.ResNet50(norm, rngs=nnx.Rngs(0))


def _compilation(step: Any, state: Any, images: Any) -> Turn:
    labels = jax.ShapeDtypeStruct(images.shape[:1], jnp.int32)
    return partial(trace_lower_compile, step, (state, images, labels))


def trace_lower_compile(step: Any, arguments: tuple[Any, ...]) -> dict[str, float]:
    """Returns the seconds of tracing, of lowering and of compiling, with empty caches.

    Tracing and lowering run in one thread, so their seconds are processor time.
    """
    jax.clear_caches()
    # Garbage of earlier turns is collected before the clock starts.
    gc.collect()
    gc.freeze()
    stages: list[Any] = [jax.jit(step)]
    return {
        "tracing": clock(lambda: stages.append(stages[-1].trace(*arguments)), time.process_time),
        "lowering": clock(lambda: stages.append(stages[-1].lower()), time.process_time),
        "compiling": clock(lambda: stages[-1].compile()),
    }
