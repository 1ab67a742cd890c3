"""Networks to compile: 3x3 convolutions with norms of jbn and of its peers."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import jbn
from experiments.benchmarks.layers import Layer, installed, make_jbn

Activation = Callable[[jax.Array], jax.Array]
Network = Callable[..., tuple[jax.Array, list[Any]]]


class NormActivation(NamedTuple):
    """A norm, the activation that follows it, and how a network uses them.

    Attributes:
      make: `make(features, decay) -> Layer`.
      activation: function that follows the norm.
      wrap: function that is applied to the whole network, such as `jax.checkpoint`.
    """

    make: Callable[[int, float], Layer]
    activation: Activation
    wrap: Callable[[Any], Any] = lambda network: network


def norm_activations(dtype: str) -> dict[str, NormActivation]:
    """Returns jbn's norms, and its installed peers with relu and with leaky relu.

    Args:
      dtype: dtype of activations, which Flax's layers take as an option.
    """
    in_place = partial(make_jbn, norm=jbn.inplace_batch_norm)
    found = {
        "jbn": NormActivation(make_jbn, jax.nn.relu),
        "jbn, leaky": NormActivation(make_jbn, jax.nn.leaky_relu),
        "jbn, in place": NormActivation(in_place, lambda y: y),
        "jbn, policy": NormActivation(
            make_jbn, jax.nn.relu, partial(jax.checkpoint, policy=jbn.save_norm_inputs)
        ),
    }
    for name, (library, make) in installed().items():
        if library not in ("jbn", "torch"):
            make = partial(make, dtype=jnp.dtype(dtype)) if library == "flax" else make
            found[name] = NormActivation(make, jax.nn.relu)
            found[f"{name}, leaky"] = NormActivation(make, jax.nn.leaky_relu)
    return found


class Shape(NamedTuple):
    """The activations of a network.

    Attributes:
      batch: number of examples.
      size: height and width.
      channels: number of features.
      dtype: dtype of activations; kernels are float32.
    """

    batch: int
    size: int
    channels: int
    dtype: str

    @property
    def bytes(self) -> int:
        """Size of one activation in bytes."""
        return self.batch * self.size**2 * self.channels * jnp.dtype(self.dtype).itemsize


def stack(
    layer: Layer, activation: Activation, x: jax.Array, kernels: list[Any], states: list[Any]
) -> tuple[jax.Array, list[Any]]:
    """Applies a convolution, a norm and an activation for each kernel.

    Returns the output and the next states.
    """
    states = list(states)
    for i, kernel in enumerate(kernels):
        y, states[i] = layer.train(states[i], _convolve(x, kernel))
        x = activation(y.astype(x.dtype))
    return x, states


def residual(
    layer: Layer, activation: Activation, x: jax.Array, kernels: list[Any], states: list[Any]
) -> tuple[jax.Array, list[Any]]:
    """Applies residual blocks of two convolutions, with the sum before the last activation.

    Returns the output and the next states.
    """
    states = list(states)
    for i in range(0, len(kernels), 2):
        y, states[i] = layer.train(states[i], _convolve(x, kernels[i]))
        y = activation(y.astype(x.dtype))
        y, states[i + 1] = layer.train(states[i + 1], _convolve(y, kernels[i + 1]))
        x = activation(y.astype(x.dtype) + x)
    return x, states


def step(
    network: Network, norm: NormActivation, shape: Shape, depth: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns a training step and the shapes of its arguments.

    The step returns the gradients of the norms' parameters and of the kernels, and the new states.
    """
    # The state is traced, so that nothing is computed and no array is a constant of the program.
    layer = norm.make(shape.channels, 0.9)
    leaves, structure = jax.tree.flatten([jax.eval_shape(lambda: layer.state)] * depth)
    run = norm.wrap(partial(network, layer, norm.activation))

    def train(kernels, leaves, x):
        learned, join = split_floats(jax.tree.unflatten(structure, leaves))

        def loss(learned, kernels):
            y, new = run(x, kernels, join(learned))
            return jnp.mean(jnp.square(y.astype(jnp.float32))), new

        return jax.grad(loss, (0, 1), has_aux=True)(learned, kernels)

    kernel = jax.ShapeDtypeStruct((3, 3, shape.channels, shape.channels), jnp.float32)
    x = (shape.batch, shape.size, shape.size, shape.channels)
    return train, ([kernel] * depth, leaves, jax.ShapeDtypeStruct(x, jnp.dtype(shape.dtype)))


class NormStep(NamedTuple):
    """One norm and its activation.

    Attributes:
      learned: first argument of `forward`, the floating-point leaves of the layer's state.
      forward: `forward(learned, x) -> (y, state)`.
      gradients: `gradients(learned, x, dy) -> ((dlearned, dx), state)`.
    """

    learned: list[Any]
    forward: Callable[..., Any]
    gradients: Callable[..., Any]


def norm_step(norm: NormActivation, channels: int) -> NormStep:
    """Returns the training step of one norm and its activation alone."""
    layer = norm.make(channels, 0.9)
    learned, join = split_floats(layer.state)

    @norm.wrap
    def forward(learned, x):
        y, state = layer.train(join(learned), x)
        return norm.activation(y.astype(x.dtype)), state

    def gradients(learned, x, dy):
        def loss(learned, x):
            y, state = forward(learned, x)
            return jnp.vdot(y, dy), state

        return jax.grad(loss, (0, 1), has_aux=True)(learned, x)

    return NormStep(learned, forward, gradients)


def split_floats(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Returns the floating-point leaves of a tree, and a function that replaces them."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def join(floats: list[Any]) -> Any:
        found = dict(zip(places, floats, strict=True))
        return jax.tree.unflatten(structure, [found.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in places], join


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
