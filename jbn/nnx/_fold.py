"""Folds the norms of an NNX model into its linear layers."""

import functools
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

import jbn
from jbn._core.layout import Mask
from jbn._flax import fold_trace
from jbn._flax.fields import calls_as_one_of
from jbn.nnx._batch_norm import BatchNorm
from jbn.nnx._module import ModeModule, modules_by_path
from jbn.nnx._norm import Norm

_LAYERS = (nnx.Conv, nnx.ConvTranspose, nnx.Linear)
_NORMS = (BatchNorm, Norm, nnx.BatchNorm)
Model = TypeVar("Model")


class Folded(NamedTuple, Generic[Model]):
    """A model without the norms that were folded.

    Attributes:
      model: a copy of the model. Each layer with a folded norm has a new kernel and bias. In place
        of each folded norm is a module that returns its input, after the activation of the norm if
        it has one.
      layers: a dictionary from the path of each folded norm to the path of its layer.
      refused: a dictionary from the path of each norm that was not folded to the reason.
    """

    model: Model
    layers: dict[str, str]
    refused: dict[str, str]


def fold(model: Model, *args: Any, strict: bool = True, **kwargs: Any) -> Folded[Model]:
    """Folds the norms of a model into the linear layers that feed them.

    The layers are `nnx.Conv`, `nnx.ConvTranspose` and `nnx.Linear`. The norms are `jbn.nnx.Norm`,
    `jbn.nnx.BatchNorm` and `nnx.BatchNorm`. The model is traced, and not run, to find the layer of
    each norm.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), jbn.nnx.BatchNorm(4, rngs=rngs))
    >>> model.eval()
    >>> folded = jbn.nnx.fold(model, jnp.ones((8, 3)))
    >>> y = folded.model(jnp.ones((8, 3)))
    >>> folded.layers
    {'layers/1': 'layers/0'}

    Args:
      model: any NNX model, after training and in evaluation mode; it does not change.
      *args: the arguments of a call of the model. Only the shapes and dtypes of arrays matter.
      strict: whether a norm that cannot be folded is an error.
      **kwargs: the keyword arguments of a call of the model.

    Returns:
      A `Folded`, with a copy of the model.

    Raises:
      ValueError: a norm was called in training mode. With `strict`: a norm cannot be folded,
        because its input is not the unchanged output of a linear layer, or because that output, the
        kernel or the norm is used more than once.
    """
    calls: dict[str, fold_trace.Call] = {}
    spied: Any = nnx.clone(model)
    for path, module in modules_by_path(spied).items():
        if type(module) in _LAYERS or calls_as_one_of(type(module), _NORMS):
            module.__class__ = _spying(type(module))
            module.fold_name = path
            module.fold_report = functools.partial(calls.__setitem__, path)
    graph, state = nnx.split(spied)
    traced = fold_trace.trace(
        lambda state: nnx.merge(graph, state)(*args, **kwargs),
        state,
        lambda leaves, layer: _leaves(leaves)[f"{layer}/kernel"],
    )

    model = nnx.clone(model)
    modules = modules_by_path(model)

    def fold_one(norm, layer):
        _fold_one(modules[norm], calls[norm], modules[layer])

    folded, refused = fold_trace.fold_each(traced, calls, fold_one, strict)

    def replace(path, node):
        return _Folded(_name(path), calls[_name(path)]) if _name(path) in folded else node

    return Folded(nnx.recursive_map(replace, model), folded, refused)


@functools.cache
def _spying(cls: type[nnx.Module]) -> type[nnx.Module]:
    """Returns a subclass whose call marks its input or output, and is otherwise the same."""

    def call_layer(self, *args, **kwargs):
        return fold_trace.mark(cls.__call__(self, *args, **kwargs), "layer", self.fold_name)

    def call_norm(self, x, use_running_average=None, *, mask=None):
        fold_trace.require_inference(self.fold_name, self, use_running_average)
        x = fold_trace.mark(x, "norm", self.fold_name)
        y = cls.__call__(self, x, use_running_average, mask=mask)
        activation = fold_trace.linear_part(self.norm)[1] if hasattr(self, "norm") else None
        self.fold_report(fold_trace.Call.of(self, y, mask is not None, activation))
        return y

    return type(cls.__name__, (cls,), {"__call__": call_layer if cls in _LAYERS else call_norm})


class _Folded(ModeModule):
    """The module in place of a folded norm."""

    def __init__(self, name: str, call: fold_trace.Call):
        self.name, self.finish = name, call.finish
        self.use_running_average = True

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Returns `x` in the dtype of the norm's output, after the norm's activation."""
        fold_trace.require_inference(self.name, self, use_running_average)
        return self.finish(x)


def _fold_one(norm: Any, call: fold_trace.Call, layer: Any) -> None:
    """Folds a norm into a layer; if it cannot, raises ValueError and changes nothing."""
    norm = nnx.clone(norm)
    if hasattr(norm, "norm"):
        norm.norm, _ = fold_trace.linear_part(norm.norm)
    else:
        norm.dtype = None  # Then y has the dtype of the kernel.

    def infer(x: jax.Array) -> jax.Array:
        vectors = {_name(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(norm))}
        fold_trace.require_feature_vectors(vectors, x.size)
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


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _leaves(state: Any) -> dict[str, Any]:
    return {_name(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}
