"""The modules `Norm` and `DomainNorm`, which take any norm."""

from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax.typing import ArrayLike, DTypeLike

from jbn._core.layout import Mask
from jbn._flax.fields import as_floating, require_domain_norm, require_module_norm
from jbn._norms.domain import domain_norm
from jbn._norms.norm import Norm as NormValue
from jbn.nnx._module import NO_METADATA, Metadata, NormModule, attribute

AnyNorm = TypeVar("AnyNorm", NormValue, domain_norm)


class _Wrapping(NormModule, Generic[AnyNorm]):
    @staticmethod
    def _require(norm: object) -> None:
        raise NotImplementedError

    def __init__(
        self,
        norm: AnyNorm,
        num_features: int | tuple[int, ...],
        *,
        use_running_average: bool | None = False,
        param_dtype: DTypeLike = jnp.float32,
        bias_init: Initializer | None = None,
        scale_init: Initializer | None = None,
        rngs: nnx.Rngs | None = None,
        bias_metadata: Metadata = NO_METADATA,
        scale_metadata: Metadata = NO_METADATA,
    ):
        self._require(norm)
        self.norm = attribute(norm)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self._make_variables(
            norm,
            rngs,
            param_dtype,
            {"scale": scale_init, "bias": bias_init},
            {"scale": scale_metadata, "bias": bias_metadata},
        )


class Norm(_Wrapping[NormValue]):
    """Any `jbn.Norm` as a module.

    The fields of the norm's parameters are variables of type `nnx.Param`, and the fields of its
    state are variables of type `nnx.BatchStat`. A count is stored only if the norm needs it, so a
    `jbn.batch_norm` with a constant decay has the same variables as Flax's BatchNorm.

    >>> import jax.numpy as jnp
    >>> module = jbn.nnx.Norm(jbn.batch_norm(decay=0.9), 1)
    >>> y = module(jnp.array([[1.0], [3.0]]))
    >>> print(module.mean[...])
    [0.2]

    Args:
      norm: the norm, such as `jbn.batch_norm(decay=0.9)`.
      num_features: number of features, or the sizes of several feature axes.
      use_running_average: whether to run inference instead of training; `train()` and `eval()` set
        it.
      param_dtype: the dtype of the parameters.
      bias_init: initializer of the bias, for a norm with a bias; by default the bias starts as in
        `norm.init`.
      scale_init: initializer of the scale, for a norm with a scale; by default the scale starts as
        in `norm.init`.
      rngs: the source of the initializers' keys, if they need keys.
      bias_metadata: metadata of the bias variable.
      scale_metadata: metadata of the scale variable.

    Raises:
      TypeError: `norm` is not a `jbn.Norm`.
      ValueError: `bias_init` or `scale_init` is given and the norm has no bias or scale.
    """

    _require = staticmethod(require_module_norm)

    def __call__(
        self, x: ArrayLike, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x`; in training mode, updates the state.

        Args:
          x: the input. Integers are converted to float32.
          use_running_average: whether to run inference instead of training; overrides the attribute
            of the module.
          mask: boolean array, True at valid positions, as in `jbn.Norm.train`.

        Returns:
          The output, with the shape of x.
        """
        return self._apply(
            self.norm, as_floating(x), use_running_average=use_running_average, mask=mask
        )


class DomainNorm(_Wrapping[domain_norm]):
    """A `jbn.domain_norm` as a module: one scale and bias, and statistics for each domain.

    It has the same variables as `Norm`; those of type `nnx.BatchStat` have a leading axis of
    domains. Domains are for instance data sets, time steps, or clean and adversarial examples.

    >>> import jax.numpy as jnp
    >>> module = jbn.nnx.DomainNorm(jbn.domain_norm(jbn.batch_norm(), num_domains=2), 3)
    >>> y = module(jnp.arange(12.0).reshape(4, 3), jnp.array([0, 0, 1, 1]))

    Args:
      norm: the norm, such as `jbn.domain_norm(jbn.batch_norm(), num_domains=2)`.
      num_features: number of features, or the sizes of several feature axes.
      use_running_average: whether to run inference instead of training; `train()` and `eval()` set
        it.
      param_dtype: the dtype of the parameters.
      bias_init: initializer of the bias, for a norm with a bias; by default the bias starts as in
        `norm.init`.
      scale_init: initializer of the scale, for a norm with a scale; by default the scale starts as
        in `norm.init`.
      rngs: the source of the initializers' keys, if they need keys.
      bias_metadata: metadata of the bias variable.
      scale_metadata: metadata of the scale variable.

    Raises:
      TypeError: `norm` is not a `jbn.domain_norm`.
      ValueError: `bias_init` or `scale_init` is given and the norm has no bias or scale.
    """

    _require = staticmethod(require_domain_norm)

    def __call__(
        self,
        x: ArrayLike,
        domain: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: Mask = None,
    ) -> jax.Array:
        """Normalizes each domain of `x`; in training mode, updates its state.

        Args:
          x: the input. Integers are converted to float32.
          domain: integer array that counts domains from 0, as in `jbn.domain_norm`.
          use_running_average: whether to run inference instead of training; overrides the attribute
            of the module.
          mask: boolean array, True at valid positions, as in `jbn.Norm.train`.

        Returns:
          The output, with the shape of x.
        """
        return self._apply(
            self.norm, as_floating(x), domain, use_running_average=use_running_average, mask=mask
        )
