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
    require_initializers_fit,
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

    The fields of the norm's parameters are variables in the collection `params`, and the fields of
    its state are variables in the collection `batch_stats`. A count is stored only if the norm
    needs it, so a `jbn.batch_norm` with a constant decay has the same variables as Flax's
    BatchNorm.

    >>> import jax, jax.numpy as jnp
    >>> module = jbn.linen.Norm(jbn.batch_norm(decay=0.9), use_running_average=False)
    >>> x = jnp.array([[1.0], [3.0]])
    >>> variables = module.init(jax.random.key(0), x)
    >>> y, updates = module.apply(variables, x, mutable=["batch_stats"])
    >>> print(updates["batch_stats"]["mean"])
    [0.2]

    Attributes:
      norm: the norm, such as `jbn.batch_norm(decay=0.9)`.
      use_running_average: whether to run inference instead of training; may be given in the call
        instead.
      num_features: the argument of `norm.init`; by default the sizes of x on the norm's axis.
      param_dtype: the dtype of the parameters.
      bias_init: initializer of the bias, for a norm with a bias; by default the bias starts as in
        `norm.init`.
      scale_init: initializer of the scale, for a norm with a scale; by default the scale starts as
        in `norm.init`.
    """

    norm: NormValue

    @nn.compact
    def __call__(
        self, x: ArrayLike, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x`; in training mode, updates the state, except in `init`.

        Args:
          x: the input. Integers are converted to float32.
          use_running_average: whether to run inference instead of training.
          mask: boolean array, True at valid positions, as in `jbn.Norm.train`.

        Returns:
          The output, with the shape of x.

        Raises:
          ValueError: `bias_init` or `scale_init` is given and the norm has no bias or scale.
        """
        return apply_norm(self, None, x, use_running_average, mask=mask)


class DomainNorm(_Wrapping):
    """A `jbn.domain_norm` as a module: one scale and bias, and statistics for each domain.

    It has the same variables as `Norm`; those in the collection `batch_stats` have a leading axis
    of domains. Domains are for instance data sets, time steps, or clean and adversarial examples.

    >>> import jax, jax.numpy as jnp
    >>> module = jbn.linen.DomainNorm(jbn.domain_norm(jbn.batch_norm(), num_domains=2))
    >>> x, domain = jnp.arange(12.0).reshape(4, 3), jnp.array([0, 0, 1, 1])
    >>> variables = module.init(jax.random.key(0), x, domain, use_running_average=True)
    >>> y = module.apply(variables, x, domain, use_running_average=True)

    Attributes:
      norm: the norm, such as `jbn.domain_norm(jbn.batch_norm(), num_domains=2)`.
      use_running_average: whether to run inference instead of training; may be given in the call
        instead.
      num_features: the argument of `norm.init`; by default the sizes of x on the norm's axis.
      param_dtype: the dtype of the parameters.
      bias_init: initializer of the bias, for a norm with a bias; by default the bias starts as in
        `norm.init`.
      scale_init: initializer of the scale, for a norm with a scale; by default the scale starts as
        in `norm.init`.
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
        """Normalizes each domain of `x`; in training mode, updates its state, except in `init`.

        Args:
          x: the input. Integers are converted to float32.
          domain: integer array that counts domains from 0, as in `jbn.domain_norm`.
          use_running_average: whether to run inference instead of training.
          mask: boolean array, True at valid positions, as in `jbn.Norm.train`.

        Returns:
          The output, with the shape of x.

        Raises:
          ValueError: `bias_init` or `scale_init` is given and the norm has no bias or scale.
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
    """Runs a Norm with `norm`, or with its own norm if `norm` is None."""
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
    """Runs a DomainNorm with `norm` for each domain, or with its own norm if `norm` is None."""
    require_domain_norm(module.norm)
    other = None if norm is None else dataclasses.replace(module.norm, norm=norm)
    return _apply(
        module, module.norm, other, x, domain, use_running_average=use_running_average, mask=mask
    )


def _apply(
    module: _Wrapping, own: Any, other: Any, x: ArrayLike, *domain: ArrayLike, **options: Any
):
    """Applies the module's own norm to x, or another norm with the same parameters."""
    x = as_floating(x)
    shape = module.num_features
    if shape is None:
        shape = Layout.of(x, per_domain(own).axis).feature_shape
    elif isinstance(shape, int):
        shape = (shape,)
    params, start = own.init(num_features(shape))
    initializers = {"scale": module.scale_init, "bias": module.bias_init}
    require_initializers_fit(params, initializers)
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
