"""The networks, in Flax Linen, with any norm or without one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import jbn
import jbn.linen
from experiments.config import Config, ModelConfig

torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default initializer: uniform from -1/sqrt(fan_in) to 1/sqrt(fan_in)."""


Norm = jbn.Norm | Callable[..., nn.Module] | None
"""A norm of jbn, a function that makes another library's module, or None."""


def _identity(x: jax.Array) -> jax.Array:
    return x


def make_model(config: Config, num_classes: int, norm: Norm) -> nn.Module:
    """Returns the network of the configuration: `model(images, train, mask) -> logits`."""
    dtype = jnp.dtype(config.precision)
    activates = config.norm.method == "inplace"
    match config.model.name:
        case "small":
            return SmallCNN(num_classes, norm, dtype, config.model, activates)
        case "strided":
            return StridedCNN(num_classes, norm, dtype, activates)
        case "airbench":
            return Airbench(num_classes, norm, dtype, config.model.widths, activates)
        case "resnet20":
            return ResNet20(num_classes, norm, dtype, activates)


class ConvNorm(nn.Module):
    """A convolution without bias and a norm; without a norm, a convolution with bias."""

    features: int
    norm: Norm
    dtype: Any
    strides: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    between: Callable[[jax.Array], jax.Array] = _identity
    """Function that is applied between the convolution and the norm."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """Applies both to `x` [batch, height, width, channels]; `mask` is [batch, 1, 1]."""
        x = nn.Conv(
            self.features,
            (3, 3),
            (self.strides, self.strides),
            use_bias=self.norm is None,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
        )(x)
        x = self.between(x)
        if isinstance(self.norm, jbn.Norm):
            return jbn.linen.Norm(self.norm, name="norm")(x, not train, mask=mask)
        return x if self.norm is None else self.norm(name="norm")(x)


class SmallCNN(nn.Module):
    """A CNN for small images, by default with convolutions of 32, 32, 64 and 64 channels."""

    num_classes: int
    norm: Norm
    dtype: Any
    config: ModelConfig
    norm_activates: bool = False
    """Whether the norm includes the activation that follows it."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits of images [batch, height, width, channels]; `mask` is [batch, 1, 1]."""
        activation = {"relu": nn.relu, "sigmoid": nn.sigmoid}[self.config.activation]
        activation = _identity if self.norm_activates else activation
        half = self.config.depth // 2
        for index in range(self.config.depth):
            features = self.config.width * (1 if index < half else 2)
            x = activation(ConvNorm(features, self.norm, self.dtype)(x, train, mask))
            if index == half - 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class StridedCNN(nn.Module):
    """The CNN of fast.ai's course (2019, notebook 07_batchnorm), with norms after the activations.

    It has convolutions of 8, 16, 32 and 32 channels. The last ones halve the image until it has 2x2
    pixels.
    """

    num_classes: int
    norm: Norm
    dtype: Any
    norm_activates: bool = False
    """Whether the norm includes the activation, which comes before the norm otherwise."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits of images [batch, height, width, channels]; `mask` is [batch, 1, 1]."""
        widths, halvings = (8, 16, 32, 32), int(np.log2(x.shape[1])) - 1
        activation = _identity if self.norm_activates else nn.relu
        conv = partial(ConvNorm, norm=self.norm, dtype=self.dtype, between=activation)
        for index, width in enumerate(widths):
            strides = 2 if index >= len(widths) - halvings else 1
            x = conv(width, strides=strides)(x, train, mask)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class Airbench(nn.Module):
    """The network of airbench94: a frozen whitening layer and three groups of two convolutions."""

    num_classes: int
    norm: Norm
    dtype: Any
    widths: Sequence[int]
    norm_activates: bool = False
    """Whether the norm includes the activation that follows it."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits of images [batch, 32, 32, 3]; `mask` is [batch, 1, 1]."""
        gelu = partial(nn.gelu, approximate=False)
        activation = _identity if self.norm_activates else gelu
        # PyTorch draws biases and weights from the same range, which depends on the 12 inputs.
        bias_init = nn.initializers.uniform(2 / np.sqrt(12))
        x = nn.Conv(
            24,
            (2, 2),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=torch_uniform,
            bias_init=lambda *a: bias_init(*a) - 1 / np.sqrt(12),
            name="whiten",
        )(x)
        x = gelu(x)
        conv = partial(ConvNorm, norm=self.norm, dtype=self.dtype, kernel_init=identity_first)
        for width in self.widths:
            x = conv(width, between=lambda x: nn.max_pool(x, (2, 2), (2, 2)))(x, train, mask)
            x = activation(x)
            x = activation(conv(width)(x, train, mask))
        x = nn.max_pool(x, (3, 3), (3, 3)).reshape(x.shape[0], -1)
        head = nn.Dense(
            self.num_classes, use_bias=False, dtype=self.dtype, kernel_init=torch_uniform
        )
        return head(x).astype(jnp.float32) / 9


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10 with shortcuts that have no parameters (option A)."""

    num_classes: int
    norm: Norm
    dtype: Any
    norm_activates: bool = False
    """Whether the norm includes the activation that follows it."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits of images [batch, 32, 32, 3]; `mask` is [batch, 1, 1]."""
        conv = partial(ConvNorm, norm=self.norm, dtype=self.dtype)
        activation = _identity if self.norm_activates else nn.relu
        x = activation(conv(16)(x, train, mask))
        for width in (16, 32, 64):
            for _ in range(3):
                strides = 1 if width == x.shape[-1] else 2
                shortcut = x[:, ::strides, ::strides]
                extra = width - x.shape[-1]
                shortcut = jnp.pad(shortcut, ((0, 0),) * 3 + ((extra // 2, extra - extra // 2),))
                x = activation(conv(width, strides=strides)(x, train, mask))
                x = nn.relu(conv(width)(x, train, mask) + shortcut)
        x = jnp.mean(x, axis=(1, 2))
        head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.he_normal())
        return head(x).astype(jnp.float32)


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
