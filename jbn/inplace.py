"""Statistics, normalisation and activation as one function that keeps only its output."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jbn import features, shards
from jbn.invertible import InvertibleActivation
from jbn.moments import Moments, means, moments
from jbn.normalize import normalize
from jbn.policy import kept

LEAST_SCALE = 0.01
"""What the size of a scale is raised to, since the normalised x is (z - bias) / scale."""


class How(NamedTuple):
    """What is fixed when `train` is traced.

    Attributes:
      choose: `choose(state, batch) -> (mean, rstd)`, the statistics that normalise.
      activation: what is applied last.
      axes: the feature axes of x.
      axis_name: the named axis or axes over which the batch is spread.
      groups: a partition of the shards.
      dtype: of y; by default that of x.
    """

    choose: Callable[[Any, Moments], Any]
    activation: InvertibleActivation
    axes: tuple[int, ...]
    axis_name: shards.AxisName | None
    groups: tuple[tuple[int, ...], ...] | None
    dtype: DTypeLike | None


def bounded_scale(scale: jax.Array) -> jax.Array:
    """Returns the scale, away from 0 by at least `LEAST_SCALE`, with the gradient of the scale.

    So training can lead a scale that is too small back out.
    """
    bounded = jnp.where(scale < 0, -1, 1) * jnp.maximum(jnp.abs(scale), LEAST_SCALE)
    return scale + lax.stop_gradient(bounded - scale)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def train(
    x: jax.Array, scale: jax.Array, bias: jax.Array, state: Any, mask: ArrayLike | None, how: How
) -> tuple[jax.Array, Moments]:
    """Returns activation((x - mean) * rstd * scale + bias) and the moments of x.

    Reverse mode keeps y and vectors, not x (Rota Bulo et al. 2018, "In-place activated batchnorm",
    https://arxiv.org/abs/1712.02616). The moments carry no gradient.

    Args:
      x: `[...]` of a real floating-point dtype.
      scale: `[*features]`, nowhere 0.
      bias: `[*features]`.
      state: what `how.choose` needs; carries no gradient.
      mask: see `moments`; y is activation(bias) where it is False.
      how: the rest.
    """
    axes = how.axes
    options = {"axis_name": how.axis_name, "axis_index_groups": how.groups}
    batch = moments(x, axes, mask=mask, **options)
    mean, rstd = how.choose(state, batch)
    z = normalize(x, mean, rstd * scale.astype(rstd.dtype), bias, axes, mask=mask, dtype=rstd.dtype)
    return how.activation.apply(z).astype(how.dtype or x.dtype), batch


@train.defjvp
def _train_jvp(how, primals, tangents):
    """The tangent, from y alone: dy = slope * (dx * gain + hat * dscale + dbias + ...).

    Here hat = (x - mean) * rstd = (z - bias) / scale, and the dots stand for what reaches y through
    the statistics: -dmean * gain + hat * scale * drstd / rstd.
    """
    _, scale, bias, state, mask = primals
    dx, dscale, dbias, *_ = tangents
    y, batch = train(*primals, how)
    # Without the barrier XLA recomputes both from x in the backward pass, and keeps x for that.
    y, batch = kept((lax.optimization_barrier(y), lax.optimization_barrier(batch)))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(dx, dscale, dbias, y, scale, bias, state, batch, mask):
        along = functools.partial(features.along_features, x=y, axes=how.axes)
        valid = features.along_positions(mask, y, how.axes)
        mean, rstd = how.choose(state, batch)
        scale, bias, dscale, dbias = (v.astype(rstd.dtype) for v in (scale, bias, dscale, dbias))
        hat = (how.activation.invert(y) - along(bias)) / along(scale)
        hat = features.where_valid(valid, hat)
        dx = features.where_valid(valid, dx.astype(hat.dtype))
        mean_dx, mean_hat_dx = means(
            (dx, hat * dx), batch.count, how.axes, how.axis_name, how.groups
        )
        # As x - batch.mean = hat / rstd + (mean - batch.mean).
        dvar = 2 * (mean_hat_dx / rstd + (mean - batch.mean) * mean_dx)
        dbatch = Moments(mean_dx, dvar, jnp.zeros_like(batch.count))
        _, (dmean, drstd) = jax.jvp(functools.partial(how.choose, state), (batch,), (dbatch,))
        dfactor = scale * drstd / rstd + dscale
        dmean, dfactor, dbias = shards.vary_like((dmean, dfactor, dbias), y)
        gain = rstd * scale
        dz = dx * along(gain) + hat * along(dfactor) + along(dbias - dmean * gain)
        dz = dz if valid is None else jnp.where(valid, dz, along(dbias))
        return (dz * how.activation.slope(y)).astype(y.dtype)

    dy = linear(dx, dscale, dbias, y, scale, bias, state, batch, mask)
    return (y, batch), (dy, jax.tree.map(jnp.zeros_like, batch))
