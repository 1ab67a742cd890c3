"""Writes converted layers into the norms of an NNX model."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

import jbn
from jbn._flax.load import match_paths, new_values
from jbn.convert import Layer
from jbn.nnx._batch_norm import BatchNorm
from jbn.nnx._module import modules_by_path
from jbn.nnx._norm import Norm


def load_norms(model: Any, layers: Mapping[str, Layer], *, strict: bool = True) -> None:
    """Writes parameters and statistics of layers of other libraries into the norms of a model.

    The norms are those of `jbn.nnx` and `flax.nnx.BatchNorm`. If a layer has no scale or no bias,
    ones or zeros are written. The model changes only if all layers fit.

    >>> import numpy as np
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs))
    >>> names = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    >>> layers = jbn.convert.read_all("torch", dict.fromkeys(names, np.full(3, 2.0, np.float32)))
    >>> jbn.nnx.load_norms(model, {"layers/1": layers["bn."]})
    >>> print(model.layers[1].mean[...])
    [2. 2. 2.]

    Args:
      model: an NNX model. Its variables change, and keep their shapes and dtypes. Fields of a state
        that a layer lacks, such as the `weight` of running batch norm, keep their values. Modules
        that `nnx.vmap` stacked take layers with stacked vectors.
      layers: a dictionary from the paths of norms, such as "block1/bn1", to layers. A "/" at the
        end of a path is ignored.
      strict: whether a norm of the model that is not in `layers` is an error.

    Raises:
      ValueError: `layers` has a path that is not a norm of the model, or with `strict` lacks one; a
        shape or the epsilon differs; or a layer has a scale or bias that the norm does not have.
    """
    modules = modules_by_path(model)
    norms = {p: m for p, m in modules.items() if isinstance(m, BatchNorm | Norm | nnx.BatchNorm)}
    values = {}
    for path, layer in match_paths(layers, norms, strict).items():
        _require_same_epsilon(path, layer, norms[path])
        old = {n: v[...] for n, v in vars(norms[path]).items() if isinstance(v, nnx.Variable)}
        values[path] = new_values(path, layer, old)
    for path, fields in values.items():
        for name, value in fields.items():
            getattr(norms[path], name)[...] = value


def _require_same_epsilon(path: str, layer: Layer, module: Any) -> None:
    options = module
    while not hasattr(options, "epsilon") and hasattr(options, "norm"):
        options = options.norm  # The norm of a module, or the norm that another norm wraps.
    wanted = jbn.batch_norm(**layer.options).epsilon
    if getattr(options, "epsilon", wanted) != wanted:
        raise ValueError(
            f"layers[{path!r}] has epsilon={wanted}, and the norm of the model has "
            f"epsilon={options.epsilon}: make the model with the epsilon of the layer."
        )
