"""Finds the linear layer that feeds each norm of a model, from a trace of the model.

`jbn.linen.fold` and `jbn.nnx.fold` mark the outputs of linear layers and the inputs of norms while
the model is traced. A norm can be folded if its marked input is the marked output of a layer, and
nothing else uses this output or the layer's kernel.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
from flax.errors import ScopeParamShapeError
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, JaxprEqn, Var, subjaxprs
from jax.typing import DTypeLike

from jbn._core.layout import Layout
from jbn._norms.frozen import frozen
from jbn._norms.method import Method
from jbn._norms.norm import Norm
from jbn.activations import InvertibleActivation, identity

Kind = Literal["layer", "norm"]


class Call(NamedTuple):
    """How a norm was called in the trace.

    Attributes:
      norm: the module. Only the linear part of its norm is folded.
      ndim: the rank of x.
      dtype: the dtype of y.
      activation: the activation of the norm, which is not folded; None if it has none.
      refusal: the reason why the norm cannot be folded; None if its call shows no reason.
    """

    norm: Any
    ndim: int
    dtype: DTypeLike
    activation: InvertibleActivation | None
    refusal: str | None

    @classmethod
    def of(cls, module: Any, y: jax.Array, masked: bool, activation: Any) -> "Call":
        """Describes a call with output y; `activation` is the activation of the norm, or None."""
        axes = Layout.of(y, getattr(module, "norm", module).axis).axes
        refusal = None
        if masked:
            refusal = "it is called with a mask"
        elif axes != (y.ndim - 1,):
            refusal = (
                f"it normalizes axes {axes} of its input, and the layer's features are on the last"
            )
        return cls(module, y.ndim, y.dtype, activation, refusal)

    def finish(self, x: jax.Array) -> jax.Array:
        """Applies the parts of the norm that were not folded: its dtype and its activation."""
        y = x.astype(self.dtype)
        return y if self.activation is None else self.activation.apply(y).astype(self.dtype)


class Traced(NamedTuple):
    """Which norms can be folded.

    Attributes:
      layers: for each norm that can be folded, its layer.
      refused: for each other norm, the reason why it cannot be folded.
    """

    layers: dict[str, str]
    refused: dict[str, str]


def mark(x: jax.Array, kind: Kind, name: str) -> jax.Array:
    """Returns `x`, marked as the output of a linear layer or the input of a norm."""
    return checkpoint_name(x, _tag(kind) + name)


def trace(model: Callable[[Any], Any], variables: Any, kernel: Callable[[Any, str], Any]) -> Traced:
    """Traces `model(variables)` and finds the layer of each norm.

    Args:
      model: a function that marks its arrays with `mark`.
      variables: a pytree of arrays.
      kernel: `kernel(variables, layer)` returns the kernel of a layer.
    """
    jaxpr = jax.make_jaxpr(model)(variables).jaxpr
    uses = _uses(jaxpr)
    variable_uses = jax.tree.unflatten(
        jax.tree.structure(variables), [uses[var] for var in jaxpr.invars]
    )
    sources, layer_calls = defaultdict[str, list](list), Counter[str]()
    for inner in _all_jaxprs(jaxpr):
        uses = _uses(inner)
        layer_of: dict[Any, str] = {eqn.outvars[0]: name for eqn, name in _marked(inner, "layer")}
        layer_calls.update(layer_of.values())
        for eqn, norm in _marked(inner, "norm"):
            source = eqn.invars[0]
            sources[norm].append((layer_of.get(source), uses[source]))

    def refusal(calls) -> str | None:
        layer, output_uses = calls[0]
        if len(calls) > 1:
            return "it is called more than once"
        if layer is None:
            return "its input is not the unchanged output of a linear layer"
        if output_uses > 1:
            return f"the output of {layer!r} is used elsewhere as well"
        if layer_calls[layer] > 1 or kernel(variable_uses, layer) > 1:
            return f"{layer!r} or its kernel is used elsewhere as well"
        return None

    refused = {norm: why for norm, calls in sources.items() if (why := refusal(calls))}
    layers = {norm: calls[0][0] for norm, calls in sources.items() if norm not in refused}
    return Traced(layers, refused)


def fold_each(
    traced: Traced, calls: Mapping[str, Call], fold_one: Callable[[str, str], None], strict: bool
) -> Traced:
    """Folds each norm that can be folded, and returns the folded and the refused norms.

    Args:
      traced: the result of `trace`.
      calls: the call of each norm.
      fold_one: `fold_one(norm, layer)` folds a norm, or raises an error and changes nothing.
      strict: whether a norm that cannot be folded is an error.

    Raises:
      ValueError: with `strict`, a norm was refused.
    """
    folded, refused = {}, dict(traced.refused)
    for norm, layer in traced.layers.items():
        if refusal := calls[norm].refusal:
            refused[norm] = refusal
            continue
        try:
            fold_one(norm, layer)
            folded[norm] = layer
        except (ValueError, ScopeParamShapeError) as error:
            refused[norm] = f"it does not fold into {layer!r}: {str(error).rstrip('.')}"
    if strict and refused:
        reasons = "".join(f"\n  {norm}: {why}." for norm, why in refused.items())
        raise ValueError(
            f"{len(refused)} norms cannot be folded; strict=False leaves them unchanged.{reasons}"
        )
    return Traced(folded, refused)


def linear_part(norm: Norm) -> tuple[Norm, InvertibleActivation | None]:
    """Returns the norm without its activation and output dtype, and the activation."""
    if isinstance(norm, frozen):
        linear, activation = linear_part(norm.norm)
        return dataclasses.replace(norm, norm=linear), activation
    if not isinstance(norm, Method):
        return norm, None
    # Not None, since a norm with an activation has a least scale.
    linear = None if norm.activation is None else identity()
    return dataclasses.replace(norm, dtype=None, activation=linear), norm.activation


def require_feature_vectors(vectors: Mapping[str, Any], features: int) -> None:
    """Checks that vectors of a norm have one value per feature of a layer, as Flax does not.

    Raises:
      ValueError: a vector has another shape.
    """
    for name, vector in vectors.items():
        if vector.ndim and vector.shape != (features,):
            raise ValueError(
                f"{name} of shape {vector.shape} does not fit the {features} features of the layer"
            )


def require_inference(norm: str, module: Any, use_running_average: bool | None) -> None:
    """Checks that a norm is called in inference.

    Raises:
      ValueError: it is called in training mode.
    """
    if not (module.use_running_average if use_running_average is None else use_running_average):
        raise ValueError(
            f"norm {norm!r} is called in training mode: fold a model, and call the folded model, "
            "in inference mode, for example with train=False or after model.eval()."
        )


def _tag(kind: Kind) -> str:
    return f"jbn.fold {kind} "


def _marked(jaxpr: Jaxpr, kind: Kind) -> Iterator[tuple[JaxprEqn, str]]:
    for eqn in jaxpr.eqns:
        name = str(eqn.params.get("name"))
        if eqn.primitive.name == "name" and name.startswith(_tag(kind)):
            yield eqn, name.removeprefix(_tag(kind))


def _uses(jaxpr: Jaxpr) -> Counter[Any]:
    """Counts how often each variable of the program is read or returned."""
    reads = [*(atom for eqn in jaxpr.eqns for atom in eqn.invars), *jaxpr.outvars]
    return Counter(atom for atom in reads if isinstance(atom, Var))


def _all_jaxprs(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    yield jaxpr
    for inner in subjaxprs(jaxpr):
        yield from _all_jaxprs(inner)
