"""ResNet-50 in NNX with any norm, and its training step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Norm = Callable[..., Any]
"""Function that makes a norm, `norm(features, rngs=rngs)`."""


class ConvNorm(nnx.Module):
    """A convolution without bias and a norm."""

    def __init__(
        self, norm: Norm, inputs: int, outputs: int, size: int, strides: int, rngs: nnx.Rngs
    ):
        self.conv = nnx.Conv(
            inputs, outputs, (size, size), (strides, strides), use_bias=False, rngs=rngs
        )
        self.norm = norm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies both to x [batch, height, width, channels]."""
        return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
    """A block of convolutions of size 1, 3 and 1, with a shortcut."""

    def __init__(self, norm: Norm, inputs: int, features: int, strides: int, rngs: nnx.Rngs):
        outputs = 4 * features
        self.first = ConvNorm(norm, inputs, features, 1, 1, rngs)
        self.second = ConvNorm(norm, features, features, 3, strides, rngs)
        self.last = ConvNorm(norm, features, outputs, 1, 1, rngs)
        self.shortcut = (
            ConvNorm(norm, inputs, outputs, 1, strides, rngs) if inputs != outputs else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block to x [batch, height, width, channels]."""
        y = nnx.relu(self.second(nnx.relu(self.first(x))))
        return nnx.relu(self.last(y) + (x if self.shortcut is None else self.shortcut(x)))


class ResNet50(nnx.Module):
    """ResNet-50 (He et al. 2015) as v1.5, whose 3x3 convolutions halve the images."""

    def __init__(self, norm: Norm, num_classes: int = 1000, *, rngs: nnx.Rngs):
        self.stem = ConvNorm(norm, 3, 64, 7, 2, rngs)
        blocks, channels = [], 64
        for stage, count in enumerate((3, 4, 6, 3)):
            for block in range(count):
                strides = 2 if stage > 0 and block == 0 else 1
                blocks.append(Bottleneck(norm, channels, 64 * 2**stage, strides, rngs))
                channels = 256 * 2**stage
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(channels, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits of images [batch, height, width, 3]."""
        x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), (2, 2), "SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, (1, 2)))


def training(
    make: Callable[[], Any], optimizer: optax.GradientTransformation
) -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Returns functions that start a training and take a step, as `linen_networks.training` does.

    Args:
      make: function that makes the model, `model(inputs) -> logits`, with batch norms.
      optimizer: from optax.

    Returns:
      `init() -> state` and `step(state, inputs, labels) -> (state, loss)`. The state consists of
      the parameters, the running statistics and the optimizer's state.
    """
    graph = nnx.graphdef(nnx.eval_shape(make))

    def init():
        params, statistics = nnx.state(make(), nnx.Param, nnx.BatchStat)
        return params, statistics, optimizer.init(params)

    def step(state, inputs, labels):
        params, statistics, optimizer_state = state

        def loss(params):
            model = nnx.merge(graph, params, statistics, copy=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels)
            return jnp.mean(losses), nnx.state(model, nnx.BatchStat)

        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), statistics, optimizer_state), value

    return init, step
