"""Folds the norms of an NNX model into its linear layers, without an edit of the model.

    model.eval()
    folded = nnx_fold.fold(model, x)
    y = folded.model(x)

What cannot be folded is refused, by name and with the reason.
"""

import functools
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

import jbn
from jbn import fold_trace
from jbn.nnx import BatchNorm, Norm, convert

_LAYERS = (nnx.Conv, nnx.ConvTranspose, nnx.Linear)
_NORMS = (BatchNorm, Norm, nnx.BatchNorm)
Model = TypeVar("Model")


class Folded(NamedTuple, Generic[Model]):
    """A model without those of its norms that could be folded.

    Attributes:
      model: a copy, whose folded layers have another kernel and bias, and whose folded norms pass
        on what they get.
      layers: by path of the norm, the path of the layer into which it was folded.
      kept: by path of the norm, why it was not.
    """

    model: Model
    layers: dict[str, str]
    kept: dict[str, str]


def fold(model: Model, *args: Any, strict: bool = True, **kwargs: Any) -> Folded[Model]:
    """Folds the norms of a model into the linear layers that feed them.

    The layers are `nnx.Conv`, `nnx.ConvTranspose` and `nnx.Linear`, the norms those of `jbn.nnx`
    and `nnx.BatchNorm`. The model is traced, not run, to see which output goes where.

    Args:
      model: any NNX model, after training and in evaluation mode; it stays as it is.
      *args: with which it is called. Of arrays only shape and dtype matter.
      strict: whether a norm that cannot be folded is an error.
      **kwargs: likewise.

    Raises:
      ValueError: a norm was called in training mode. With `strict`: a norm cannot be folded, for
        its input is not the unchanged output of a linear layer, or that output, the kernel or the
        norm is used more than once.
    """
    calls: dict[str, _Call] = {}
    spied: Any = nnx.clone(model)
    for path, module in _modules(spied).items():
        if type(module) in _LAYERS + _NORMS:
            module.__class__ = _spying(type(module))
            module.fold_name = path
            module.fold_report = functools.partial(calls.__setitem__, path)
    graph, state = nnx.split(spied)
    traced = fold_trace.trace(
        lambda state: nnx.merge(graph, state)(*args, **kwargs),
        state,
        lambda leaves, layer: _leaves(leaves)[f"{layer}/kernel"],
    )

    folded, kept, model = {}, dict(traced.refused), nnx.clone(model)
    modules = _modules(model)
    for norm, layer in traced.layers.items():
        if calls[norm].masked:
            kept[norm] = "it is called with a mask"
            continue
        try:
            _fold_one(modules[norm], calls[norm], modules[layer])
            folded[norm] = layer
        except ValueError as error:
            kept[norm] = f"it does not fit the features of {layer!r}: {error}"
    if strict:
        fold_trace.require_all_folded(kept)

    def replace(path, node):
        return _Passing(calls[_name(path)].dtype) if _name(path) in folded else node

    return Folded(nnx.recursive_map(replace, model), folded, kept)


class _Call(NamedTuple):
    """How a norm was called: rank of x, dtype of y, whether with a mask."""

    ndim: int
    dtype: DTypeLike
    masked: bool


@functools.cache
def _spying(cls: type[nnx.Module]) -> type[nnx.Module]:
    """Returns the class of a module that marks its input or output and goes on as before."""

    def call_layer(self, *args, **kwargs):
        return fold_trace.mark(cls.__call__(self, *args, **kwargs), "layer", self.fold_name)

    def call_norm(self, x, use_running_average=None, *, mask=None):
        _require_inference(self, use_running_average)
        x = fold_trace.mark(x, "norm", self.fold_name)
        y = cls.__call__(self, x, use_running_average, mask=mask)
        self.fold_report(_Call(y.ndim, y.dtype, mask is not None))
        return y

    return type(cls.__name__, (cls,), {"__call__": call_layer if cls in _LAYERS else call_norm})


class _Passing(nnx.Module):
    """Stands where a folded norm was."""

    def __init__(self, dtype: DTypeLike):
        self.dtype = dtype
        self.use_running_average = True

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Returns `x` in the dtype that the norm's output had."""
        _require_inference(self, use_running_average)
        return x.astype(self.dtype)


def _fold_one(norm: Any, call: _Call, layer: Any) -> None:
    """Folds a norm into a layer, or raises ValueError and changes nothing."""
    norm = convert(norm)  # Flax's own would not notice a wrong shape.
    if hasattr(norm, "dtype"):
        norm.dtype = None  # It then answers in that of the kernel.

    def infer(x: jax.Array) -> jax.Array:
        return norm(jnp.expand_dims(x, range(call.ndim - 1)), True).reshape(x.shape)

    kernel, bias = jbn.fold(
        infer,
        layer.kernel[...],
        None if layer.bias is None else layer.bias[...],
        axis=-2 if getattr(layer, "transpose_kernel", False) else -1,
    )
    layer.kernel[...] = kernel
    layer.bias = nnx.Param(bias)
    layer.use_bias = True


def _modules(model: Any) -> dict[str, Any]:
    return {_name(path): module for path, module in nnx.iter_modules(model)}


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _leaves(state: Any) -> dict[str, Any]:
    return {_name(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def _require_inference(module: Any, use_running_average: bool | None) -> None:
    if use_running_average is None:
        use_running_average = module.use_running_average
    if not use_running_average:
        raise ValueError(
            "a norm is called in training mode: fold, and call what was folded, in evaluation mode."
        )
