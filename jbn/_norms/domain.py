"""A norm with separate running statistics for several domains."""

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
    """A norm with one scale and bias, and separate running statistics for each domain.

    Domains are for instance data sets, time steps, or clean and adversarial examples. AdvProp's
    auxiliary norm (Xie et al. 2020, https://arxiv.org/abs/1911.09665) and domain-specific norms
    (Chang et al. 2019, https://arxiv.org/abs/1906.03950) keep statistics in this way. The latter
    also have a scale and a bias for each domain: keep one `BatchNormParams` per domain for them.

    The argument `domain` of `train` and `infer` is an integer array that counts domains from 0. It
    has the shape `[]` if all of x belongs to one domain, or any shape that a mask may have, such as
    `[batch]`. The positions of a domain form a batch, which training normalizes by itself, and
    which updates the running statistics of this domain only. The norm runs once if `domain` has the
    shape `[]`, and otherwise once for each domain.

    A single domain that is out of range is an error if its value is known. In an array, or under
    jit, there is no error: y is 0 at positions with a domain out of range, and no statistics
    change because of them.

    >>> import jax.numpy as jnp
    >>> norm = jbn.domain_norm(jbn.batch_norm(decay=0.5), num_domains=2)
    >>> params, state = norm.init(1)
    >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
    >>> y, state = norm.train(params, state, x, domain=jnp.array([0, 0, 1, 1]))
    >>> print(state.mean.ravel())
    [ 1. 10.]

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
        """Normalizes each domain of a batch by itself, and updates the statistics of each.

        Args:
          params: scale and bias, each `[*features]`, or None.
          state: running statistics, each `[domains, ...]`; they carry no gradient.
          x: `[...]` array of a real floating-point dtype.
          domain: integer array, of shape `[]` or of a shape that a mask may have.
          mask: boolean array, True at valid positions, as in `Norm.train`.

        Returns:
          y, with the shape of x; and the next state.

        Raises:
          TypeError: `domain` is not an integer array, or x or the mask has a wrong dtype.
          ValueError: `domain` is a known number out of range, or a shape does not fit.
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
          state: running statistics, each `[domains, ...]`; they carry no gradient.
          x: `[...]` array of a real floating-point dtype.
          domain: integer array, as in `train`.
          mask: boolean array, as in `train`. At masked positions, y is the bias.

        Returns:
          y, with the shape of x.

        Raises:
          TypeError: `domain` is not an integer array, or x or the mask has a wrong dtype.
          ValueError: `domain` is a known number out of range, or a shape does not fit.
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
        """Returns `domain` as int32 and where it is in range.

        Out of range, an array becomes -1, which is no domain, and a single domain becomes 0.
        """
        given = jnp.asarray(domain)
        if not jnp.issubdtype(given.dtype, jnp.integer):
            raise TypeError(f"domain must be an integer array, got {given.dtype}.")
        domain = given.astype(jnp.int32)
        # The last term: a wider integer may wrap around.
        known = (domain >= 0) & (domain < self.num_domains) & (domain.astype(given.dtype) == given)
        if not isinstance(known, Tracer) and known.ndim == 0 and not known:
            raise ValueError(f"domain={given} must be from 0 to {self.num_domains - 1}.")
        return jnp.where(known, domain, jnp.int32(-1 if domain.ndim else 0)), known

    def _masks(self, domain: jax.Array, layout: Layout) -> list[jax.Array]:
        """Returns a mask of the positions of each domain."""
        valid = True if layout.mask is None else layout.mask
        return [(domain == i) & valid for i in range(self.num_domains)]


def _pick(domain: jax.Array, ys: Sequence[jax.Array]) -> jax.Array:
    """Returns the output of its domain for each position, and 0 where there is no such domain."""
    picked = jnp.zeros_like(ys[0])
    for index, y in enumerate(ys):
        picked = jnp.where(domain == index, y, picked)
    return picked


def _row(state, index):
    return jax.tree.map(lambda rows: rows[index], state)


def _where(known, y):
    return jnp.where(known, y, jnp.zeros_like(y))
