"""Runs a norm in a Linen module: reads variables, calls the norm and writes changed variables."""

import math
from typing import Any

import flax.linen as nn
import jax

from jbn._core.layout import Layout, Mask
from jbn._flax.fields import per_domain, stored_fields
from jbn._norms.domain import domain_norm
from jbn._norms.no_update import updates_statistics
from jbn._norms.norm import BatchNormParams, Norm


def apply(
    module: Any,
    norm: Norm | domain_norm,
    params: BatchNormParams,
    start: Any,
    x: jax.Array,
    *domain: Any,
    use_running_average: bool | None,
    mask: Mask,
) -> jax.Array:
    """Applies a norm to `x`, with its state in the collection `batch_stats` of the module.

    Args:
      module: a module with the field `use_running_average`.
      norm: any norm.
      params: the parameters of the norm.
      start: the state of the norm before the first batch.
      x: the input.
      *domain: the domain, if the norm has domains.
      use_running_average: as in the calls of the modules.
      mask: as in the calls of the modules.
    """
    norm_call: Any = norm
    variables = _variables(module, norm, start)
    state = start._replace(**{name: variable.value for name, variable in variables.items()})
    infer = nn.merge_param("use_running_average", module.use_running_average, use_running_average)
    # Models are often initialized with one example, which has no variance, and outside of the map
    # that binds the axis name.
    single = x.size == math.prod(Layout.of(x, per_domain(norm).axis).feature_shape)
    if infer or (module.is_initializing() and single):
        return norm_call.infer(params, state, x, *domain, mask=mask)
    try:
        y, new = norm_call.train(params, state, x, *domain, mask=mask)
    except NameError:
        if not module.is_initializing():
            raise
        return norm_call.infer(params, state, x, *domain, mask=mask)
    if module.is_initializing() or not updates_statistics():
        return y
    for name, variable in variables.items():
        value = getattr(new, name)
        if value is not getattr(state, name):  # A frozen norm needs no mutable collection.
            variable.value = value
    return y


def num_features(feature_shape: tuple[int, ...]) -> int | tuple[int, ...]:
    """Returns the argument of `Norm.init` for features of a shape."""
    return feature_shape[0] if len(feature_shape) == 1 else feature_shape


def path_of(module: nn.Module) -> str:
    """Returns the path of a module, joined by "/"."""
    return "/".join(module.path)


def _variables(module: nn.Module, norm: Norm | domain_norm, start: Any) -> dict[str, Any]:
    """Returns the variables of the state's fields; variables from Flax have only mean and var."""
    wanted = {"mean", "var"}
    if module.is_mutable_collection("batch_stats"):
        wanted |= stored_fields(norm, start).keys()
    return {
        name: module.variable("batch_stats", name, lambda value=value: value)
        for name, value in start._asdict().items()
        if name in wanted or module.has_variable("batch_stats", name)
    }
