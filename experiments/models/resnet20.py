"""ResNet-20 for CIFAR-10 (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.layers import Layers, identity

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""Normal of variance 2/fan_in (He et al. 2015, https://arxiv.org/abs/1502.01852), not truncated."""


@dataclass(frozen=True)
class ResNet20:
    """ResNet-20 with shortcuts that have no parameters (option A)."""

    name: Literal["resnet20"] = "resnet20"
    """Network: small, strided, airbench or resnet20."""

    def make(self, num_classes: int, layers: Layers) -> nn.Module:
        """Returns the network: `model(images, train, mask) -> logits`."""
        return _ResNet20(num_classes, layers)


class _ResNet20(nn.Module):
    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        conv = partial(self.layers.conv_norm, kernel_init=he_normal)
        x = conv(16, activation=nn.relu)(x, train, mask)
        for width in (16, 32, 64):
            for _ in range(3):
                strides = 1 if width == x.shape[-1] else 2
                shortcut = x[:, ::strides, ::strides]
                extra = width - x.shape[-1]
                shortcut = jnp.pad(shortcut, ((0, 0),) * 3 + ((extra // 2, extra - extra // 2),))
                x = conv(width, strides=strides, activation=nn.relu)(x, train, mask)
                x = nn.relu(conv(width, activation=identity)(x, train, mask) + shortcut)
        x = jnp.mean(x, axis=(1, 2))
        head = self.layers.head(self.num_classes, kernel_init=he_normal)
        return head(x).astype(self.layers.param_dtype)
