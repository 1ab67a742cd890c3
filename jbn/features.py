"""Which axes of an array hold features, and how vectors and masks line up with them."""

import math
from collections.abc import Sequence
from typing import overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Axes = int | Sequence[int]


def feature_axes(x: jax.Array, axis: Axes) -> tuple[int, ...]:
    """Returns the feature axes of `x`, non-negative and in the order in which `x` has them.

    Raises:
      TypeError: `x` is not of a real floating-point dtype.
      ValueError: `axis` is empty, repeats an axis or names one that `x` does not have.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x must be real floating point, got {x.dtype}: cast it, or for complex input "
            "normalise the real and the imaginary part."
        )
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes or any(not -x.ndim <= a < x.ndim for a in axes):
        raise ValueError(f"axis={axis} does not name axes of x, which has shape {x.shape}.")
    axes = tuple(sorted(a % x.ndim for a in axes))
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis={axis} repeats an axis of x, which has shape {x.shape}.")
    return axes


def reduced_axes(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes of `x` that are not feature axes."""
    return tuple(a for a in range(x.ndim) if a not in axes)


def feature_shape(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of one value per feature of `x`."""
    return tuple(x.shape[a] for a in axes)


def require_feature_shape(x: jax.Array, axes: tuple[int, ...], **vectors: jax.Array | None) -> None:
    """Checks that each of the named vectors holds one value per feature of `x`.

    Raises:
      ValueError: one does not.
    """
    shape = feature_shape(x, axes)
    for name, vector in vectors.items():
        if vector is not None and vector.shape != shape:
            raise ValueError(
                f"{name} has shape {vector.shape}, but the features of x {x.shape} on axes {axes} "
                f"have shape {shape}: initialise with that many features, or choose another axis."
            )


def num_examples(x: jax.Array, axis: Axes) -> int:
    """Returns the size of the first axis of `x` that is not a feature axis; 1 if there is none."""
    reduced = reduced_axes(x, feature_axes(x, axis))
    return x.shape[reduced[0]] if reduced else 1


def values_per_example(x: jax.Array, axis: Axes) -> int:
    """Returns how many values of each feature an example has."""
    reduced = reduced_axes(x, feature_axes(x, axis))
    return math.prod(x.shape[a] for a in reduced[1:])


def along_features(vector: jax.Array, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Reshapes one value per feature so that it broadcasts against `x`."""
    return jnp.expand_dims(vector, reduced_axes(x, axes))


@overload
def along_positions(mask: None, x: jax.Array, axes: tuple[int, ...]) -> None: ...
@overload
def along_positions(mask: ArrayLike, x: jax.Array, axes: tuple[int, ...]) -> jax.Array: ...
def along_positions(mask, x, axes):
    """Broadcasts a mask over the positions of `x` and gives it feature axes of size 1.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: `mask` does not broadcast to the shape of `x` without its feature axes.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be boolean, got {mask.dtype}: pass `mask != 0`, or the like.")
    positions = tuple(x.shape[a] for a in reduced_axes(x, axes))
    try:
        mask = jnp.broadcast_to(mask, positions)
    except ValueError:
        raise ValueError(
            f"mask of shape {mask.shape} does not broadcast to {positions}, the shape of x "
            f"{x.shape} without its feature axes {axes}."
        ) from None
    return jnp.expand_dims(mask, axes)


def where_valid(mask: jax.Array | None, values: jax.Array) -> jax.Array:
    """Returns `values`, with 0 where the mask hides them."""
    return values if mask is None else jnp.where(mask, values, jnp.zeros((), values.dtype))


def statistics_dtype(*arrays: jax.Array) -> jnp.dtype:
    """Returns the dtype for statistics of the arrays: float64 if one of them is, else float32."""
    return jnp.dtype(jnp.float64 if any(a.dtype == jnp.float64 for a in arrays) else jnp.float32)
