"""Norms for Linen networks: Flax's, and jbn's forms."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.typing import DTypeLike

import jbn
import jbn.invertible
import jbn.linen


class Variant(NamedTuple):
    """How a network normalises.

    Attributes:
      norm: makes the module that `activation` follows.
      last_norm: makes the module whose output is added to another's.
      activation: what follows a norm.
      sum_activation: what follows a sum.
      wrap: what is done to the whole network, as `jax.checkpoint`.
    """

    norm: Callable[..., nn.Module]
    last_norm: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    sum_activation: Callable[[jax.Array], jax.Array] = nn.relu
    wrap: Callable[[Any], Any] = lambda network: network


def variants(dtype: DTypeLike) -> dict[str, Variant]:
    """Returns variants by name, all of them in training mode.

    Args:
      dtype: of activations, which modules with Flax's fields have to be told.
    """
    options = {"use_running_average": False, "momentum": 0.9, "dtype": dtype}
    flax, plain = (partial(library.BatchNorm, **options) for library in (nn, jbn.linen))

    def in_place(activation: jbn.InvertibleActivation) -> Callable[..., nn.Module]:
        norm = jbn.inplace_batch_norm(activation=activation, decay=0.9)
        return partial(jbn.linen.Norm, norm, use_running_average=False)

    return {
        "jbn": Variant(plain, plain),
        "jbn, in place": Variant(
            in_place(jbn.invertible.leaky_relu()),
            in_place(jbn.invertible.identity),
            lambda x: x,
            nn.leaky_relu,
        ),
        "jbn, policy": Variant(
            plain, plain, wrap=partial(jax.checkpoint, policy=jbn.save_norm_inputs)
        ),
        "flax.linen": Variant(flax, flax),
    }
