"""One norm with the statistics of several domains."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jbn import features
from jbn.norms.norm import BatchNormParams, InitFn, Norm


class DomainTrainFn(Protocol):
    """The type of `DomainNorm.train`."""

    def __call__(
        self,
        params: BatchNormParams,
        state: Any,
        x: ArrayLike,
        domain: ArrayLike,
        *,
        mask: ArrayLike | None = None,
    ) -> tuple[jax.Array, Any]:
        """Returns the normalised `x` and the next state."""
        ...


class DomainInferFn(Protocol):
    """The type of `DomainNorm.infer`."""

    def __call__(
        self,
        params: BatchNormParams,
        state: Any,
        x: ArrayLike,
        domain: ArrayLike,
        *,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Returns the normalised `x`."""
        ...


class DomainNorm(NamedTuple):
    """A normalisation method with statistics for each domain.

    Attributes:
      init: `init(num_features) -> (params, state)`; the leaves of state are `[domains, ...]`.
      train: `train(params, state, x, domain, *, mask=None) -> (y, state)`.
      infer: `infer(params, state, x, domain, *, mask=None) -> y`.
    """

    init: InitFn[Any]
    train: DomainTrainFn
    infer: DomainInferFn


def domain_norm(norm: Norm, num_domains: int, *, axis: features.Axes = -1) -> DomainNorm:
    """Returns a norm with one scale and bias, but running statistics for each domain.

    As AdvProp's auxiliary statistics (Xie et al. 2020, https://arxiv.org/abs/1911.09665) or domain
    specific ones (Chang et al. 2019, https://arxiv.org/abs/1906.03950), which also have parameters
    of their own: keep one `BatchNormParams` a domain for that.

    `domain` is an integer array, from 0 on: of shape `[]` for all of x, or broadcastable to x
    without its feature axes, such as `[batch, 1, 1]` for images. All positions of a domain are a
    batch, normalised by its own statistics, which alone move. With one domain a call, x is read as
    often as by the norm itself, else once for each domain.

    Args:
      norm: the method.
      num_domains: how many there are. Positions of a domain outside have y = 0.
      axis: the feature axis or axes of the norm.

    Raises:
      ValueError: `num_domains` is not positive.
    """
    if num_domains < 1:
        raise ValueError(f"num_domains={num_domains} must be positive.")

    def init(num_features):
        params, state = norm.init(num_features)
        return params, jax.tree.map(lambda a: jnp.stack([a] * num_domains), state)

    def train(params, state, x, domain, *, mask=None):
        domain = _checked(domain, num_domains)
        if domain.ndim == 0:
            y, new = norm.train(params, _row(state, domain), x, mask=mask)
            return y, jax.tree.map(lambda rows, row: rows.at[domain].set(row), state, new)
        own = [
            norm.train(params, _row(state, i), x, mask=_within(domain == i, mask))
            for i in range(num_domains)
        ]
        ys, news = zip(*own, strict=True)
        return _pick(domain, ys, axis), jax.tree.map(lambda *rows: jnp.stack(rows), *news)

    def infer(params, state, x, domain, *, mask=None):
        domain = _checked(domain, num_domains)
        if domain.ndim == 0:
            return norm.infer(params, _row(state, domain), x, mask=mask)
        ys = [
            norm.infer(params, _row(state, i), x, mask=_within(domain == i, mask))
            for i in range(num_domains)
        ]
        return _pick(domain, ys, axis)

    return DomainNorm(init, train, infer)


def _checked(domain: ArrayLike, num_domains: int) -> jax.Array:
    if isinstance(domain, int) and not 0 <= domain < num_domains:
        raise ValueError(f"domain={domain} must be from 0 to {num_domains - 1}.")
    domain = jnp.asarray(domain)
    if not jnp.issubdtype(domain.dtype, jnp.integer):
        raise TypeError(f"domain must be an integer array, got {domain.dtype}.")
    return domain


def _row(state, index):
    return jax.tree.map(lambda rows: rows[index], state)


def _within(inside: jax.Array, mask: ArrayLike | None) -> jax.Array:
    return inside if mask is None else inside & jnp.asarray(mask)


def _pick(domain: jax.Array, ys: Sequence[jax.Array], axis: features.Axes) -> jax.Array:
    """Of each position, the output for its domain."""
    axes = features.feature_axes(ys[0], axis)
    picked = jnp.zeros_like(ys[0])
    for index, y in enumerate(ys):
        picked = jnp.where(features.along_positions(domain == index, y, axes), y, picked)
    return picked
