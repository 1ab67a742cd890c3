"""Norms for Linen networks: Flax's and jbn's."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.typing import DTypeLike

import jbn
import jbn.activations
import jbn.linen


class NetworkNorms(NamedTuple):
    """The norms of a Linen network and the activations that follow them.

    Attributes:
      norm: function that makes a norm before an activation.
      last_norm: function that makes a norm whose output is added to another output.
      activation: function that follows a norm.
      sum_activation: function that follows a sum.
      wrap: function that is applied to the whole network, such as `jax.checkpoint`.
    """

    norm: Callable[..., nn.Module]
    last_norm: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    sum_activation: Callable[[jax.Array], jax.Array] = nn.relu
    wrap: Callable[[Any], Any] = lambda network: network


def linen_norms(dtype: DTypeLike) -> dict[str, NetworkNorms]:
    """Returns norms by name, all in training mode.

    Args:
      dtype: dtype of activations, which modules with Flax's fields take as an option.
    """
    options = {"use_running_average": False, "momentum": 0.9, "dtype": dtype}
    flax, plain = (partial(library.BatchNorm, **options) for library in (nn, jbn.linen))

    def in_place(activation: jbn.activations.InvertibleActivation) -> Callable[..., nn.Module]:
        norm = jbn.inplace_batch_norm(activation=activation, decay=0.9)
        return partial(jbn.linen.Norm, norm, use_running_average=False)

    return {
        "jbn": NetworkNorms(plain, plain),
        "jbn, in place": NetworkNorms(
            in_place(jbn.activations.leaky_relu()),
            in_place(jbn.activations.identity()),
            lambda x: x,
            nn.leaky_relu,
        ),
        "jbn, policy": NetworkNorms(
            plain, plain, wrap=partial(jax.checkpoint, policy=jbn.save_norm_inputs)
        ),
        "flax.linen": NetworkNorms(flax, flax),
    }
