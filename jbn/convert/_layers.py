"""Reads layers of other libraries as layers of jbn, and writes them."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jbn._norms.batch import BatchNormState, batch_norm
from jbn._norms.norm import BatchNormParams
from jbn.convert import _layouts
from jbn.convert._arrays import arrays_by_path, prefixes_before, to_numpy
from jbn.convert._layouts import LayoutName


class Layer(NamedTuple):
    """A batch norm layer of jbn.

    Attributes:
      params: scale and bias, `[*features]` or None, in the dtypes of the arrays that were read.
      state: running statistics, `[*features]`, in float32 or wider.
      options: keyword arguments of `jbn.batch_norm`. Options with default values may be missing.
    """

    params: BatchNormParams
    state: BatchNormState
    options: Mapping[str, Any]


class Foreign(NamedTuple):
    """A batch norm layer of another library.

    Attributes:
      arrays: the arrays of the layer, by path.
      arguments: keyword arguments for the constructor of the layer.
    """

    arrays: dict[str, np.ndarray]
    arguments: dict[str, Any]


def read(
    layout: LayoutName, arrays: Mapping[str, Any], *, prefix: str = "", **arguments: Any
) -> Layer:
    """Reads a layer of another library.

    >>> import numpy as np
    >>> arrays = {
    ...     "bn1.weight": np.ones(3, np.float32),
    ...     "bn1.bias": np.zeros(3, np.float32),
    ...     "bn1.running_mean": np.full(3, 5.0, np.float32),
    ...     "bn1.running_var": np.ones(3, np.float32),
    ... }
    >>> layer = jbn.convert.read("torch", arrays, prefix="bn1.", eps=1e-3)
    >>> print(layer.state.mean, layer.options["epsilon"])
    [5. 5. 5.] 0.001

    Args:
      layout: the library. The documentation of the module `jbn.convert` describes the arrays of
        each library.
      arrays: the arrays by path, of any type that NumPy can convert. They may be nested, and may be
        those of a whole model.
      prefix: the start of the paths of this layer, such as "bn1." or "block/bn1/".
      **arguments: the arguments of the layer's constructor that differ from its defaults: the
        weight of the averages, epsilon, and whether there are a scale and a bias, under their names
        in that library.

    Returns:
      The `Layer`.

    Raises:
      KeyError: there is no such layer, or one of its arrays is missing.
      TypeError: an argument is unknown or missing, or an array is not real floating point.
      ValueError: `layout` is unknown, an argument is out of range, the shapes of the arrays differ,
        statistics are not finite, or a variance is negative.
    """
    return _read(layout, arrays_by_path(arrays), prefix, arguments)


def prefixes(layout: LayoutName, arrays: Mapping[str, Any]) -> list[str]:
    """Returns the prefixes of all batch norm layers of a model.

    Layers are found by the names of their running statistics. Other layers with the same names,
    such as PyTorch's InstanceNorm with `track_running_stats=True`, are found as well.

    >>> import numpy as np
    >>> arrays = {"bn1.running_mean": np.zeros(3), "layer1.0.bn1.running_mean": np.zeros(4)}
    >>> jbn.convert.prefixes("torch", arrays)
    ['bn1.', 'layer1.0.bn1.']

    Args:
      layout: the library.
      arrays: the arrays of the model, as in `read`.

    Raises:
      ValueError: `layout` is unknown.
    """
    return prefixes_before(_layouts.names_of(layout).mean, arrays_by_path(arrays))


def read_all(layout: LayoutName, arrays: Mapping[str, Any], **arguments: Any) -> dict[str, Layer]:
    """Reads all batch norm layers of a model.

    >>> import numpy as np
    >>> arrays = {
    ...     "block1/scale": np.ones(3, np.float32),
    ...     "block1/mean": np.zeros(3, np.float32),
    ...     "block1/var": np.ones(3, np.float32),
    ... }
    >>> layers = jbn.convert.read_all("flax", arrays, momentum=0.9)
    >>> list(layers), layers["block1/"].options["use_bias"]
    (['block1/'], False)

    Args:
      layout: the library.
      arrays: the arrays of the model, as in `read`.
      **arguments: arguments for all layers, as in `read`. By default, a layer has a scale and a
        bias if `arrays` has them.

    Returns:
      A dictionary with the `Layer` of each prefix.

    Raises:
      KeyError: there is no layer, or an array of a layer is missing.
      TypeError: as in `read`.
      ValueError: as in `read`.
    """
    names, leaves = _layouts.names_of(layout), arrays_by_path(arrays)
    found = prefixes_before(names.mean, leaves)
    if not found:
        raise KeyError(f"arrays has no {layout} layer: no path in it ends in {names.mean!r}.")

    def own_arguments(prefix: str) -> dict[str, Any]:
        used = [prefix + name in leaves for name in (names.scale, names.bias)]
        switches = list(names.arguments)[2:]
        used = used if len(switches) == 2 else [any(used)]
        return dict(zip(switches, used, strict=True)) | arguments

    return {prefix: _read(layout, leaves, prefix, own_arguments(prefix)) for prefix in found}


def write(
    layout: LayoutName, layer: Layer, *, prefix: str = "", shape: tuple[int, ...] | None = None
) -> Foreign:
    """Writes a layer of jbn as a layer of another library.

    >>> params, state = jbn.batch_norm().init(3)
    >>> layer = jbn.convert.Layer(params, state, {"decay": 0.75})
    >>> arrays, arguments = jbn.convert.write("torch", layer, prefix="bn1.")
    >>> arrays["bn1.running_var"].tolist(), arguments["momentum"]
    ([1.0, 1.0, 1.0], 0.25)

    Args:
      layout: the library.
      layer: the layer to write.
      prefix: the start of the paths of the written arrays.
      shape: the shape of the written vectors; by default `[*features]`. Vectors in Haiku have size
        1 on each reduced axis, such as `(1, 1, 1, 64)` for images.

    Returns:
      A `Foreign` with the arrays and the arguments of the layer. In PyTorch and Equinox, one
      argument decides on both scale and bias. If the layer has only one of them, the other is
      written as ones or zeros.

    Raises:
      TypeError: an option is not an option of `jbn.batch_norm`.
      ValueError: `layout` is unknown, an option is out of range, the shapes of the layer's vectors
        differ, or the library has no decay like that of the layer.
    """
    names = _layouts.names_of(layout)
    norm = batch_norm(**layer.options)
    state = jax.tree.map(np.asarray, layer.state)
    scale = layer.params.scale if norm.use_scale else None
    bias = layer.params.bias if norm.use_bias else None
    if len(names.arguments) == 3 and not scale is bias is None:
        scale = np.ones_like(state.mean) if scale is None else scale
        bias = np.zeros_like(state.mean) if bias is None else bias

    vectors = {"scale": scale, "bias": bias, "mean": state.mean, "var": state.var}
    _require_vectors("layer", state.count, vectors)
    arrays = _layouts.write_state(layout, state, norm.decay)
    arrays |= {names.scale: scale, names.bias: bias}
    arrays = {prefix + name: np.array(a) for name, a in arrays.items() if a is not None}
    if shape is not None:
        arrays = {path: a.reshape(shape) if a.ndim else a for path, a in arrays.items()}
    weight = _layouts.write_decay(layout, norm.decay)
    values = (weight, norm.epsilon, scale is not None, bias is not None)
    return Foreign(arrays, dict(zip(names.arguments, values, strict=False)))


def _read(
    layout: LayoutName, leaves: Mapping[str, Any], prefix: str, arguments: Mapping[str, Any]
) -> Layer:
    names = _layouts.names_of(layout)
    options, weight = _read_arguments(layout, arguments)
    found = prefixes_before(names.mean, leaves)
    if prefix not in found:
        near = difflib.get_close_matches(prefix, found, cutoff=0)
        raise KeyError(
            f"arrays has no {layout} layer with prefix={prefix!r}; the nearest of its {len(found)} "
            f"prefixes are {near}. `jbn.convert.prefixes` returns all prefixes."
        )

    def take(name: str, default: Any = None) -> np.ndarray:
        leaf = leaves.get(prefix + name, default)
        if leaf is None:
            switch = dict(zip((names.scale, names.bias), [*names.arguments][2:] * 2, strict=False))
            hint = f": pass {switch[name]}=False if the layer has none." if name in switch else "."
            raise KeyError(f"{prefix + name!r} is not in arrays{hint}")
        array = to_numpy(leaf)
        # Vectors in Haiku have size 1 on each reduced axis.
        return np.atleast_1d(array.squeeze()) if layout == "haiku" and array.ndim else array

    # Copies, since PyTorch changes its arrays in place.
    scale = jnp.array(take(names.scale)) if options["use_scale"] else None
    bias = jnp.array(take(names.bias)) if options["use_bias"] else None
    mean, var, count = _layouts.read_state(layout, take, weight)
    where = f"{layout} layer with prefix={prefix!r}"
    _require_vectors(
        where, count, {names.scale: scale, names.bias: bias, names.mean: mean, names.var: var}
    )
    wide = np.float64 if np.float64 in (mean.dtype, var.dtype) else np.float32
    mean, var = (np.array(a, jax.dtypes.canonicalize_dtype(wide)) for a in (mean, var))
    if not np.all(np.isfinite(mean) & np.isfinite(var) & (var >= 0)):
        raise ValueError(
            f"statistics must be finite, and variances not negative: the {where} has "
            f"{names.mean} {mean} and {names.var} {var}."
        )
    count = np.array(count, np.float32)  # With NumPy, since JAX would wrap an int64 around.
    state = BatchNormState(*map(jnp.asarray, (mean, var, count)))
    return Layer(BatchNormParams(scale, bias), state, options)


def _read_arguments(
    layout: LayoutName, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], float | None]:
    """Returns options of `jbn.batch_norm`, and the library's value for the weight of averages."""
    known = _layouts.names_of(layout).arguments
    settings = {**known, **arguments}
    if unknown := sorted(set(arguments) - set(known)):
        raise TypeError(f"arguments {unknown} are none of {layout}'s {list(known)}.")
    if missing := [name for name, value in settings.items() if value is ...]:
        raise TypeError(f"{layout} has no default for {missing}: pass the values of the layer.")
    weight, epsilon, *switches = settings.values()
    options = {
        "decay": _layouts.read_decay(layout, weight),
        "epsilon": epsilon,
        "use_scale": switches[0],
        "use_bias": switches[-1],
        "unbiased": layout == "torch",
    }
    batch_norm(**options)  # Raises an error if an option is out of range.
    return options, weight


def _require_vectors(where: str, count: Any, vectors: Mapping[str, Any]) -> None:
    """Checks that the arrays of a layer hold the same features; None stands for no array.

    Raises:
      TypeError: an array is not real floating point.
      ValueError: the shapes differ, or have no axis; or the count is not one number, is negative or
        is not finite.
    """
    vectors = {name: vector for name, vector in vectors.items() if vector is not None}
    for name, vector in vectors.items():
        if not jnp.issubdtype(vector.dtype, jnp.floating):
            raise TypeError(
                f"arrays must be real floating point: the {where} has {name} of {vector.dtype}."
            )
    shapes = {name: vector.shape for name, vector in vectors.items()}
    shape, *others = set(shapes.values())
    if others or not shape:
        raise ValueError(f"arrays must have one shape [*features]: the {where} has {shapes}.")
    # Stacked layers have stacked counts.
    if np.shape(count) != shape[: np.ndim(count)]:
        raise ValueError(f"the count must be one number: the {where} has {count}.")
    if not np.all(np.isfinite(count) & (np.asarray(count) >= 0)):
        raise ValueError(f"the count must be finite and not negative: the {where} has {count}.")
