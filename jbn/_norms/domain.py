"""One norm with the statistics of several domains."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jbn._core.layout import Axes, Layout, Mask
from jbn._core.value import Value, require_number
from jbn._norms.norm import BatchNormParams, Norm, require_norm


class domain_norm(Value):
    """A norm with one scale and bias, but running statistics for each domain.

    The statistics are those of AdvProp's auxiliary norm (Xie et al. 2020,
    https://arxiv.org/abs/1911.09665) or of domain-specific norms (Chang et al. 2019,
    https://arxiv.org/abs/1906.03950). The latter also have parameters for each domain: keep one
    `BatchNormParams` a domain for that.

    `domain` is an integer array that counts from 0: of shape `[]` for all of x, or broadcastable to
    the shape of x without its feature axes, such as `[batch, 1, 1]` for images. All positions of a
    domain are a batch: they are normalized by its statistics, which alone move. With one domain a
    call, x is read as often as by the norm itself, otherwise once for each domain.

    >>> import jax.numpy as jnp
    >>> norm = jbn.domain_norm(jbn.batch_norm(), num_domains=2)
    >>> params, state = norm.init(3)
    >>> x = jnp.arange(12.0).reshape(4, 3)
    >>> y, state = norm.train(params, state, x, domain=jnp.array([0, 0, 1, 1]))

    Args:
      norm: any norm.
      num_domains: number of domains. Positions of a domain outside of this range have y = 0.
      axis: the feature axis or axes of the norm.

    Raises:
      ValueError: `num_domains` is not positive.
    """

    norm: Norm = dataclasses.field(kw_only=False)
    num_domains: int = dataclasses.field(kw_only=False)
    axis: Axes = -1

    def __post_init__(self):
        super().__post_init__()
        require_norm(self.norm)
        whole = isinstance(self.num_domains, int)
        require_number("num_domains", self.num_domains, lambda n: whole and n > 0, "positive")

    def init(self, num_features: int | tuple[int, ...]) -> tuple[BatchNormParams, Any]:
        """Returns parameters, and a state with leaves `[domains, ...]`.

        Args:
          num_features: number of features, or the sizes of several feature axes.
        """
        params, state = self.norm.init(num_features)
        return params, jax.tree.map(lambda a: jnp.stack([a] * self.num_domains), state)

    def train(
        self,
        params: BatchNormParams,
        state: Any,
        x: ArrayLike,
        domain: ArrayLike,
        *,
        mask: Mask = None,
    ) -> tuple[jax.Array, Any]:
        """Normalizes each domain of a batch by itself, and moves the statistics of each.

        Args:
          params: scale and bias, each `[*features]`, or None.
          state: running statistics, each `[domains, ...]`; carries no gradient.
          x: `[...]` of a real floating-point dtype.
          domain: integer, `[]` or broadcastable to the shape of x without its feature axes.
          mask: boolean, broadcastable likewise; True marks valid positions.

        Returns:
          y, of the shape of x; and the next state.

        Raises:
          TypeError: `domain` is not an integer, or x or the mask has a wrong dtype.
          ValueError: `domain` is a number out of range, or a shape does not fit.
        """
        domain = self._checked(domain)
        if domain.ndim == 0:
            y, new = self.norm.train(params, _row(state, domain), x, mask=mask)
            return y, jax.tree.map(
                lambda rows, row: jnp.asarray(rows).at[domain].set(row), state, new
            )
        each = self._each(state, domain, mask)
        outputs = [self.norm.train(params, row, x, mask=own) for row, own in each]
        ys, rows = zip(*outputs, strict=True)
        return self._pick(domain, ys), jax.tree.map(lambda *row: jnp.stack(row), *rows)

    def infer(
        self,
        params: BatchNormParams,
        state: Any,
        x: ArrayLike,
        domain: ArrayLike,
        *,
        mask: Mask = None,
    ) -> jax.Array:
        """Normalizes `x` by the running statistics of its domains.

        Args:
          params: scale and bias, each `[*features]`, or None.
          state: running statistics, each `[domains, ...]`; carries no gradient.
          x: `[...]` of a real floating-point dtype.
          domain: as in training.
          mask: as in training; where it is False, y is the bias.

        Returns:
          y, of the shape of x.

        Raises:
          TypeError: `domain` is not an integer, or x or the mask has a wrong dtype.
          ValueError: `domain` is a number out of range, or a shape does not fit.
        """
        domain = self._checked(domain)
        if domain.ndim == 0:
            return self.norm.infer(params, _row(state, domain), x, mask=mask)
        each = self._each(state, domain, mask)
        return self._pick(domain, [self.norm.infer(params, row, x, mask=own) for row, own in each])

    def _each(self, state: Any, domain: jax.Array, mask: Mask) -> list[tuple[Any, jax.Array]]:
        """Returns the state and the mask of each domain."""
        mask = True if mask is None else jnp.asarray(mask)
        return [(_row(state, i), (domain == i) & mask) for i in range(self.num_domains)]

    def _checked(self, domain: ArrayLike) -> jax.Array:
        if isinstance(domain, int) and not 0 <= domain < self.num_domains:
            raise ValueError(f"domain={domain} must be from 0 to {self.num_domains - 1}.")
        domain = jnp.asarray(domain)
        if not jnp.issubdtype(domain.dtype, jnp.integer):
            raise TypeError(f"domain must be an integer array, got {domain.dtype}.")
        return domain

    def _pick(self, domain: jax.Array, ys: Sequence[jax.Array]) -> jax.Array:
        """Returns for each position the output of its domain."""
        picked = jnp.zeros_like(ys[0])
        for index, y in enumerate(ys):
            mask: Any = Layout.of(y, self.axis, domain == index).mask
            picked = jnp.where(mask, y, picked)
        return picked


def _row(state, index):
    return jax.tree.map(lambda rows: rows[index], state)
