"""Reads and writes the batch norm layers of other libraries, as dictionaries of arrays.

    from jbn import convert
    layer = convert.read("torch", model.state_dict(), prefix="bn1.", momentum=0.1, eps=1e-5)
    y = jbn.batch_norm(axis=1, **layer.options).infer(layer.params, layer.state, x)
    arrays, arguments = convert.write("flax", layer)

No other library is imported. These are the dictionaries; keys of nested ones are joined by "/":

    torch           model.state_dict()
    flax            Linen: variables["params"]["bn1"] | variables["batch_stats"]["bn1"]
                    NNX: nnx.to_pure_dict(nnx.state(model))
    haiku           params | state
    keras           {weight.path: weight for weight in model.weights}
    equinox_batch   {"weight": bn.weight, "bias": bn.bias,
                    "batch_state_index": state.get(bn.batch_state_index),
                    "batch_counter": state.get(bn.batch_counter)}
                    and back by state.set, the counter as an int
    equinox_ema     the same with "ema_state_index" and "ema_first_time_index"

Inference gives the same, unless the layer has seen no batch: Haiku's and Equinox's "ema" statistics
are then placeholders, which are read as jbn's initial statistics. Training continues as in the
other library, within these limits:

- The values of a running variance do not change. Only PyTorch continues to average the unbiased
  variance.
- Haiku and Equinox's "batch" always correct the bias of their averages, as `corrected_decay` does.
  For them, a constant decay is written with so many updates that nothing is left to correct. For
  the others, a corrected decay is written as its limit.
- Flax, Keras and Equinox's "ema" do not count updates: their count is read as 0.
- Equinox's "ema" normalizes training batches by its running statistics, jbn by the batch's.
- Axes, axis names and output dtypes belong to the model and are not converted.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jbn._norms.batch import BatchNormState, batch_norm
from jbn._norms.decay import Decay, corrected_decay, cumulative_decay
from jbn._norms.norm import BatchNormParams

LayoutName = Literal["torch", "flax", "haiku", "keras", "equinox_batch", "equinox_ema"]


class Layer(NamedTuple):
    """A batch norm layer of jbn.

    Attributes:
      params: scale and bias, `[*features]` or None, in the dtypes they came in.
      state: running statistics, `[*features]`, float32 or wider.
      options: keyword arguments of `jbn.batch_norm`; its defaults may be left out.
    """

    params: BatchNormParams
    state: BatchNormState
    options: Mapping[str, Any]


class Foreign(NamedTuple):
    """A batch norm layer of another library.

    Attributes:
      arrays: by path.
      arguments: keyword arguments of the layer's constructor.
    """

    arrays: dict[str, np.ndarray]
    arguments: dict[str, Any]


def read(
    layout: LayoutName, arrays: Mapping[str, Any], *, prefix: str = "", **arguments: Any
) -> Layer:
    """Returns a layer of another library as jbn's.

    Args:
      layout: the library.
      arrays: by path, anything that NumPy can convert; possibly nested, or of the whole model.
      prefix: the start of the paths of this layer, such as "bn1." or "block/bn1/".
      **arguments: arguments of the layer's constructor that differ from its defaults: the weight of
        the averages, epsilon, and whether there is a scale and a bias.

    Raises:
      KeyError: an array is missing.
      TypeError: an argument is unknown or missing.
      ValueError: `layout` is unknown, or an argument is out of range.
    """
    names = _names(layout)
    settings = names.arguments | arguments
    if unknown := sorted(set(arguments) - set(names.arguments)):
        raise TypeError(f"arguments {unknown} are none of {layout}'s {list(names.arguments)}.")
    if missing := [name for name, value in settings.items() if value is ...]:
        raise TypeError(f"{layout} has no default for {missing}: pass what the layer has.")
    weight, epsilon, *switches = settings.values()
    options = {
        "decay": _read_decay(layout, weight),
        "epsilon": epsilon,
        "use_scale": switches[0],
        "use_bias": switches[-1],
        "unbiased": layout == "torch",
    }
    batch_norm(**options)  # Refuses what is out of range.

    leaves = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }

    def take(name: str) -> np.ndarray:
        if prefix + name not in leaves:
            found = [path.removesuffix(names.mean) for path in leaves if path.endswith(names.mean)]
            raise KeyError(
                f"{prefix + name!r} is not in arrays. Prefixes of {layout} layers there: {found}. "
                f"A layer without scale or bias needs {list(names.arguments)[2:]} to say so."
            )
        array = np.asarray(leaves[prefix + name])
        # Haiku's vectors have a 1 for each reduced axis.
        return np.atleast_1d(array.squeeze()) if layout == "haiku" and array.ndim else array

    # Copies, since PyTorch changes its arrays in place.
    params = BatchNormParams(
        scale=jnp.array(take(names.scale)) if options["use_scale"] else None,
        bias=jnp.array(take(names.bias)) if options["use_bias"] else None,
    )
    mean, var, count = _read_state(layout, take, weight)
    wide = np.float64 if np.float64 in (mean.dtype, var.dtype) else np.float32
    state = BatchNormState(jnp.array(mean, wide), jnp.array(var, wide), jnp.array(count, jnp.int32))
    return Layer(params, state, options)


def write(
    layout: LayoutName, layer: Layer, *, prefix: str = "", shape: tuple[int, ...] | None = None
) -> Foreign:
    """Returns a layer of jbn as another library's.

    Args:
      layout: the library.
      layer: what to write.
      prefix: the start of the paths.
      shape: of the written vectors, by default `[*features]`. Haiku's have a 1 for each reduced
        axis, such as `(1, 1, 1, 64)` for images.

    Returns:
      Its arrays and arguments. Where one argument switches scale and bias (torch, equinox) and the
      layer has one of them, the other is written as ones or zeros.

    Raises:
      TypeError: an option is not one of `jbn.batch_norm`.
      ValueError: `layout` is unknown, an option is out of range, or the library has nothing like
        the layer's decay.
    """
    names = _names(layout)
    norm = batch_norm(**layer.options)
    state = jax.tree.map(np.asarray, layer.state)
    scale = layer.params.scale if norm.use_scale else None
    bias = layer.params.bias if norm.use_bias else None
    if len(names.arguments) == 3 and not scale is bias is None:
        scale = np.ones_like(state.mean) if scale is None else scale
        bias = np.zeros_like(state.mean) if bias is None else bias

    arrays = _write_state(layout, state, norm.decay)
    arrays |= {names.scale: scale, names.bias: bias}
    arrays = {prefix + name: np.array(a) for name, a in arrays.items() if a is not None}
    if shape is not None:
        arrays = {path: a.reshape(shape) if a.ndim else a for path, a in arrays.items()}
    weight = _write_decay(layout, norm.decay)
    values = (weight, norm.epsilon, scale is not None, bias is not None)
    return Foreign(arrays, dict(zip(names.arguments, values, strict=False)))


class _Names(NamedTuple):
    scale: str
    bias: str
    mean: str
    var: str
    # With defaults: the averages' weight, epsilon, the switches of scale and bias, or one for both.
    arguments: dict[str, Any]


_NAMES: dict[str, _Names] = {
    "torch": _Names(
        *("weight", "bias", "running_mean", "running_var"),
        {"momentum": 0.1, "eps": 1e-5, "affine": True},
    ),
    "flax": _Names(
        *("scale", "bias", "mean", "var"),
        {"momentum": 0.99, "epsilon": 1e-5, "use_scale": True, "use_bias": True},
    ),
    "haiku": _Names(
        *("scale", "offset", "~/mean_ema/average", "~/var_ema/average"),
        {"decay_rate": ..., "eps": 1e-5, "create_scale": True, "create_offset": True},
    ),
    "keras": _Names(
        *("gamma", "beta", "moving_mean", "moving_variance"),
        {"momentum": 0.99, "epsilon": 1e-3, "scale": True, "center": True},
    ),
}
for _mode in ("batch", "ema"):
    _NAMES[f"equinox_{_mode}"] = _Names(
        *("weight", "bias", f"{_mode}_state_index/0", f"{_mode}_state_index/1"),
        {"momentum": 0.99, "eps": 1e-5, "channelwise_affine": True},
    )


def _names(layout: LayoutName) -> _Names:
    if layout not in _NAMES:
        raise ValueError(f"layout={layout!r} is unknown: choose one of {list(_NAMES)}.")
    return _NAMES[layout]


def _read_decay(layout: LayoutName, weight: Any) -> Decay:
    match layout:
        case "torch":
            return cumulative_decay if weight is None else 1 - weight
        case "haiku" | "equinox_batch" if 0 < weight < 1:  # With 0, nothing to correct.
            return corrected_decay(weight)
        case _:
            return weight


def _write_decay(layout: LayoutName, decay: Decay) -> float | None:
    if layout == "torch" and decay is cumulative_decay:
        return None
    # Of a function its limit, in the shortest decimals of float32: 0.99, not 0.9900000095.
    limit = np.float32(np.asarray(decay(jnp.float32(jnp.inf)))) if callable(decay) else decay
    weight = float(str(limit))
    below_one = callable(decay) or layout in ("haiku", "equinox_batch")
    if below_one and not weight < 1:
        raise ValueError(
            f"decay={decay} has no limit below 1, which {layout} needs: choose another decay, "
            "`layer._replace(options={**layer.options, 'decay': ...})`."
        )
    return 1 - weight if layout == "torch" else weight


def _read_state(layout: LayoutName, take: Callable[[str], Any], weight: Any) -> tuple:
    """Returns mean, variance and count."""
    mean, var = take(_NAMES[layout].mean), take(_NAMES[layout].var)
    match layout:
        case "torch":
            return mean, var, take("num_batches_tracked")
        case "haiku":
            count = take("~/mean_ema/counter")
            return (mean, var, count) if count else batch_norm().init_vectors(mean.shape)
        case "equinox_batch":
            count = take("batch_counter")
            mass = _mass(weight, count) or 1.0
            return mean / mass, var / mass, count
        case "equinox_ema" if take("ema_first_time_index"):
            return batch_norm().init_vectors(mean.shape)
        case _:
            return mean, var, 0


def _write_state(layout: LayoutName, state: Any, decay: Decay) -> dict[str, Any]:
    """Returns the arrays of mean, variance and count."""
    mean, var, count = state
    names, weight = _NAMES[layout], _write_decay(layout, decay)
    # A constant decay corrects nothing, as a corrected one after very many updates.
    age = count if callable(decay) else np.int32(2**30)
    match layout:
        case "torch":
            arrays = {"num_batches_tracked": count.astype(np.int64)}
        case "haiku":
            mass = _mass(weight, age)
            arrays = {"~/mean_ema/hidden": mean * mass, "~/var_ema/hidden": var * mass}
            arrays |= {"~/mean_ema/counter": age, "~/var_ema/counter": age}
        case "equinox_batch":
            mass = _mass(weight, age) or 1.0
            mean, var = mean * mass, var * mass
            arrays = {"batch_counter": age}
        case "equinox_ema":
            arrays = {"ema_first_time_index": age == 0}
        case _:
            arrays = {}
    return {names.mean: mean, names.var: var} | arrays


def _mass(weight: Any, count: Any) -> float:
    """The divisor that makes an average of a sum that started at 0 and decayed by `weight`."""
    return 1 - weight ** int(count)
