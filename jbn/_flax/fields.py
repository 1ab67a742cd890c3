"""Translates the fields and arguments of Flax's modules to those of jbn, and checks them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jbn._core.layout import Axes
from jbn._norms.batch import batch_norm
from jbn._norms.domain import domain_norm
from jbn._norms.norm import BatchNormParams, Norm, require_norm

Where = Callable[[str], bool]
"""A function that takes the path of a layer, joined by "/", and returns whether to pick it."""


def everywhere(path: str) -> bool:
    """Picks every layer."""
    return True


def require_where(where: object) -> None:
    """Checks an argument `where`, which picks layers.

    Raises:
      TypeError: `where` is not a function.
    """
    if not callable(where):
        raise TypeError(
            f"where={where!r} must be a function of the path of a layer, such as "
            "lambda path: 'block_1' in path."
        )


def calls_as_one_of(kind: type, others: tuple[type, ...]) -> bool:
    """Returns whether a type of modules has the `__call__` of one of the others."""
    return any(kind.__call__ is other.__call__ for other in others)


def as_floating(x: ArrayLike) -> jax.Array:
    """Returns `x` as an array; integers become float32, as in Flax's norms."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def norm_from_fields(module: Any, params: BatchNormParams, x: ArrayLike) -> Norm:
    """Returns the norm that the fields of a BatchNorm describe."""
    same = ("axis", "epsilon", "axis_name", "axis_index_groups", "use_scale", "use_bias")
    options = {name: getattr(module, name) for name in same}
    dtype = module.dtype or _common_dtype(x, params)
    return batch_norm(decay=module.momentum, dtype=dtype, **options)


def per_domain(norm: Norm | domain_norm) -> Norm:
    """Returns the norm inside of a `domain_norm`, or the norm itself."""
    return norm.norm if isinstance(norm, domain_norm) else norm


def stored_fields(norm: Norm | domain_norm, state: Any) -> dict[str, jax.Array]:
    """Returns the fields of a state that modules store; the count only if the norm needs it."""
    fields = state._asdict()
    if not per_domain(norm).needs_count:
        fields.pop("count", None)
    return fields


def stack_like(stacked: jax.Array, feature_shape: tuple[int, ...], field: jax.Array) -> jax.Array:
    """Returns a field of the state of one layer, repeated for a stack of layers.

    Args:
      stacked: a field of the stack.
      feature_shape: the shape of that field in one layer.
      field: `[]` or `[*features]` field of one layer.
    """
    shape, rank = stacked.shape, len(feature_shape)
    starts = range(stacked.ndim - rank, -1, -1)
    start = next(at for at in starts if shape[at : at + rank] == feature_shape)
    before, after = shape[:start], shape[start + rank :]
    field = jnp.expand_dims(field, (*range(len(before)), *range(-len(after), 0)))
    return jnp.broadcast_to(field, before + field.shape[start : field.ndim - len(after)] + after)


def require_module_norm(norm: object) -> None:
    """Checks the norm of a module, or the norm that replaces it.

    Raises:
      TypeError: `norm` is not a `jbn.Norm`.
    """
    if isinstance(norm, domain_norm):
        raise TypeError(f"norm={norm} has domains: use DomainNorm, whose calls take the domain.")
    require_norm(norm)


def require_domain_norm(norm: object) -> None:
    """Checks the norm of a DomainNorm.

    Raises:
      TypeError: `norm` is not a `jbn.domain_norm`.
    """
    if not isinstance(norm, domain_norm):
        raise TypeError(f"norm={norm!r} must be a jbn.domain_norm(norm, num_domains).")


def require_initializers_fit(params: BatchNormParams, initializers: Mapping[str, Any]) -> None:
    """Checks that initializers are given only for parameters that a norm has.

    Raises:
      ValueError: there is an initializer for a scale or bias that the norm does not have.
    """
    for name, value in params._asdict().items():
        if value is None and initializers[name] is not None:
            raise ValueError(
                f"{name}_init={initializers[name]!r} is given, but the norm has no {name}: choose "
                f"use_{name}=True for the norm, or leave {name}_init out."
            )


def require_same_params(layer: str, params: BatchNormParams, wanted: BatchNormParams) -> None:
    """Checks that a norm and a layer both have a scale or not, and both have a bias or not.

    Raises:
      ValueError: one has a scale or bias, and the other has none.
    """
    for name, value in params._asdict().items():
        if (value is None) != (getattr(wanted, name) is None):
            one, other = ("layer", "norm") if value is not None else ("norm", "layer")
            raise ValueError(
                f"the {one} has a {name} and the {other} has none, in layer {layer!r}: choose "
                f"use_{name}={value is not None} for the norm."
            )


def require_same_axis(layer: str, axis: Axes, norm: Norm | domain_norm, ndim: int = 0) -> None:
    """Checks that a norm has the feature axes of a layer; `ndim` is the rank of x, if known.

    Raises:
      ValueError: the norm has other feature axes.
    """

    def positions(axes: Axes) -> list[int]:
        return sorted(int(a) + ndim if a < 0 else int(a) for a in np.atleast_1d(axes))

    other = per_domain(norm).axis
    if positions(axis) != positions(other):
        raise ValueError(
            f"layer {layer!r} has its features on axis={axis} and the norm on axis={other}: "
            f"choose axis={axis} for the norm, or exclude the layer with `where`."
        )


def _common_dtype(x: ArrayLike, params: BatchNormParams) -> jnp.dtype:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(x, *jax.tree.leaves(params))
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.dtype(jnp.float32)
