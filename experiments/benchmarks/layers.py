"""Batch norm layers of jbn and of its peers behind one interface, so that they can be compared."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jbn


class Layer(NamedTuple):
    """A layer over the last axis of x `[..., features]`, as functions of a state.

    Attributes:
      state: parameters and running statistics before the first batch.
      train: `train(state, x, mask=None) -> (y, state)`; `mask` is `[n]` for x `[n, features]`.
      infer: `infer(state, x, mask=None) -> y`.
      running_statistics: `running_statistics(state) -> (mean, var)`.
      merge: `merge(state, axis_name) -> state`, one state for the data of all shards; None if
        neither the documentation nor an example of the library shows a way.
    """

    state: Any
    train: Callable[..., tuple[Any, Any]]
    infer: Callable[..., Any]
    running_statistics: Callable[[Any], tuple[Any, Any]]
    merge: Callable[[Any, str], Any] | None = None


class Missing(Exception):
    """The library does not have a requested feature."""


def _average(state: Any, axis_name: str) -> Any:
    """Returns the mean of the states, as Flax's ImageNet example does."""
    return jax.lax.pmean(state, axis_name)


def _require(offered: bool) -> None:
    if not offered:
        raise Missing


def make_jbn(
    features: int,
    decay: float,
    *,
    corrected: bool = False,
    renorm: bool = False,
    norm: Callable[..., jbn.Norm] = jbn.batch_norm,
    **options: Any,
) -> Layer:
    """Makes a layer of jbn; `corrected` averages do not depend on their initial values."""
    norm = jbn.batch_renorm if renorm else norm
    made = norm(decay=jbn.corrected_decay(decay) if corrected else decay, **options)

    def infer(variables, x, mask=None):
        params, state = variables
        return made.infer(params, state, x, mask=mask)

    def train(variables, x, mask=None):
        params, state = variables
        y, state = made.train(params, state, x, mask=mask)
        return y, (params, state)

    def merge(variables, axis_name):
        params, state = variables
        return params, jbn.merge_states([state], axis_name=axis_name)

    def running_statistics(variables):
        return variables[1][:2]

    return Layer(made.init(features), train, infer, running_statistics, merge)


def make_linen(
    features: int, decay: float, *, corrected: bool = False, renorm: bool = False, **options: Any
) -> Layer:
    """Makes a layer of Flax Linen."""
    import flax.linen as nn

    _require(not corrected and not renorm)
    module = nn.BatchNorm(momentum=decay, **options)
    # The layer is initialized without the axis name, because the axis need not be bound here.
    plain = nn.BatchNorm(use_running_average=True)
    variables = plain.init(jax.random.key(0), jnp.zeros((2, features)))

    def train(variables, x, mask=None):
        mask = None if mask is None else mask[:, None]
        y, new = module.apply(
            variables, x, use_running_average=False, mask=mask, mutable=["batch_stats"]
        )
        return y, {**variables, **new}

    def infer(variables, x, mask=None):
        mask = None if mask is None else mask[:, None]
        return module.apply(variables, x, use_running_average=True, mask=mask)

    def running_statistics(variables):
        return variables["batch_stats"]["mean"], variables["batch_stats"]["var"]

    return Layer(variables, train, infer, running_statistics, _average)


def make_nnx(
    features: int, decay: float, *, corrected: bool = False, renorm: bool = False, **options: Any
) -> Layer:
    """Makes a layer of Flax NNX."""
    from flax import nnx

    _require(not corrected and not renorm)
    module = nnx.BatchNorm(features, momentum=decay, rngs=nnx.Rngs(0), **options)
    graph, state = nnx.split(module)

    def train(state, x, mask=None):
        module = nnx.merge(graph, state, copy=True)
        mask = None if mask is None else mask[:, None]
        y = module(x, use_running_average=False, mask=mask)
        return y, nnx.state(module)

    def infer(state, x, mask=None):
        mask = None if mask is None else mask[:, None]
        return nnx.merge(graph, state, copy=True)(x, use_running_average=True, mask=mask)

    def running_statistics(state):
        module = nnx.merge(graph, state, copy=True)
        return module.mean[...], module.var[...]

    return Layer(state, train, infer, running_statistics, _average)


def make_haiku(features: int, decay: float, *, corrected: bool = True, **options: Any) -> Layer:
    """Makes a layer of Haiku, whose averages are always corrected."""
    hk: Any = importlib.import_module("haiku")

    _require(not options)

    def apply(x, is_training):
        return hk.BatchNorm(True, True, decay, name="norm")(x, is_training)

    transformed = hk.transform_with_state(apply)

    def train(variables, x, mask=None):
        _require(mask is None)
        # Haiku's parameters have as many axes as x.
        y, state = transformed.apply(*variables, None, x.reshape(-1, features), True)
        return y.reshape(x.shape), (variables[0], state)

    def infer(variables, x, mask=None):
        _require(mask is None)
        return transformed.apply(*variables, None, x, False)[0]

    def running_statistics(variables):
        return tuple(variables[1][f"norm/~/{k}_ema"]["average"][0] for k in ("mean", "var"))

    state = transformed.init(None, jnp.zeros((2, features)), True)
    return Layer(state, train, infer, running_statistics)


def make_equinox(features: int, decay: float, *, corrected: bool = True, **options: Any) -> Layer:
    """Makes a layer of Equinox in mode "batch", whose averages are always corrected."""
    eqx: Any = importlib.import_module("equinox")

    _require(not options)
    norm = eqx.nn.BatchNorm(features, "batch", momentum=decay, mode="batch")
    params, static = eqx.partition(norm, eqx.is_array)

    def train(variables, x, mask=None):
        _require(mask is None)
        params, state = variables
        norm = jax.vmap(
            eqx.combine(params, static),
            axis_name="batch",
            in_axes=(0, None),
            out_axes=(0, None),
        )
        y, state = norm(x.reshape(-1, features), state)
        return y.reshape(x.shape), (params, state)

    def infer(variables, x, mask=None):
        _require(mask is None)
        params, state = variables
        inference = eqx.nn.inference_mode(eqx.combine(params, static))
        return jax.vmap(lambda x: inference(x, state)[0], axis_name="batch")(x)

    def running_statistics(variables):
        return variables[1].get(norm.batch_state_index)

    return Layer((params, eqx.nn.State(norm)), train, infer, running_statistics)


def make_keras(
    features: int, decay: float, *, corrected: bool = False, renorm: bool = False, **options: Any
) -> Layer:
    """Makes a layer of Keras on JAX."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras: Any = importlib.import_module("keras")

    _require(not options and not corrected and keras.backend.backend() == "jax")
    layer = keras.layers.BatchNormalization(momentum=decay, epsilon=1e-5, renorm=renorm)
    layer.build((None, features))
    weights = [variable.value for variable in layer.trainable_variables]
    averages = [variable.value for variable in layer.non_trainable_variables]

    def train(state, x, mask=None):
        weights, averages = state
        rows = x.reshape(-1, features)
        y, averages = layer.stateless_call(weights, averages, rows, training=True, mask=mask)
        return y.reshape(x.shape), (weights, averages)

    def infer(state, x, mask=None):
        return layer.stateless_call(*state, x, training=False, mask=mask)[0]

    return Layer((weights, averages), train, infer, lambda state: tuple(state[1][:2]))


def make_torch(features: int, decay: float, *, corrected: bool = False, **options: Any) -> Layer:
    """Makes a layer of PyTorch, which runs eagerly on the CPU."""
    torch: Any = importlib.import_module("torch")

    _require(not options and not corrected)
    module = torch.nn.BatchNorm1d(features, momentum=1 - decay)

    def tensor(x):
        wide = torch.tensor(np.asarray(x, np.float32))
        return wide.bfloat16() if x.dtype == jnp.bfloat16 else wide

    def train(state, x, mask=None):
        _require(mask is None)
        module.train()
        return module(tensor(x)).detach().float().numpy(), state

    def infer(state, x, mask=None):
        _require(mask is None)
        module.eval()
        return module(tensor(x)).detach().float().numpy()

    def running_statistics(_):
        return module.running_mean.numpy(), module.running_var.numpy()

    return Layer(None, train, infer, running_statistics)


def make_sbx(features: int, decay: float, *, renorm: bool = True, **options: Any) -> Layer:
    """Makes a batch renorm layer of Stable-Baselines Jax (CrossQ), its only norm over batches."""
    sbx: Any = importlib.import_module("sbx.common.jax_layers")

    _require(renorm and not options)
    module = sbx.BatchRenorm(momentum=decay, epsilon=1e-5)
    variables = module.init(jax.random.key(0), jnp.zeros((2, features)), True)

    def train(variables, x, mask=None):
        _require(mask is None)
        y, new = module.apply(variables, x, False, mutable=["batch_stats"])
        return y, {**variables, **new}

    def infer(variables, x, mask=None):
        _require(mask is None)
        return module.apply(variables, x, True)

    def running_statistics(variables):
        return variables["batch_stats"]["mean"], variables["batch_stats"]["var"]

    return Layer(variables, train, infer, running_statistics)


_MAKERS = {
    "jbn": ("jbn", make_jbn),
    "flax.linen": ("flax", make_linen),
    "flax.nnx": ("flax", make_nnx),
    "haiku": ("haiku", make_haiku),
    "equinox": ("equinox", make_equinox),
    "keras": ("keras", make_keras),
    "torch": ("torch", make_torch),
    "sbx": ("sbx", make_sbx),
}

DISTRIBUTIONS = {"haiku": "dm-haiku", "sbx": "sbx-rl"}
"""Name of a library for pip, if it is not the library's own name."""


def installed() -> dict[str, tuple[str, Callable[..., Layer]]]:
    """Returns the library and the maker of each kind of layer that is installed, jbn's first."""
    return {n: maker for n, maker in _MAKERS.items() if importlib.util.find_spec(maker[0])}
