"""Folds the norms of a Linen model into its linear layers, without an edit of the model.

    folded = linen_fold.fold(model, variables, x, train=False)
    y = folded.apply(folded.variables, x, train=False)

What cannot be folded is refused, by name and with the reason.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

import jbn
from jbn import fold_trace
from jbn.linen import BatchNorm, Norm, intercept_calls, replace_batch_norm

_LAYERS = (nn.Conv, nn.ConvTranspose, nn.Dense)
_NORMS = (BatchNorm, Norm, nn.BatchNorm)


class Folded(NamedTuple):
    """A model that runs without those of its norms that could be folded.

    Attributes:
      apply: `apply(variables, *args, **kwargs)`, the model's own but for these norms.
      variables: what to give it. A folded layer has another kernel and bias; where it takes no
        bias, the norm adds it, and does nothing else.
      layers: by path of the norm, the path of the layer into which it was folded.
      kept: by path of the norm, why it was not.
    """

    apply: Callable[..., Any]
    variables: dict[str, Any]
    layers: dict[str, str]
    kept: dict[str, str]


def fold(
    model: nn.Module, variables: Mapping[str, Any], *args: Any, strict: bool = True, **kwargs: Any
) -> Folded:
    """Folds the norms of a model into the linear layers that feed them.

    The layers are `nn.Conv`, `nn.ConvTranspose` and `nn.Dense`, the norms those of `jbn.linen` and
    `nn.BatchNorm`. The model is traced, not run, to see which output goes where.

    Args:
      model: any Linen module.
      variables: of the model after training; they stay as they are.
      *args: with which `model.apply` infers. Of arrays only shape and dtype matter.
      strict: whether a norm that cannot be folded is an error.
      **kwargs: likewise, such as `train=False`.

    Raises:
      ValueError: a norm was called in training mode. With `strict`: a norm cannot be folded, for
        its input is not the unchanged output of a linear layer, or that output, the kernel or the
        norm is used more than once.
    """
    variables = nn.unbox(variables)
    layers: dict[str, nn.Module] = {}
    calls: dict[str, _Call] = {}

    def call_layer(module, call, *args, **kwargs):
        layers[_name(module)] = module
        return fold_trace.mark(call(*args, **kwargs), "layer", _name(module))

    def call_norm(module, call, x, use_running_average=None, *, mask=None):
        _require_inference(module, use_running_average)
        y = call(fold_trace.mark(x, "norm", _name(module)), use_running_average, mask=mask)
        # Without a dtype it answers in that of the kernel.
        wide = {"dtype": None} if hasattr(module, "dtype") else {}
        norm = module.clone(parent=None, use_running_average=True, **wide)
        calls[_name(module)] = _Call(norm, y.ndim, y.dtype, mask is not None)
        return y

    spies = dict.fromkeys(_LAYERS, call_layer) | dict.fromkeys(_NORMS, call_norm)
    with intercept_calls(spies, key=object()):
        traced = fold_trace.trace(
            lambda variables: model.apply(variables, *args, **kwargs),
            variables,
            lambda leaves, layer: flatten_dict(leaves)["params", *layer.split("/"), "kernel"],
        )

    leaves, folded, kept = flatten_dict(variables), {}, dict(traced.refused)
    for norm, layer in traced.layers.items():
        if calls[norm].masked:
            kept[norm] = "it is called with a mask"
            continue
        try:
            leaves = _fold_one(leaves, norm, calls[norm], layer, layers[layer])
            folded[norm] = layer
        except (ValueError, ScopeParamShapeError) as error:
            kept[norm] = f"it does not fit the features of {layer!r}: {error}"
    if strict:
        fold_trace.require_all_folded(kept)

    def call_folded(module, call, x, use_running_average=None, *, mask=None):
        if _name(module) not in folded:
            return call(x, use_running_average, mask=mask)
        _require_inference(module, use_running_average)
        bias = module.get_variable("params", "bias")
        y = x if bias is None else x.astype(bias.dtype) + bias
        return y.astype(calls[_name(module)].dtype)

    stand_ins, key = dict.fromkeys(_NORMS, call_folded), object()

    def apply(variables, *args, **kwargs):
        with intercept_calls(stand_ins, key):
            return model.apply(variables, *args, **kwargs)

    return Folded(apply, unflatten_dict(leaves), folded, kept)


class _Call(NamedTuple):
    """How a norm was called: a copy of it that infers, rank of x, dtype of y, whether masked."""

    norm: nn.Module
    ndim: int
    dtype: DTypeLike
    masked: bool


def _fold_one(leaves, norm: str, call: _Call, layer: str, module: nn.Module) -> dict[tuple, Any]:
    """Returns the flat variables with one norm folded, or raises ValueError."""
    norm_path, layer_path = tuple(norm.split("/")), tuple(layer.split("/"))
    of_norm = {(key[0], key[-1]): leaf for key, leaf in leaves.items() if key[1:-1] == norm_path}

    def infer(x: jax.Array) -> jax.Array:
        with replace_batch_norm():  # Flax's own would not notice a wrong shape.
            y: Any = call.norm.apply(
                unflatten_dict(of_norm), jnp.expand_dims(x, range(call.ndim - 1))
            )
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
    return leaves | {
        ("params", *layer_path, "kernel"): kernel,
        ("params", *bias_path, "bias"): bias,
    }


def _name(module: nn.Module) -> str:
    return "/".join(module.path)


def _require_inference(module: Any, use_running_average: bool | None) -> None:
    if not nn.merge_param("use_running_average", module.use_running_average, use_running_average):
        raise ValueError(
            f"norm {_name(module)!r} is called in training mode: fold for, and apply with, the "
            "arguments of inference, such as train=False."
        )
