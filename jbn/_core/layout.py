"""The layout of x: its feature axes, its mask, and how feature vectors broadcast against it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes
from jax.typing import ArrayLike
from numpy.lib.array_utils import normalize_axis_tuple

Axes = int | Sequence[int]
Mask = ArrayLike | None
_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axes of an array hold features, and which positions are valid.

    Attributes:
      mask: boolean array with the rank of the array and size 1 on the feature axes, True at valid
        positions; None if all positions are valid.
      axes: the feature axes, sorted and not negative.
      reduced: all other axes, sorted. The first of them is the axis of examples.
      feature_shape: the sizes of the feature axes.
      values_per_example: the number of values that an example has for each feature.
      dtype: the dtype of the statistics: float64 for float64, float32 for all other dtypes.
    """

    mask: jax.Array | None
    axes: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    reduced: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    feature_shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    values_per_example: int = dataclasses.field(metadata=_STATIC)
    dtype: np.dtype = dataclasses.field(metadata=_STATIC)

    @classmethod
    def of(cls, x: jax.Array, axis: Axes, mask: Mask = None) -> "Layout":
        """Checks `x`, `axis` and `mask`, and returns the layout of `x`.

        Raises:
          TypeError: `x` has no real floating-point dtype, or `mask` is not boolean.
          ValueError: `axis` is empty, repeats an axis or names an axis that `x` does not have, or
            the shape of `mask` does not fit `x` (see `align`).
        """
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"x must have a real floating-point dtype, got {x.dtype}: cast it. For complex "
                "input, normalize the real part and the imaginary part."
            )
        try:
            axes = tuple(sorted(normalize_axis_tuple(axis, x.ndim)))
        except (TypeError, ValueError):
            axes = ()
        if not axes:
            raise ValueError(
                f"axis={axis} names an axis that x of shape {x.shape} does not have, repeats an "
                "axis, or is empty."
            )
        reduced = tuple(sorted(set(range(x.ndim)).difference(axes)))
        features = tuple(map(x.shape.__getitem__, axes))
        values = math.prod(map(x.shape.__getitem__, reduced[1:]))
        wide = np.result_type(np.float32, x.dtype)
        layout = cls(None, axes, reduced, features, values, wide)
        if mask is None:
            return layout
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_:
            raise TypeError(f"mask must be boolean, got {mask.dtype}: pass `mask != 0`.")
        return dataclasses.replace(layout, mask=layout.align("mask", mask, x))

    def align(self, name: str, values: jax.Array, x: jax.Array) -> jax.Array:
        """Reshapes values of examples or positions to the rank of `x`, with size 1 on feature axes.

        Args:
          name: the name of the argument, for error messages.
          values: an array of rank 1 with one value for each example; or an array with one axis for
            each axis of `x`, or for each axis of `x` that is not a feature axis. Each size equals
            that of `x` or is 1.
          x: the array that this layout describes.

        Raises:
          ValueError: `values` has another shape.
        """
        wanted = tuple(1 if a in self.axes else size for a, size in enumerate(x.shape))
        if values.ndim == x.ndim:
            shape = values.shape
        elif values.ndim == len(self.reduced) or (values.ndim == 1 and self.reduced):
            sizes = iter(values.shape)
            shape = tuple(next(sizes, 1) if a in self.reduced else 1 for a in range(x.ndim))
        else:
            shape = ()
        if len(shape) != x.ndim or any(n not in (1, w) for n, w in zip(shape, wanted, strict=True)):
            positions = tuple(x.shape[a] for a in self.reduced)
            raise ValueError(
                f"{name} of shape {values.shape} does not fit x of shape {x.shape} with features "
                f"on axes {self.axes}: it must have the shape {positions[:1]}, {positions} or "
                f"{wanted}, where each size may be 1. If it has a feature axis and is the same for "
                f"all features, pass one of them, such as {name}[..., :1]."
            )
        return jnp.broadcast_to(values.reshape(shape), wanted)

    def require_vectors(self, x: jax.Array, **vectors: jax.Array) -> None:
        """Checks that each of the named vectors holds one value per feature of `x`.

        Raises:
          ValueError: a vector has another shape.
        """
        for name, vector in vectors.items():
            if vector.shape != self.feature_shape:
                raise ValueError(
                    f"{name} has shape {vector.shape}, but x of shape {x.shape} has features of "
                    f"shape {self.feature_shape} on axes {self.axes}: initialize the norm with "
                    "that many features, or choose another axis."
                )

    def expand(self, *vectors: jax.Array) -> list[jax.Array]:
        """Adds axes of size 1 to feature vectors, so that they broadcast against x."""
        return list(map(functools.partial(jnp.expand_dims, axis=self.reduced), vectors))

    def where_valid(self, values: jax.Array) -> jax.Array:
        """Returns `values`, which have the shape of x, with 0 at masked positions."""
        if self.mask is None:
            return values
        return jnp.where(self.mask, values, jnp.zeros((), values.dtype))

    def minus(self, x: jax.Array, vector: jax.Array) -> jax.Array:
        """Returns `x - vector` in the dtype of the vector, with 0 at masked positions.

        Args:
          x: an array from `where_valid`.
          vector: `[*features]` values to subtract.
        """
        difference = x.astype(vector.dtype) - jnp.expand_dims(vector, self.reduced)
        # A product, because XLA on a CPU does not fuse a selection into the sum that follows.
        return difference if self.mask is None else difference * self.mask.astype(vector.dtype)

    def count(self, x: jax.Array) -> jax.Array:
        """Returns the number of valid positions of `x`."""
        if self.mask is not None:
            return jnp.sum(self.mask, dtype=jnp.int32).astype(self.dtype)
        return jnp.asarray(math.prod(map(x.shape.__getitem__, self.reduced)), self.dtype)

    def examples(self, count: jax.Array) -> jax.Array:
        """Converts a number of values of each feature into a number of examples."""
        return count / jnp.asarray(self.values_per_example, count.dtype)


def vary_like(vectors: Sequence[jax.Array], like: jax.Array) -> Sequence[jax.Array]:
    """Marks vectors of one shape as varying over every named axis that `like` varies over.

    `jax.shard_map` with `check_vma` would mark each vector separately. The vectors are stacked and
    marked together, so that the transpose is a single collective.
    """
    varying = jax.typeof(like).manual_axis_type.varying
    missing = varying - jax.typeof(vectors[0]).manual_axis_type.varying
    if not missing:
        return vectors
    return tuple(lax.pcast(jnp.stack(vectors), tuple(missing), to="varying"))


def with_automatic_axes(f: Callable, x: jax.Array, *out_axes: Iterable[int]) -> Callable:
    """Returns `f` such that `f(x, ...)` may index and reshape axes that explicit mesh axes shard.

    Args:
      f: the function.
      x: the first argument of `f`.
      *out_axes: for each result of `f`, the axes of `x` that the result has.
    """
    sharding = jax.typeof(x).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return f
    out = [
        NamedSharding(sharding.mesh, PartitionSpec(*(sharding.spec[a] for a in axes)))
        for axes in out_axes
    ]
    return auto_axes(f, out_sharding=tuple(out) if len(out) > 1 else out[0])
