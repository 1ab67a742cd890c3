"""A small CNN for small images."""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.layers import Layers


@dataclass(frozen=True)
class Small:
    """A small CNN, by default with convolutions of 32, 32, 64 and 64 channels."""

    name: Literal["small"] = "small"
    """Network: small, strided, airbench or resnet20."""
    width: int = 32
    """Channels of the first half of the convolutions; twice as many in the second."""
    depth: int = 4
    """Number of convolutions."""
    activation: Literal["relu", "sigmoid"] = "relu"
    """Activation after each norm."""

    def make(self, num_classes: int, layers: Layers) -> nn.Module:
        """Returns the network: `model(images, train, mask) -> logits`."""
        return _Small(self, num_classes, layers)


class _Small(nn.Module):
    config: Small
    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        activation = {"relu": nn.relu, "sigmoid": nn.sigmoid}[self.config.activation]
        half = self.config.depth // 2
        for index in range(self.config.depth):
            features = self.config.width * (1 if index < half else 2)
            x = self.layers.conv_norm(features, activation=activation)(x, train, mask)
            if index == half - 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = jnp.mean(x, axis=(1, 2))
        return self.layers.head(self.num_classes)(x).astype(self.layers.param_dtype)
