"""Reads and writes the batch norm layers of other libraries, as dictionaries of arrays.

    layer = convert.read("torch", model.state_dict(), prefix="bn1.", momentum=0.1, eps=1e-5)
    y = jbn.batch_norm(axis=1, **layer.options).infer(layer.params, layer.state, x)
    arrays, arguments = convert.write("flax", layer)

No other library is imported. The dictionaries, whose nested keys are joined by "/", are

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

Inference stays what it was, except where no batch was seen: what Haiku and Equinox's "ema" hold
then is a placeholder, read as jbn's start. Training goes on as it would have, within these limits:

- A running variance keeps its values. Only PyTorch's goes on to average the unbiased one.
- Haiku and Equinox's "batch" always correct the bias of their averages, as `corrected_decay` does.
  A constant decay is written for them with so many updates that nothing is left to correct; a
  corrected one is written for the others as the constant that it tends to.
- Flax, Keras and Equinox's "ema" do not count updates: their count is read as 0.
- Equinox's "ema" trains by its running statistics, jbn by the batch's.
- Axes, axis names and output dtypes belong to the model and do not travel.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jbn import features, running
from jbn.norms.batch import batch_norm
from jbn.norms.norm import BatchNormParams
from jbn.running import BatchNormState

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
      arrays: what NumPy can convert, by path, perhaps nested, perhaps of the whole model.
      prefix: what the paths of this layer start with, such as "bn1." or "block/bn1/".
      **arguments: of the layer's constructor, where they differ from its defaults: the weight of
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
    wide = features.statistics_dtype(mean, var)
    state = BatchNormState(jnp.array(mean, wide), jnp.array(var, wide), jnp.array(count, jnp.int32))
    return Layer(params, state, options)


def write(
    layout: LayoutName, layer: Layer, *, prefix: str = "", shape: tuple[int, ...] | None = None
) -> Foreign:
    """Returns a layer of jbn as another library's.

    Args:
      layout: the library.
      layer: what to write.
      prefix: what the paths shall start with.
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
    batch_norm(**layer.options)  # Refuses what is unknown or out of range.
    options = {
        "use_scale": True,
        "use_bias": True,
        **(batch_norm.__kwdefaults__ or {}),
        **layer.options,
    }
    state = jax.tree.map(np.asarray, layer.state)
    scale = layer.params.scale if options["use_scale"] else None
    bias = layer.params.bias if options["use_bias"] else None
    if len(names.arguments) == 3 and not scale is bias is None:
        scale = np.ones_like(state.mean) if scale is None else scale
        bias = np.zeros_like(state.mean) if bias is None else bias

    arrays = _write_state(layout, state, options["decay"])
    arrays |= {names.scale: scale, names.bias: bias}
    arrays = {prefix + name: np.array(a) for name, a in arrays.items() if a is not None}
    if shape is not None:
        arrays = {path: a.reshape(shape) if a.ndim else a for path, a in arrays.items()}
    weight = _write_decay(layout, options["decay"])
    values = (weight, options["epsilon"], scale is not None, bias is not None)
    return Foreign(arrays, dict(zip(names.arguments, values, strict=False)))


class _Names(NamedTuple):
    scale: str
    bias: str
    mean: str
    var: str
    # With defaults: the averages' weight, epsilon, the switches of scale and bias, or one for both.
    arguments: dict[str, Any]


_NAMES: dict[LayoutName, _Names] = {
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
    "equinox_batch": _Names(
        *("weight", "bias", "batch_state_index/0", "batch_state_index/1"),
        {"momentum": 0.99, "eps": 1e-5, "channelwise_affine": True},
    ),
    "equinox_ema": _Names(
        *("weight", "bias", "ema_state_index/0", "ema_state_index/1"),
        {"momentum": 0.99, "eps": 1e-5, "channelwise_affine": True},
    ),
}


def _names(layout: LayoutName) -> _Names:
    if layout not in _NAMES:
        raise ValueError(f"layout={layout!r} is unknown: choose one of {list(_NAMES)}.")
    return _NAMES[layout]


def _read_decay(layout: LayoutName, weight: Any) -> running.Decay:
    match layout:
        case "torch":
            return running.cumulative_decay if weight is None else 1 - weight
        case "haiku" | "equinox_batch" if 0 < weight < 1:  # With 0, nothing to correct.
            return running.corrected_decay(weight)
        case _:
            return weight


def _write_decay(layout: LayoutName, decay: running.Decay) -> float | None:
    if layout == "torch" and decay is running.cumulative_decay:
        return None
    # A function: what it tends to, by the shortest decimals of float32: 0.99, not 0.9900000095.
    limit = np.float32(np.asarray(decay(jnp.float32(jnp.inf)))) if callable(decay) else decay
    weight = float(str(limit))
    below_one = callable(decay) or layout in ("haiku", "equinox_batch")
    if below_one and not weight < 1:
        raise ValueError(
            f"decay={decay} tends to no number below 1, which {layout} needs: choose one, "
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
            return (mean, var, count) if count else running.start(mean.shape)
        case "equinox_batch":
            count = take("batch_counter")
            mass = _mass(weight, count) or 1.0
            return mean / mass, var / mass, count
        case "equinox_ema" if take("ema_first_time_index"):
            return running.start(mean.shape)
        case _:
            return mean, var, 0


def _write_state(layout: LayoutName, state: Any, decay: running.Decay) -> dict[str, Any]:
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
    """What a sum from 0 on, decayed by `weight`, is divided by to be an average."""
    return 1 - weight ** int(count)
