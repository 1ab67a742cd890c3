"""The modules `Norm` and `DomainNorm`, which take any norm."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import ArrayLike, DTypeLike

from jbn._core.layout import Layout, Mask
from jbn._flax.fields import (
    as_floating,
    per_domain,
    require_domain_norm,
    require_module_norm,
    require_same_axis,
    require_same_params,
)
from jbn._norms.domain import domain_norm
from jbn._norms.norm import Norm as NormValue
from jbn.linen._apply import apply, num_features, path_of


class _Wrapping(nn.Module):
    """A module with a norm."""

    norm: Any
    use_running_average: bool | None = None
    num_features: int | tuple[int, ...] | None = None
    param_dtype: DTypeLike = jnp.float32
    bias_init: Initializer | None = None
    scale_init: Initializer | None = None


class Norm(_Wrapping):
    """Any `jbn.Norm` as a module.

    The leaves of its parameters are variables of the collection `params`, those of its state of
    `batch_stats`, under the names of their fields. A count is stored only if the norm needs it, so
    the variables of a `batch_norm` with a constant decay are those of Flax's BatchNorm.

    >>> import jax, jax.numpy as jnp
    >>> module = jbn.linen.Norm(jbn.batch_norm(decay=0.9), use_running_average=False)
    >>> variables = module.init(jax.random.key(0), jnp.ones((8, 3)))
    >>> y, updates = module.apply(variables, jnp.ones((8, 3)), mutable=["batch_stats"])

    Attributes:
      norm: the norm, such as `jbn.batch_norm(decay=0.9)`.
      use_running_average: whether to infer instead of to train; may be given at the call.
      num_features: what `norm.init` takes; by default the shape of x on the norm's axis.
      param_dtype: of the parameters.
      bias_init: initializer of the bias; by default it starts as in `norm.init`.
      scale_init: initializer of the scale; by default it starts as in `norm.init`.
    """

    norm: NormValue

    @nn.compact
    def __call__(
        self, x: ArrayLike, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x`; in training mode, moves the state unless the module is initializing.

        Args:
          x: the input. Integers count as float32.
          use_running_average: whether to infer instead of to train.
          mask: boolean, True at valid positions, as in `jbn.Norm.train`.

        Returns:
          The output, of the shape of x.
        """
        return apply_norm(self, None, x, use_running_average, mask=mask)


class DomainNorm(_Wrapping):
    """A `jbn.domain_norm` as a module: one scale and bias, and statistics for each domain.

    Its variables are those of `Norm`, those of `batch_stats` with a leading axis of domains.
    Domains may be data sets, time steps, or clean and adversarial examples.

    >>> import jax, jax.numpy as jnp
    >>> module = jbn.linen.DomainNorm(jbn.domain_norm(jbn.batch_norm(), num_domains=2))
    >>> x, domain = jnp.arange(12.0).reshape(4, 3), jnp.array([0, 0, 1, 1])
    >>> variables = module.init(jax.random.key(0), x, domain, use_running_average=True)
    >>> y = module.apply(variables, x, domain, use_running_average=True)

    Attributes:
      norm: the norm, such as `jbn.domain_norm(jbn.batch_norm(), num_domains=2)`.
      use_running_average: whether to infer instead of to train; may be given at the call.
      num_features: what `norm.init` takes; by default the shape of x on the norm's axis.
      param_dtype: of the parameters.
      bias_init: initializer of the bias; by default it starts as in `norm.init`.
      scale_init: initializer of the scale; by default it starts as in `norm.init`.
    """

    norm: domain_norm

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        domain: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: Mask = None,
    ) -> jax.Array:
        """Normalizes each domain of `x`; in training mode, moves its state unless initializing.

        Args:
          x: the input. Integers count as float32.
          domain: integers that count from 0, as in `jbn.domain_norm`.
          use_running_average: whether to infer instead of to train.
          mask: boolean, True at valid positions, as in `jbn.Norm.train`.

        Returns:
          The output, of the shape of x.
        """
        return apply_domain_norm(self, None, x, domain, use_running_average, mask=mask)


def apply_norm(
    module: Norm,
    norm: NormValue | None,
    x: ArrayLike,
    use_running_average: bool | None = None,
    *,
    mask: Mask = None,
) -> jax.Array:
    """Calls a Norm by another norm, or by its own if that is None."""
    require_module_norm(module.norm)
    return _apply(module, module.norm, norm, x, use_running_average=use_running_average, mask=mask)


def apply_domain_norm(
    module: DomainNorm,
    norm: NormValue | None,
    x: ArrayLike,
    domain: ArrayLike,
    use_running_average: bool | None = None,
    *,
    mask: Mask = None,
) -> jax.Array:
    """Calls a DomainNorm by another norm for each domain, or by its own if that is None."""
    require_domain_norm(module.norm)
    other = None if norm is None else dataclasses.replace(module.norm, norm=norm)
    return _apply(
        module, module.norm, other, x, domain, use_running_average=use_running_average, mask=mask
    )


def _apply(
    module: _Wrapping, own: Any, other: Any, x: ArrayLike, *domain: ArrayLike, **options: Any
):
    """Applies the module's own norm to x, or another that learns the same."""
    x = as_floating(x)
    shape = module.num_features
    if shape is None:
        shape = Layout.of(x, per_domain(own).axis).feature_shape
    elif isinstance(shape, int):
        shape = (shape,)
    params, start = own.init(num_features(shape))
    initializers = {"scale": module.scale_init, "bias": module.bias_init}
    for name, value in params._asdict().items():
        if value is not None:
            init = initializers[name] or (
                lambda key, shape, dtype, value=value: value.astype(dtype)
            )
            variable = module.param(name, init, value.shape, module.param_dtype)
            params = params._replace(**{name: variable})
    if other is None:
        return apply(module, own, params, start, x, *domain, **options)
    require_same_axis(path_of(module), per_domain(own).axis, other, x.ndim)
    wanted, start = other.init(num_features(shape))
    require_same_params(path_of(module), params, wanted)
    return apply(module, other, params, start, x, *domain, **options)
