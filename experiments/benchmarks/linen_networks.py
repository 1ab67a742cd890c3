"""Linen networks with any norm, and their training step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from experiments.benchmarks.linen_norms import NetworkNorms


class Chain(nn.Module):
    """Small dense layers, each with a norm and an activation; by default 53, as in ResNet-50."""

    norms: NetworkNorms
    depth: int = 53
    features: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits of x [batch, features]."""
        for _ in range(self.depth):
            x = nn.Dense(self.features, use_bias=False)(x)
            x = self.norms.activation(self.norms.norm()(x))
        return x


class ResNet50(nn.Module):
    """ResNet-50 (He et al. 2015) as v1.5, whose 3x3 convolutions halve the images."""

    norms: NetworkNorms
    dtype: DTypeLike
    """Dtype of activations; parameters are float32."""
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits of images [batch, height, width, 3]."""
        x = nn.Conv(64, (7, 7), (2, 2), use_bias=False, dtype=self.dtype)(x)
        x = self.norms.activation(self.norms.norm()(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(64 * 2**stage, strides, self.norms, self.dtype)(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(x, (1, 2)))
        return x.astype(jnp.float32)


class Bottleneck(nn.Module):
    """A block of convolutions of size 1, 3 and 1, with a shortcut."""

    features: int
    strides: int
    norms: NetworkNorms
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block to x [batch, height, width, channels]."""
        norm, last_norm, activation, sum_activation, _ = self.norms
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        strides = (self.strides, self.strides)
        y = activation(norm()(conv(self.features, (1, 1))(x)))
        y = activation(norm()(conv(self.features, (3, 3), strides)(y)))
        y = last_norm()(conv(4 * self.features, (1, 1))(y))
        if x.shape != y.shape:
            x = last_norm()(conv(4 * self.features, (1, 1), strides)(x))
        return sum_activation(y + x)


def training(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    wrap: Callable[[Any], Any] = lambda network: network,
    options: tuple[Any, ...] = (),
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns functions that start a training and take a step.

    Args:
      model: `model(inputs, *options) -> logits`, with batch norms.
      optimizer: from optax.
      wrap: function that is applied to the whole network, such as `jax.checkpoint`.
      options: further arguments of the model's call.

    Returns:
      `init(inputs) -> state` and `step(state, inputs, labels) -> (state, loss)`. The state consists
      of the parameters, the running statistics and the optimizer's state.
    """

    def init(inputs):
        variables = model.init(jax.random.key(0), inputs, *options)
        return variables["params"], variables["batch_stats"], optimizer.init(variables["params"])

    @wrap
    def network(params, batch_stats, inputs):
        variables = {"params": params, "batch_stats": batch_stats}
        return model.apply(variables, inputs, *options, mutable=["batch_stats"])

    def step(state, inputs, labels):
        params, batch_stats, optimizer_state = state

        def loss(params):
            logits, updates = network(params, batch_stats, inputs)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), updates["batch_stats"]

        (value, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), batch_stats, optimizer_state), value

    return init, step
