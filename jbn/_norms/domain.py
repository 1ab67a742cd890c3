"""One norm with the statistics of several domains."""

import dataclasses
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from jbn._core.layout import Layout, Mask
from jbn._core.value import Value, require_positive_integer
from jbn._norms.norm import BatchNormParams, Norm, require_norm


class domain_norm(Value):
    """A norm with one scale and bias, but running statistics for each domain.

    The statistics are those of AdvProp's auxiliary norm (Xie et al. 2020,
    https://arxiv.org/abs/1911.09665) or of domain-specific norms (Chang et al. 2019,
    https://arxiv.org/abs/1906.03950). The latter also have parameters for each domain: keep one
    `BatchNormParams` a domain for that.

    `domain` is an integer array that counts from 0: of shape `[]` for all of x, or of a shape that
    a mask may have, such as `[batch]`. All positions of a domain are a batch: they are normalized
    by its statistics, which alone move. A single domain that is known and out of range is an error;
    in an array, or under jit, y is 0 there and nothing moves. With one domain a call, x is read as
    often as by the norm itself, otherwise once for each domain.

    >>> import jax.numpy as jnp
    >>> norm = jbn.domain_norm(jbn.batch_norm(), num_domains=2)
    >>> params, state = norm.init(3)
    >>> x = jnp.arange(12.0).reshape(4, 3)
    >>> y, state = norm.train(params, state, x, domain=jnp.array([0, 0, 1, 1]))

    Args:
      norm: any norm.
      num_domains: number of domains.

    Raises:
      TypeError: `norm` is not a norm.
      ValueError: `num_domains` is not a positive integer.
    """

    norm: Norm = dataclasses.field(kw_only=False)
    num_domains: int = dataclasses.field(kw_only=False)

    def __post_init__(self):
        super().__post_init__()
        require_norm(self.norm)
        require_positive_integer("num_domains", self.num_domains)

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
          domain: integer, `[]` or of a shape that a mask may have.
          mask: boolean, True at valid positions, as in `Norm.train`.

        Returns:
          y, of the shape of x; and the next state.

        Raises:
          TypeError: `domain` is not an integer, or x or the mask has a wrong dtype.
          ValueError: `domain` is a number out of range, or a shape does not fit.
        """
        x = jnp.asarray(x)
        domain, known = self._checked(domain)
        if domain.ndim == 0:
            row = _row(state, domain)
            y, new = self.norm.train(params, row, x, mask=mask)
            if new is row:
                return _where(known, y), state
            state = jax.tree.map(jnp.asarray, state)
            moved = jax.tree.map(lambda rows, row: rows.at[domain].set(row), state, new)
            return _where(known, y), jax.tree.map(partial(jnp.where, known), moved, state)
        layout = Layout.of(x, self.norm.axis, mask)
        domain = layout.align("domain", domain, x)
        rows = [_row(state, i) for i in range(self.num_domains)]
        outputs = [
            self.norm.train(params, row, x, mask=own)
            for row, own in zip(rows, self._masks(domain, layout), strict=True)
        ]
        ys, new = zip(*outputs, strict=True)
        if all(map(operator.is_, new, rows)):
            return _pick(domain, ys), state
        return _pick(domain, ys), jax.tree.map(lambda *row: jnp.stack(row), *new)

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
        x = jnp.asarray(x)
        domain, known = self._checked(domain)
        if domain.ndim == 0:
            return _where(known, self.norm.infer(params, _row(state, domain), x, mask=mask))
        layout = Layout.of(x, self.norm.axis, mask)
        domain = layout.align("domain", domain, x)
        ys = [
            self.norm.infer(params, _row(state, i), x, mask=own)
            for i, own in enumerate(self._masks(domain, layout))
        ]
        return _pick(domain, ys)

    def _checked(self, domain: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Returns `domain` as int32, a single one within the range, and where it was within it."""
        given = jnp.asarray(domain)
        if not jnp.issubdtype(given.dtype, jnp.integer):
            raise TypeError(f"domain must be an integer array, got {given.dtype}.")
        domain = given.astype(jnp.int32)
        # Wider integers may wrap around.
        known = (domain >= 0) & (domain < self.num_domains) & (domain.astype(given.dtype) == given)
        if not isinstance(known, Tracer) and known.ndim == 0 and not known:
            raise ValueError(f"domain={given} must be from 0 to {self.num_domains - 1}.")
        return jnp.where(known, domain, jnp.int32(-1 if domain.ndim else 0)), known

    def _masks(self, domain: jax.Array, layout: Layout) -> list[jax.Array]:
        """Returns a mask of the positions of each domain."""
        valid = True if layout.mask is None else layout.mask
        return [(domain == i) & valid for i in range(self.num_domains)]


def _pick(domain: jax.Array, ys: Sequence[jax.Array]) -> jax.Array:
    """Returns for each position the output of its domain."""
    picked = jnp.zeros_like(ys[0])
    for index, y in enumerate(ys):
        picked = jnp.where(domain == index, y, picked)
    return picked


def _row(state, index):
    return jax.tree.map(lambda rows: rows[index], state)


def _where(known, y):
    return jnp.where(known, y, jnp.zeros_like(y))
