"""The CNN of fast.ai's course (2019, notebook 07_batchnorm)."""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.layers import Layers


@dataclass(frozen=True)
class Strided:
    """A CNN with 8, 16, 32 and 32 channels, whose norms come after the activations.

    The last convolutions halve the image until it has 2x2 pixels.
    """

    name: Literal["strided"] = "strided"
    """Network: small, strided, airbench or resnet20."""

    def make(self, num_classes: int, layers: Layers) -> nn.Module:
        """Returns the network: `model(images, train, mask) -> logits`."""
        return _Strided(num_classes, layers)


class _Strided(nn.Module):
    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        widths, halvings = (8, 16, 32, 32), x.shape[1].bit_length() - 2
        for index, width in enumerate(widths):
            strides = 2 if index >= len(widths) - halvings else 1
            conv = self.layers.conv_norm(width, strides=strides, activation=nn.relu, norm_last=True)
            x = conv(x, train, mask)
        x = jnp.mean(x, axis=(1, 2))
        return self.layers.head(self.num_classes)(x).astype(self.layers.param_dtype)
