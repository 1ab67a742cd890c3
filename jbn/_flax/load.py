"""Which values of converted layers go into which variables of a model's norms."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jbn.convert import Layer


def match_paths(
    layers: Mapping[str, Layer], norms: Iterable[str], strict: bool
) -> dict[str, Layer]:
    """Returns the layers by the paths of the model's norms.

    Raises:
      ValueError: `layers` has a path that is not in `norms`, or with `strict`, lacks one.
    """
    layers = {path.removesuffix("/"): layer for path, layer in layers.items()}
    norms = list(norms)
    if unknown := sorted(set(layers) - set(norms)):
        raise ValueError(f"layers has {unknown}, which are no norms of the model: it has {norms}.")
    missing = [path for path in norms if path not in layers]
    if strict and missing:
        raise ValueError(
            f"layers has nothing for the norms {missing} of the model; strict=False leaves them as "
            "they are."
        )
    return layers


def new_values(path: str, layer: Layer, old: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the values of a norm's variables, by name, in the shapes and dtypes of the old ones.

    Args:
      path: of the norm.
      layer: what it shall hold.
      old: the arrays of its variables, such as scale, bias, mean, var and count, possibly abstract.

    Raises:
      ValueError: a shape differs, or the layer has a scale or bias and the norm has none.
    """
    features = layer.state.mean
    fields: dict[str, Any] = {**layer.state._asdict(), **layer.params._asdict()}
    for name, neutral in (("scale", jnp.ones_like), ("bias", jnp.zeros_like)):
        if fields[name] is None:
            fields[name] = neutral(features)
        elif name not in old:
            raise ValueError(
                f"layers[{path!r}] has a {name} and the norm of the model has none: make it with "
                f"use_{name}=True."
            )
    for name in ("scale", "bias", "mean", "var"):
        if name in old and fields[name].shape != old[name].shape:
            raise ValueError(
                f"layers[{path!r}] has {name} of shape {fields[name].shape}, and the norm of the "
                f"model has {old[name].shape}."
            )
    return {
        name: _rounded(jnp.broadcast_to(fields[name], array.shape), array.dtype)
        for name, array in old.items()
        if name in fields
    }


def _rounded(value: jax.Array, dtype: Any) -> jax.Array:
    return (jnp.rint(value) if jnp.issubdtype(dtype, jnp.integer) else value).astype(dtype)
