"""The names and meanings of the arrays and arguments of each library's layers."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jbn._norms.batch import batch_norm
from jbn._norms.decay import Decay, corrected_decay, cumulative_decay

LayoutName = Literal["torch", "flax", "haiku", "keras", "equinox_batch", "equinox_ema"]
"""The name of a library; for Equinox, with the mode of the layer."""


class _Names(NamedTuple):
    scale: str
    bias: str
    mean: str
    var: str
    # With defaults: the weight of the averages, epsilon, and one or two switches of scale and bias.
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


def names_of(layout: LayoutName) -> _Names:
    """Returns the names that a library uses.

    Raises:
      ValueError: `layout` is unknown.
    """
    if layout not in _NAMES:
        raise ValueError(f"layout={layout!r} is unknown: choose one of {list(_NAMES)}.")
    return _NAMES[layout]


def read_decay(layout: LayoutName, weight: Any) -> Decay:
    """Returns the decay that continues the averages of a library."""
    match layout:
        case "torch":
            return cumulative_decay if weight is None else 1 - weight
        case "haiku" | "equinox_batch" if 0 < weight < 1:  # With 0, there is nothing to correct.
            return corrected_decay(weight)
        case _:
            return weight


def write_decay(layout: LayoutName, decay: Decay) -> float | None:
    """Returns the weight of the averages in a library's terms.

    Raises:
      ValueError: the library has no such decay.
    """
    if layout == "torch" and decay is cumulative_decay:
        return None
    # The limit of a function, in the shortest decimals of float32: 0.99, not 0.9900000095.
    limit = np.float32(np.asarray(decay(jnp.float32(jnp.inf)))) if callable(decay) else decay
    weight = float(str(limit))
    below_one = callable(decay) or layout in ("haiku", "equinox_batch")
    if below_one and not weight < 1:
        raise ValueError(
            f"decay={decay} has no limit below 1, which {layout} needs: choose another decay with "
            "`layer._replace(options={**layer.options, 'decay': ...})`."
        )
    return 1 - weight if layout == "torch" else weight


def read_state(layout: LayoutName, take: Callable[..., Any], weight: Any) -> tuple:
    """Returns mean, variance and count, from the arrays that `take(name, default=None)` returns."""
    mean, var = take(_NAMES[layout].mean), take(_NAMES[layout].var)
    match layout:
        case "torch":
            return mean, var, take("num_batches_tracked", 0)
        case "haiku":
            count = take("~/mean_ema/counter")
            return (mean, var, count) if count else batch_norm().init_vectors(mean.shape)
        case "equinox_batch":
            count = take("batch_counter")
            mass = _mass(weight, count) or 1.0
            return mean / mass, var / mass, count
        case "equinox_ema" if take("ema_first_time_index"):
            return batch_norm().init_vectors(mean.shape)
        case "flax":
            return mean, var, take("count", 0)
        case _:
            return mean, var, 0


def write_state(layout: LayoutName, state: Any, decay: Decay) -> dict[str, Any]:
    """Returns the arrays of mean, variance and count."""
    mean, var, count = state.mean, state.var, np.rint(state.count).astype(np.int64)
    names, weight = _NAMES[layout], write_decay(layout, decay)
    # A constant decay corrects nothing. Nor does a corrected decay after very many updates.
    many = 2**30
    age = np.int32(np.minimum(count, many) if callable(decay) else many)
    match layout:
        case "torch":
            arrays = {"num_batches_tracked": count}
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
    """Returns the total weight of an average that starts at 0: dividing by it corrects the bias."""
    return 1 - weight ** int(count)
