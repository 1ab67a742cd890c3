"""What the fields and arguments of Flax's BatchNorm mean in jbn's terms, for both front ends."""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jbn import features, shards
from jbn.norms.batch import batch_norm
from jbn.norms.norm import BatchNormParams, Norm


class BatchNormFields(Protocol):
    """The fields that Linen's and NNX's BatchNorm have in common."""

    axis: features.Axes
    momentum: float
    epsilon: float
    dtype: DTypeLike | None
    use_bias: bool
    use_scale: bool
    axis_name: shards.AxisName | None
    axis_index_groups: Any


def norm_of(fields: BatchNormFields, params: BatchNormParams, x: jax.Array, **changes: Any) -> Norm:
    """Returns the norm that the fields describe; `changes` replace options of `batch_norm`."""
    options: dict[str, Any] = dict(  # noqa: C408
        axis=fields.axis if isinstance(fields.axis, int) else tuple(fields.axis),
        decay=fields.momentum,
        epsilon=fields.epsilon,
        axis_name=fields.axis_name,
        axis_index_groups=shards.freeze_groups(fields.axis_index_groups),
        use_scale=fields.use_scale,
        use_bias=fields.use_bias,
        dtype=fields.dtype or _common_dtype(x, params),
    )
    return _same_norm(**(options | changes))


# Layers with the same fields share a norm, and by it a trace.
_same_norm = functools.lru_cache(batch_norm)


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


def position_mask(mask: ArrayLike | None, x: jax.Array, axis: features.Axes) -> jax.Array | None:
    """Drops the feature axes from a mask that, in Flax's sense, broadcasts to all of `x`.

    Raises:
      ValueError: the mask tells features of one position apart.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    axes = features.feature_axes(x, axis)
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
