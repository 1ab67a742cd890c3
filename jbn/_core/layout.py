"""How x is laid out: its feature axes, its mask, and how vectors line up with it."""

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
      mask: boolean with as many axes as the array, of size 1 on the feature axes, True at valid
        positions; None if all are valid.
      axes: the feature axes, not negative and sorted.
      reduced: all other axes, sorted. Examples lie on the first of them.
      feature_shape: the shape of one value per feature.
      values_per_example: the number of values of each feature in an example.
      dtype: of the statistics: float64 for float64, float32 for all other dtypes.
    """

    mask: jax.Array | None
    axes: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    reduced: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    feature_shape: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    values_per_example: int = dataclasses.field(metadata=_STATIC)
    dtype: np.dtype = dataclasses.field(metadata=_STATIC)

    @classmethod
    def of(cls, x: jax.Array, axis: Axes, mask: Mask = None) -> "Layout":
        """Returns the layout of `x`, after all checks of `x`, `axis` and `mask`.

        Raises:
          TypeError: `x` is not of a real floating-point dtype, or `mask` is not boolean.
          ValueError: `axis` is empty, repeats an axis or names one that `x` does not have, or
            the shape of `mask` does not fit `x`, see `align`.
        """
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"x must be real floating point, got {x.dtype}: cast it, or for complex input "
                "normalize the real and the imaginary part."
            )
        try:
            axes = tuple(sorted(normalize_axis_tuple(axis, x.ndim)))
        except (TypeError, ValueError):
            axes = ()
        if not axes:
            raise ValueError(
                f"axis={axis} names no axis of x, which has shape {x.shape}, or repeats one."
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
        """Returns values of examples or positions with the axes of `x`, of size 1 on feature axes.

        Args:
          name: of the argument, for the message of an error.
          values: of rank 1, one for each example; or with an axis for each axis of `x` that is not
            a feature axis, or for each axis of `x`, each axis of its size in `x` or of size 1.
          x: the array that the layout is of.

        Raises:
          ValueError: the shape of `values` is another.
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
                f"{wanted}, where each size may be 1. If it is the same for all features of a "
                f"position, pass one of them, such as {name}[..., :1]."
            )
        return jnp.broadcast_to(values.reshape(shape), wanted)

    def require_vectors(self, x: jax.Array, **vectors: jax.Array) -> None:
        """Checks that each of the named vectors holds one value per feature of `x`.

        Raises:
          ValueError: one does not.
        """
        for name, vector in vectors.items():
            if vector.shape != self.feature_shape:
                raise ValueError(
                    f"{name} has shape {vector.shape}, but the features of x {x.shape} on axes "
                    f"{self.axes} have shape {self.feature_shape}: initialize with that many "
                    "features, or choose another axis."
                )

    def expand(self, *vectors: jax.Array) -> list[jax.Array]:
        """Returns vectors of the features with the axes of x, so that they broadcast against it."""
        return list(map(functools.partial(jnp.expand_dims, axis=self.reduced), vectors))

    def where_valid(self, values: jax.Array) -> jax.Array:
        """Returns `values` of the shape of x, with 0 where the mask hides them."""
        if self.mask is None:
            return values
        return jnp.where(self.mask, values, jnp.zeros((), values.dtype))

    def minus(self, x: jax.Array, vector: jax.Array) -> jax.Array:
        """Returns `x - vector`, with 0 where the mask hides x, in the dtype of the vector.

        Args:
          x: from `where_valid`.
          vector: `[*features]`.
        """
        difference = x.astype(vector.dtype) - jnp.expand_dims(vector, self.reduced)
        # By a product, since a CPU's compiler does not take a selection into its sums.
        return difference if self.mask is None else difference * self.mask.astype(vector.dtype)

    def count(self, x: jax.Array) -> jax.Array:
        """Returns the number of valid positions of `x`."""
        if self.mask is not None:
            return jnp.sum(self.mask, dtype=jnp.int32).astype(self.dtype)
        return jnp.asarray(math.prod(map(x.shape.__getitem__, self.reduced)), self.dtype)

    def examples(self, count: jax.Array) -> jax.Array:
        """Returns the number of examples that `count` values are."""
        return count / jnp.asarray(self.values_per_example, count.dtype)


def vary_like(vectors: Sequence[jax.Array], like: jax.Array) -> Sequence[jax.Array]:
    """Marks vectors of one shape as varying over every named axis that `like` varies over.

    `jax.shard_map` with `check_vma` would do so for each of them; done for a stack of them, the
    transpose is a single collective.
    """
    varying = jax.typeof(like).manual_axis_type.varying
    missing = varying - jax.typeof(vectors[0]).manual_axis_type.varying
    if not missing:
        return vectors
    return tuple(lax.pcast(jnp.stack(vectors), tuple(missing), to="varying"))


def with_automatic_axes(f: Callable, x: jax.Array, *out_axes: Iterable[int]) -> Callable:
    """Lets `f(x, ...)` index and reshape sharded axes, which explicit mesh axes would refuse.

    Args:
      f: the function.
      x: its first argument.
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
