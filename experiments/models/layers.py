"""The layers that the networks are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import jbn
import jbn.linen
from experiments.norms import Norm

Activation = Callable[[jax.Array], jax.Array]

torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default initializer: uniform from -1/sqrt(fan_in) to 1/sqrt(fan_in)."""


def identity(x: jax.Array) -> jax.Array:
    """Returns x."""
    return x


@dataclass(frozen=True)
class Layers:
    """Makes the layers of a network, which share their norm and their dtypes.

    Attributes:
      norm: the norm, or None.
      norm_activates: whether the norm includes the activation after it.
      dtype: dtype of the arithmetic. Norms compute in float32 at least.
      param_dtype: dtype of the parameters, the statistics and the logits.
    """

    norm: Norm
    norm_activates: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def conv_norm(self, features: int, **options: Any) -> "ConvNorm":
        """Returns a convolution with norm and activation."""
        return ConvNorm(features, self, **options)

    def head(self, num_classes: int, **options: Any) -> nn.Dense:
        """Returns the last layer, whose results the network converts to `param_dtype`."""
        return nn.Dense(num_classes, dtype=self.dtype, param_dtype=self.param_dtype, **options)


class ConvNorm(nn.Module):
    """A 3x3 convolution, a norm and an activation; without a norm, the convolution has a bias."""

    features: int
    layers: Layers
    strides: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    pool: bool = False
    """Whether the maxima of 2x2 squares follow the convolution."""
    activation: Activation = identity
    norm_last: bool = False
    """Whether the norm comes after the activation."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """Applies them to `x` [batch, height, width, channels]; `mask` is [batch, 1, 1]."""
        norm, activation = self.layers.norm, self.activation
        if self.layers.norm_activates:
            activation = identity
        x = nn.Conv(
            self.features,
            (3, 3),
            (self.strides, self.strides),
            padding=1,
            use_bias=norm is None,
            dtype=self.layers.dtype,
            param_dtype=self.layers.param_dtype,
            kernel_init=self.kernel_init,
        )(x)
        if self.pool:
            x = nn.max_pool(x, (2, 2), (2, 2))
        if self.norm_last:
            x = activation(x)
        if isinstance(norm, jbn.Norm):
            named = jbn.linen.Norm(norm, param_dtype=self.layers.param_dtype, name="norm")
            x = named(x, not train, mask=mask)
        elif norm is not None:
            x = norm(param_dtype=self.layers.param_dtype, name="norm")(x)
        return x if self.norm_last else activation(x)
