"""Runs a norm in an NNX module: reads variables, calls the norm and writes changed variables."""

import dataclasses
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.nnx.module import first_from
from flax.typing import Initializer
from jax.typing import DTypeLike

from jbn._core.layout import Mask
from jbn._flax.fields import require_initializers_fit, stored_fields
from jbn._norms.domain import domain_norm
from jbn._norms.no_update import updates_statistics
from jbn._norms.norm import BatchNormParams, Norm

Metadata = Mapping[str, Any]
NO_METADATA: Metadata = MappingProxyType({})


class ModeModule(nnx.Module):
    """A module with a training and an inference mode, which `nnx.view` can set."""

    use_running_average: bool | None

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode of a view of the module (see `nnx.view`).

        Args:
          use_running_average: whether to run inference instead of training; None changes nothing.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class NormModule(ModeModule):
    """A module with a norm."""

    num_features: int | tuple[int, ...]
    scale: Any
    bias: Any
    mean: Any
    var: Any

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # NNX's metaclass hides the arguments of __init__ from help() and from editors.
        signature = inspect.signature(cls.__init__)
        arguments = list(signature.parameters.values())[1:]
        cls.__signature__ = signature.replace(parameters=arguments)

    def _make_variables(
        self,
        norm: Norm | domain_norm,
        rngs: nnx.Rngs | None,
        param_dtype: DTypeLike,
        initializers: Mapping[str, Initializer | None],
        metadata: Mapping[str, Metadata],
    ) -> None:
        """Makes variables with the names of the fields of the norm's parameters and state."""
        params, state = norm.init(self.num_features)
        require_initializers_fit(params, initializers)
        for name, value in params._asdict().items():
            if value is None:
                setattr(self, name, nnx.data(None))
                continue
            init, value = initializers[name], value.astype(param_dtype)
            if init is not None:
                key: Any = None if rngs is None else rngs.params()
                value = init(key, value.shape, param_dtype)
            setattr(self, name, nnx.Param(value, **metadata[name]))
        for name, value in stored_fields(norm, state).items():
            setattr(self, name, nnx.BatchStat(value))

    def _apply(
        self,
        norm: Norm | domain_norm,
        x: jax.Array,
        *domain: Any,
        use_running_average: bool | None,
        mask: Mask,
    ) -> jax.Array:
        """Applies a norm to `x`."""
        norm_call: Any = norm
        params = self._params()
        start = norm.init(self.num_features)[1]
        stored = [name for name in start._fields if hasattr(self, name)]
        state = start._replace(**{name: getattr(self, name)[...] for name in stored})
        hint = "use_running_average is not set: pass it, or use `model.train()` and `model.eval()`."
        infer = first_from(use_running_average, self.use_running_average, error_msg=hint)
        # `nnx.tabulate` is often called with one example, and an error would leave Flax patched.
        tabulated = hasattr(self, "_nnx_tabulate_id")
        single = x.size == np.prod(self.num_features)
        if infer or (tabulated and single):
            return norm_call.infer(params, state, x, *domain, mask=mask)
        y, new = norm_call.train(params, state, x, *domain, mask=mask)
        for name in stored if updates_statistics() else ():
            value = getattr(new, name)
            if value is not getattr(state, name):
                getattr(self, name)[...] = value
        return y

    def _params(self) -> BatchNormParams:
        values = [getattr(self, name) for name in BatchNormParams._fields]
        return BatchNormParams(*(value if value is None else value[...] for value in values))


def attribute(norm: Any) -> Any:
    """Returns a norm as an attribute of a module: static, or data if some options are traced."""
    norm = dataclasses.replace(norm)  # Options that are arrays become numbers.
    return nnx.data(norm) if jax.tree.leaves(norm) else norm


def modules_by_path(model: Any) -> dict[str, Any]:
    """Returns the modules of a model by their paths, joined by "/"."""
    return {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
