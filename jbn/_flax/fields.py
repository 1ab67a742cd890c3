"""The fields and arguments of Flax's BatchNorm, in jbn's terms."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jbn._core.layout import Axes, Layout
from jbn._norms.batch import batch_norm
from jbn._norms.norm import BatchNormParams, Norm


def norm_from_fields(module: Any, params: BatchNormParams, x: jax.Array, **changes: Any) -> Norm:
    """Returns the norm that the fields of a module describe; `changes` replace its options."""
    options = {"decay": module.momentum, "dtype": module.dtype or _common_dtype(x, params)}
    same = ("axis", "epsilon", "axis_name", "axis_index_groups", "use_scale", "use_bias")
    return batch_norm(**options | {name: getattr(module, name) for name in same} | changes)


def require_same_params(layer: object, params: BatchNormParams, wanted: BatchNormParams) -> None:
    """Checks that a norm learns what a layer learns.

    Raises:
      ValueError: one has a scale or bias, the other has none.
    """
    for name, value in params._asdict().items():
        if (value is None) != (getattr(wanted, name) is None):
            one, other = ("layer", "norm") if value is not None else ("norm", "layer")
            raise ValueError(
                f"the {one} has a {name} and the {other} has none, in layer {layer}: choose "
                f"use_{name}={value is not None} for the norm."
            )


def position_mask(mask: ArrayLike | None, x: jax.Array, axis: Axes) -> jax.Array | None:
    """Returns a mask that broadcasts to all of `x`, as Flax's do, without its feature axes.

    Raises:
      ValueError: the mask differs between features of one position.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    axes = Layout.of(x, axis).axes
    shape = (1,) * (x.ndim - mask.ndim) + mask.shape
    if any(shape[a] != 1 for a in axes):
        raise ValueError(
            f"mask of shape {mask.shape} must have size 1 on the feature axes {axes} of x "
            f"{x.shape}: it marks positions, not single features."
        )
    return mask.reshape(tuple(n for a, n in enumerate(shape) if a not in axes))


def _common_dtype(x: jax.Array, params: BatchNormParams) -> jnp.dtype:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(x, *jax.tree.leaves(params))
