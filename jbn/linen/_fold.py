"""Folds the norms of a Linen model into its linear layers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

import jbn
from jbn._flax import fold_trace
from jbn._flax.fields import calls_as_one_of
from jbn.linen._apply import path_of
from jbn.linen._batch_norm import BatchNorm
from jbn.linen._intercept import intercept_calls, intercepted
from jbn.linen._norm import Norm

_LAYERS = (nn.Conv, nn.ConvTranspose, nn.Dense)
_NORMS = (BatchNorm, Norm, nn.BatchNorm)


class Folded(NamedTuple):
    """A model that runs without the norms that were folded.

    Attributes:
      apply: a function `apply(variables, *args, **kwargs)` that applies the model without the
        folded norms.
      variables: the variables for `apply`. Each layer with a folded norm has a new kernel and bias.
        If the layer has no bias, the module of the norm adds it. That module also applies the
        activation of the norm, if it has one.
      layers: a dictionary from the path of each folded norm to the path of its layer.
      refused: a dictionary from the path of each norm that was not folded to the reason.
    """

    apply: Callable[..., Any]
    variables: dict[str, Any]
    layers: dict[str, str]
    refused: dict[str, str]


def fold(
    model: nn.Module, variables: Mapping[str, Any], *args: Any, strict: bool = True, **kwargs: Any
) -> Folded:
    """Folds the norms of a model into the linear layers that feed them.

    The layers are `nn.Conv`, `nn.ConvTranspose` and `nn.Dense`. The norms are `jbn.linen.Norm`,
    `jbn.linen.BatchNorm` and `nn.BatchNorm`. The model is traced, and not run, to find the layer of
    each norm.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> x = jnp.ones((8, 3))
    >>> model = nn.Sequential([nn.Dense(4), jbn.linen.BatchNorm(use_running_average=True)])
    >>> variables = model.init(jax.random.key(0), x)
    >>> folded = jbn.linen.fold(model, variables, x)
    >>> y = folded.apply(folded.variables, x)
    >>> folded.layers
    {'layers_1': 'layers_0'}

    Args:
      model: any Linen module.
      variables: the variables of the model after training; they do not change.
      *args: the arguments of `model.apply` in inference. Only the shapes and dtypes of arrays
        matter.
      strict: whether a norm that cannot be folded is an error.
      **kwargs: the keyword arguments of `model.apply` in inference, such as `train=False`.

    Returns:
      A `Folded`, with a function and variables for it.

    Raises:
      ValueError: a norm was called in training mode. With `strict`: a norm cannot be folded,
        because its input is not the unchanged output of a linear layer, or because that output, the
        kernel or the norm is used more than once.
    """
    variables = nn.unbox(variables)
    layers: dict[str, nn.Module] = {}
    calls: dict[str, fold_trace.Call] = {}
    replaced = intercepted()  # Then the module runs another norm than its own.

    def call_layer(name, module, call, *args, **kwargs):
        layers[name] = module
        return fold_trace.mark(call(*args, **kwargs), "layer", name)

    def call_norm(name, module, call, x, use_running_average=None, *, mask=None):
        fold_trace.require_inference(name, module, use_running_average)
        y = call(fold_trace.mark(x, "norm", name), use_running_average, mask=mask)
        wide: dict[str, Any] = {}
        activation = None
        if hasattr(module, "dtype"):
            wide["dtype"] = None  # Then y has the dtype of the kernel.
        elif not replaced:
            wide["norm"], activation = fold_trace.linear_part(module.norm)
        norm = module.clone(parent=None, use_running_average=True, **wide)
        calls[name] = fold_trace.Call.of(norm, y, mask is not None, activation)
        return y

    def spy(context, call, *args, **kwargs):
        module = context.module
        if type(module) in _LAYERS:
            return call_layer(path_of(module), module, call, *args, **kwargs)
        if calls_as_one_of(type(module), _NORMS):
            return call_norm(path_of(module), module, call, *args, **kwargs)
        return call(*args, **kwargs)

    with intercept_calls(spy, key=object()):
        traced = fold_trace.trace(
            lambda variables: model.apply(variables, *args, **kwargs),
            variables,
            lambda leaves, layer: flatten_dict(leaves)["params", *layer.split("/"), "kernel"],
        )

    leaves = flatten_dict(variables)

    def fold_one(norm, layer):
        nonlocal leaves
        leaves = _fold_one(leaves, norm, calls[norm], layer, layers[layer])

    folded, refused = fold_trace.fold_each(traced, calls, fold_one, strict)

    def call_folded(module, x, use_running_average=None, *, mask=None):
        fold_trace.require_inference(path_of(module), module, use_running_average)
        bias = module.get_variable("params", "bias")
        y = x if bias is None else x.astype(bias.dtype) + jnp.broadcast_to(bias, x.shape)
        return calls[path_of(module)].finish(y)

    def stand_in(context, call, *args, **kwargs):
        module = context.module
        if calls_as_one_of(type(module), _NORMS) and path_of(module) in folded:
            return call_folded(module, *args, **kwargs)
        return call(*args, **kwargs)

    key = object()

    def apply(variables, *args, **kwargs):
        with intercept_calls(stand_in, key):
            return model.apply(variables, *args, **kwargs)

    return Folded(apply, unflatten_dict(leaves), folded, refused)


def _fold_one(
    leaves, norm: str, call: fold_trace.Call, layer: str, module: Any
) -> dict[tuple, Any]:
    """Returns the flat variables with one norm folded, or raises ValueError."""
    norm_path, layer_path = tuple(norm.split("/")), tuple(layer.split("/"))
    of_norm = {(key[0], key[-1]): leaf for key, leaf in leaves.items() if key[1:-1] == norm_path}

    def infer(x: jax.Array) -> jax.Array:
        fold_trace.require_feature_vectors({key[-1]: of_norm[key] for key in of_norm}, x.size)
        y: Any = call.norm.apply(unflatten_dict(of_norm), jnp.expand_dims(x, range(call.ndim - 1)))
        return y.reshape(x.shape)

    own_bias = module.use_bias
    kernel, bias = jbn.fold(
        infer,
        leaves["params", *layer_path, "kernel"],
        leaves["params", *layer_path, "bias"] if own_bias else None,
        axis=-2 if getattr(module, "transpose_kernel", False) else -1,
    )
    leaves = {key: leaf for key, leaf in leaves.items() if key[1:-1] != norm_path}
    bias_path = layer_path if own_bias else norm_path
    folded = {("params", *layer_path, "kernel"): kernel, ("params", *bias_path, "bias"): bias}
    return leaves | folded
