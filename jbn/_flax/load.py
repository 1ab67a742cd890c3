"""Matches converted layers with the norms of a model, and their values with its variables."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jbn.convert import Layer


def match_paths(
    layers: Mapping[str, Layer], norms: Iterable[str], strict: bool
) -> dict[str, Layer]:
    """Returns the layers by path, after a check of their paths against those of the norms.

    Raises:
      ValueError: `layers` has a path that is not in `norms`, or with `strict`, lacks one.
    """
    layers = {path.removesuffix("/"): layer for path, layer in layers.items()}
    norms = list(norms)
    if unknown := sorted(set(layers) - set(norms)):
        raise ValueError(
            f"layers has {unknown}, which are not norms of the model. The model has {norms}."
        )
    missing = [path for path in norms if path not in layers]
    if strict and missing:
        raise ValueError(
            f"layers has nothing for the norms {missing} of the model; strict=False leaves them "
            "unchanged."
        )
    return layers


def new_values(path: str, layer: Layer, old: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the values of a norm's variables, by name, in the shapes and dtypes of the old ones.

    Args:
      path: the path of the norm, for error messages.
      layer: the layer with the new values.
      old: the arrays of the norm's variables, such as scale, bias, mean, var and count; they may be
        abstract.

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
                f"layers[{path!r}] has a {name} and the norm of the model has none: make the norm "
                f"with use_{name}=True."
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
