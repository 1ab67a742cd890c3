"""Flattens nested arrays of other libraries, and converts them to NumPy."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def arrays_by_path(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a flat dictionary of the arrays, by path."""

    def is_vector(node: Any) -> bool:
        return isinstance(node, list) and all(isinstance(item, int | float) for item in node)

    parts: list[Any] = [arrays]
    # Linen's two collections hold different arrays of the same layers, under the same paths.
    if isinstance(arrays, Mapping) and "batch_stats" in arrays:
        parts = [arrays.get("params", {}), arrays["batch_stats"]]
    return {
        # Variables of NNX and boxes of Linen hold their arrays in an attribute with this name.
        jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value"): leaf
        for part in parts
        for keys, leaf in jax.tree_util.tree_leaves_with_path(part, is_leaf=is_vector)
    }


def prefixes_before(mean: str, leaves: Mapping[str, Any]) -> list[str]:
    """Returns the prefixes of the paths that end in the name of a running mean."""
    found = [path.removesuffix(mean) for path in leaves if path.endswith(mean)]
    return [prefix for prefix in found if not prefix or prefix[-1] in "./"]


def to_numpy(array: Any) -> np.ndarray:
    """Converts an array of any library to NumPy."""
    if hasattr(array, "detach"):  # A tensor of PyTorch, possibly a parameter or on a GPU.
        array = array.detach().cpu()
        if "bfloat16" in str(array.dtype):  # NumPy has no such dtype of its own.
            return np.asarray(jnp.from_dlpack(array))
    array = np.asarray(array)
    return array.astype(array.dtype.newbyteorder("="))  # JAX takes native byte order only.
