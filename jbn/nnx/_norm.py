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

    The leaves of its parameters are `nnx.Param`, those of its state `nnx.BatchStat`, under the
    names of their fields. A count is stored only if the norm needs it, so the variables of a
    `batch_norm` with a constant decay are those of Flax's BatchNorm.

    >>> import jax.numpy as jnp
    >>> module = jbn.nnx.Norm(jbn.batch_norm(decay=0.9), 3)
    >>> y = module(jnp.ones((8, 3)))

    Args:
      norm: the norm, such as `jbn.batch_norm(decay=0.9)`.
      num_features: what `norm.init` takes.
      use_running_average: whether to infer instead of to train; `train()` and `eval()` set it.
      param_dtype: of the parameters.
      bias_init: initializer of the bias; by default it starts as in `norm.init`.
      scale_init: initializer of the scale; by default it starts as in `norm.init`.
      rngs: where the initializers' keys come from, if they need one.
      bias_metadata: metadata of the bias variable.
      scale_metadata: metadata of the scale variable.
    """

    _require = staticmethod(require_module_norm)

    def __call__(
        self, x: ArrayLike, use_running_average: bool | None = None, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x`; in training mode, moves the state.

        Args:
          x: the input. Integers count as float32.
          use_running_average: whether to infer instead of to train; overrides the module's own.
          mask: boolean, True at valid positions, as in `jbn.Norm.train`.

        Returns:
          The output, of the shape of x.
        """
        return self._apply(
            self.norm, as_floating(x), use_running_average=use_running_average, mask=mask
        )


class DomainNorm(_Wrapping[domain_norm]):
    """A `jbn.domain_norm` as a module: one scale and bias, and statistics for each domain.

    Its variables are those of `Norm`, each `nnx.BatchStat` with a leading axis of domains. Domains
    may be data sets, time steps, or clean and adversarial examples.

    >>> import jax.numpy as jnp
    >>> module = jbn.nnx.DomainNorm(jbn.domain_norm(jbn.batch_norm(), num_domains=2), 3)
    >>> y = module(jnp.arange(12.0).reshape(4, 3), jnp.array([0, 0, 1, 1]))

    Args:
      norm: the norm, such as `jbn.domain_norm(jbn.batch_norm(), num_domains=2)`.
      num_features: what `norm.init` takes.
      use_running_average: whether to infer instead of to train; `train()` and `eval()` set it.
      param_dtype: of the parameters.
      bias_init: initializer of the bias; by default it starts as in `norm.init`.
      scale_init: initializer of the scale; by default it starts as in `norm.init`.
      rngs: where the initializers' keys come from, if they need one.
      bias_metadata: metadata of the bias variable.
      scale_metadata: metadata of the scale variable.
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
        """Normalizes each domain of `x`; in training mode, moves its state.

        Args:
          x: the input. Integers count as float32.
          domain: integers that count from 0, as in `jbn.domain_norm`.
          use_running_average: whether to infer instead of to train; overrides the module's own.
          mask: boolean, True at valid positions, as in `jbn.Norm.train`.

        Returns:
          The output, of the shape of x.
        """
        return self._apply(
            self.norm, as_floating(x), domain, use_running_average=use_running_average, mask=mask
        )
