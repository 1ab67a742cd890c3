"""Writes converted layers into the variables of a Linen model."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from jax.tree_util import DictKey

from jbn._flax.load import match_paths, new_values
from jbn.convert import Layer

_COLLECTIONS = ("params", "batch_stats")

Variables = TypeVar("Variables", bound=Mapping[str, Any])


def load_norms(
    variables: Variables, layers: Mapping[str, Layer], *, strict: bool = True
) -> Variables:
    """Writes parameters and statistics of layers of other libraries into variables.

    The norms of a model are found wherever the collection `batch_stats` has a mean and a var: they
    are those of `jbn.linen` and `flax.linen.BatchNorm`. If a layer has no scale or no bias, ones or
    zeros are written. The variables do not hold the options of a layer, such as its epsilon: make
    the modules with the options in `layer.options`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
    >>> model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True)])
    >>> variables = model.init(jax.random.key(0), jnp.ones((8, 2)))
    >>> names = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    >>> layers = jbn.convert.read_all("torch", dict.fromkeys(names, np.full(3, 2.0, np.float32)))
    >>> variables = jbn.linen.load_norms(variables, {"layers_1": layers["bn."]})
    >>> print(variables["batch_stats"]["layers_1"]["mean"])
    [2. 2. 2.]

    Args:
      variables: the variables of the model, with the collections `params` and `batch_stats`, for
        instance from `model.init`, or from `jax.eval_shape` of it. Modules that `nn.scan` or
        `nn.vmap` stacked take layers with stacked vectors.
      layers: a dictionary from the paths of norms, such as "block1/bn1", to layers. A "/" at the
        end of a path is ignored.
      strict: whether a norm of the model that is not in `layers` is an error.

    Returns:
      The variables with new values, in the same shapes and dtypes. Fields of a state that a layer
      lacks, such as the `weight` of running batch norm, keep their values.

    Raises:
      ValueError: `layers` has a path that is not a norm of the model, or with `strict` lacks one; a
        shape differs; or a layer has a scale or bias that the norm does not have.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in _COLLECTIONS}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
        collection, path, name = _place(keys)
        found.setdefault(collection, {}).setdefault(path, {})[name] = leaf
    norms = {
        path: found["params"].get(path, {}) | stats
        for path, stats in found["batch_stats"].items()
        if {"mean", "var"} <= stats.keys()
    }
    layers = match_paths(layers, norms, strict)
    values = {path: new_values(path, layer, norms[path]) for path, layer in layers.items()}

    def replace(keys: Any, leaf: Any) -> Any:
        collection, path, name = _place(keys)
        return values.get(path, {}).get(name, leaf) if collection in _COLLECTIONS else leaf

    return jax.tree.map_with_path(replace, variables)


def _place(keys: Any) -> tuple[str, str, str]:
    """Returns the collection, the path of the module and the name of a variable."""
    # Boxes, such as those of `nn.with_partitioning`, add keys of another type.
    collection, *path, name = [str(key.key) for key in keys if isinstance(key, DictKey)]
    return collection, "/".join(path), name
