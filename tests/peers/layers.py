"""A batch norm layer of each library as a function, for channels-last data of three features.

Each `layer(library, arguments, arrays, seeds)` makes a layer with the arguments of its constructor.
It fills the layer with arrays by path, unless these are None, and trains it on the batches of the
seeds. It returns the arrays of the layer, as `jbn.convert` takes them, and the result of inference
on the batch of seed 9.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import data

FEATURES = 3
SHAPE = (4, 1, 2, FEATURES)

Arguments = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
Answer = tuple[dict[str, Any], Any]


def batch(seed: int) -> np.ndarray:
    """Returns the batch of a seed. Its mean is the seed."""
    return data(SHAPE, seed, mean=seed)


def torch_layer(
    torch: Any, arguments: Arguments, arrays: Arrays | None, seeds: Sequence[int]
) -> Answer:
    """Asks PyTorch for its layer."""
    layer = torch.nn.BatchNorm2d(FEATURES, **arguments)
    if arrays is not None:
        layer.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def call(seed):
        y = layer(torch.from_numpy(np.moveaxis(batch(seed), -1, 1).copy()))
        return np.moveaxis(y.detach().numpy(), 1, -1)

    for seed in seeds:
        call(seed)
    layer.eval()
    return {name: tensor.numpy() for name, tensor in layer.state_dict().items()}, call(9)


def linen_layer(
    linen: Any, arguments: Arguments, arrays: Arrays | None, seeds: Sequence[int]
) -> Answer:
    """Asks Flax Linen for its layer."""
    layer = linen.BatchNorm(**arguments)
    variables = layer.init(jax.random.key(0), batch(0), use_running_average=True)
    if arrays is not None:
        assert len(arrays) == len(jax.tree.leaves(variables))
        variables = jax.tree.map_with_path(lambda path, _: arrays[path[-1].key], variables)
    for seed in seeds:
        _, updates = layer.apply(
            variables, batch(seed), use_running_average=False, mutable=["batch_stats"]
        )
        variables = {**variables, **updates}
    y = layer.apply(variables, batch(9), use_running_average=True)
    return {**variables.get("params", {}), **variables["batch_stats"]}, y


def nnx_layer(
    nnx: Any, arguments: Arguments, arrays: Arrays | None, seeds: Sequence[int]
) -> Answer:
    """Asks Flax NNX for its layer."""
    layer = nnx.BatchNorm(FEATURES, rngs=nnx.Rngs(0), **arguments)
    if arrays is not None:
        state = nnx.state(layer)
        nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, arrays))
        nnx.update(layer, state)
    for seed in seeds:
        layer(batch(seed), use_running_average=False)
    return nnx.to_pure_dict(nnx.state(layer)), layer(batch(9), use_running_average=True)


def haiku_layer(
    haiku: Any, arguments: Arguments, arrays: Arrays | None, seeds: Sequence[int]
) -> Answer:
    """Asks Haiku for its layer."""
    layer = haiku.transform_with_state(lambda *x: haiku.BatchNorm(**arguments)(*x))
    params, state = layer.init(jax.random.key(0), batch(0), True)
    if arrays is not None:
        assert len(arrays) == len(jax.tree.leaves((params, state)))
        params, state = (
            {module: {n: arrays[f"{module}/{n}"] for n in names} for module, names in tree.items()}
            for tree in (params, state)
        )
    for seed in seeds:
        _, state = layer.apply(params, state, None, batch(seed), True)
    return params | state, layer.apply(params, state, None, batch(9), False)[0]


def keras_layer(
    keras: Any, arguments: Arguments, arrays: Arrays | None, seeds: Sequence[int]
) -> Answer:
    """Asks Keras for its layer."""
    layer = keras.layers.BatchNormalization(name="bn", **arguments)
    layer.build(SHAPE)
    if arrays is not None:
        assert len(arrays) == len(layer.weights)
        for weight in layer.weights:
            weight.assign(arrays[weight.path])
    for seed in seeds:
        layer(batch(seed), training=True)
    return {weight.path: weight for weight in layer.weights}, layer(batch(9), training=False)


def equinox_layer(
    equinox: Any, mode: str, arguments: Arguments, arrays: Arrays | None, seeds: Sequence[int]
) -> Answer:
    """Asks Equinox for its layer in one of its two modes."""
    counters = {"batch": "batch_counter", "ema": "ema_first_time_index"}
    averages, counter = f"{mode}_state_index", counters[mode]
    make = equinox.nn.make_with_state(equinox.nn.BatchNorm)
    layer, state = make(FEATURES, "batch", mode=mode, **arguments)
    if arrays is not None:
        if "weight" in arrays:
            vectors = jnp.asarray(arrays["weight"]), jnp.asarray(arrays["bias"])
            layer = equinox.tree_at(lambda layer: (layer.weight, layer.bias), layer, vectors)
        values = tuple(jnp.asarray(arrays[f"{averages}/{i}"]) for i in range(2))
        state = state.set(getattr(layer, averages), values)
        state = state.set(getattr(layer, counter), arrays[counter].item())

    def call(seed, inference):
        apply = jax.vmap(
            lambda x, state: layer(x, state, inference=inference),
            axis_name="batch",
            in_axes=(0, None),
            out_axes=(0, None),
        )
        y, new = apply(np.moveaxis(batch(seed), -1, 1), state)
        return np.moveaxis(np.asarray(y), 1, -1), new

    for seed in seeds:
        _, state = call(seed, inference=False)
    buffers = {name: state.get(getattr(layer, name)) for name in (averages, counter)}
    return {"weight": layer.weight, "bias": layer.bias} | buffers, call(9, inference=True)[0]
