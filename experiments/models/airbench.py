"""The network of airbench94 (Jordan 2024, https://arxiv.org/abs/2404.00498)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from experiments.models.layers import Layers, torch_uniform


@dataclass(frozen=True)
class Airbench:
    """The network of airbench94: a frozen whitening layer and three groups of two convolutions."""

    name: Literal["airbench"] = "airbench"
    """Network: small, strided, airbench or resnet20."""
    widths: tuple[int, int, int] = (64, 256, 256)
    """Channels of the three groups."""
    whiten_epochs: float = 3.0
    """Number of epochs after which the whitening layer's bias is frozen."""

    def make(self, num_classes: int, layers: Layers) -> nn.Module:
        """Returns the network: `model(images, train, mask) -> logits`."""
        return _Airbench(self, num_classes, layers)


class _Airbench(nn.Module):
    config: Airbench
    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        layers, gelu = self.layers, partial(nn.gelu, approximate=False)
        x = nn.Conv(
            8 * x.shape[-1],
            (2, 2),
            padding="VALID",
            dtype=layers.dtype,
            param_dtype=layers.param_dtype,
            name="whiten",
        )(x)
        x = gelu(x)
        for width in self.config.widths:
            for pool in (True, False):
                conv = layers.conv_norm(
                    width, kernel_init=identity_first, pool=pool, activation=gelu
                )
                x = conv(x, train, mask)
        x = nn.max_pool(x, (3, 3), (3, 3)).reshape(x.shape[0], -1)
        head = layers.head(self.num_classes, use_bias=False, kernel_init=torch_uniform)
        return head(x).astype(layers.param_dtype) / 9


def identity_first(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Initializes a kernel [height, width, in, out]; its first `in` filters copy a channel each."""
    height, width, inputs, outputs = shape
    kernel = torch_uniform(key, shape, dtype)
    n = min(inputs, outputs)
    identity = jnp.zeros((height, width, inputs, n), dtype)
    identity = identity.at[height // 2, width // 2, jnp.arange(n), jnp.arange(n)].set(1)
    return kernel.at[..., :n].set(identity)


def whitening_kernel(images: ArrayLike, epsilon: float = 5e-4) -> jax.Array:
    """Returns filters [2, 2, channels, 8 * channels] that whiten 2x2 patches, and their negatives.

    Args:
      images: `[n, height, width, channels]`, normalized.
      epsilon: added to the eigenvalues of the patches' uncentered second moment.
    """
    images = jnp.asarray(images)
    height, width, channels = images.shape[1:]
    corners = [images[:, i : height - 1 + i, j : width - 1 + j] for i in (0, 1) for j in (0, 1)]
    patches = jnp.stack(corners, axis=3).reshape(-1, 4 * channels)
    values, vectors = jnp.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / jnp.sqrt(values + epsilon)).reshape(2, 2, channels, 4 * channels)
    return jnp.concatenate([filters, -filters], axis=-1)
