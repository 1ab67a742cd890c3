"""Statistics, normalization and activation as one function that saves its output and no input."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jbn._core.layout import vary_like
from jbn._core.moments import Moments, moments_of, save_point, sums_over_count
from jbn._core.normalize import affine

LEAST_SCALE = 0.01
"""The least absolute value of a scale, since the normalized x is (z - bias) / scale."""


def bounded_scale(scale: jax.Array) -> jax.Array:
    """Returns the scale with an absolute value of at least `LEAST_SCALE`.

    Its gradient passes to the scale unchanged, so training can increase a scale that is too small.
    """
    bounded = jnp.where(scale < 0, -1, 1) * jnp.maximum(jnp.abs(scale), LEAST_SCALE)
    return scale + lax.stop_gradient(bounded - scale)


def in_place(step, operands, x, scale, bias, layout, shards, norm) -> tuple[jax.Array, Any]:
    """Normalizes and applies `norm.activation`; see `whole` for the arguments.

    Reverse mode saves y and vectors, and does not save x (Rota Bulo et al. 2018, "In-place
    activated batchnorm", https://arxiv.org/abs/1712.02616).
    """
    dtype = norm.dtype or x.dtype
    x = layout.where_valid(x)
    # A decay may be a function that closes over traced values. A derivative rule must not.
    batch = jax.eval_shape(lambda x, layout: moments_of(x, layout, shards), x, layout)
    converted, closed_over = jax.closure_convert(step, operands, batch)

    def closed_step(operands, batch):
        return converted(operands[:2], batch, *operands[2])

    operands = *operands, closed_over
    y, batch = _in_place(
        x, scale, bias, operands, norm.activation, layout, closed_step, shards, dtype
    )
    return y, closed_step(operands, batch)[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(6, 7, 8))
def _in_place(x, scale, bias, operands, activation, layout, step, shards, dtype):
    """Returns activation((x - mean) * rstd * scale + bias), and the moments."""
    batch = moments_of(x, layout, shards)
    (mean, rstd), _ = step(operands, batch)
    z = affine(x, mean, rstd * scale.astype(rstd.dtype), bias, layout, rstd.dtype)
    return activation.apply(z).astype(dtype), batch


@_in_place.defjvp
def _in_place_jvp(step, shards, dtype, primals, tangents):
    """Returns dy = slope * (dx * gain + hat * dscale + dbias + ...), computed from y alone.

    Here hat = (x - mean) * rstd = (z - bias) / scale, and the dots stand for the terms of the
    statistics: -dmean * gain + hat * scale * drstd / rstd.
    """
    _, scale, bias, operands, activation, layout = primals
    dx, dscale, dbias, (dmethod, _, dclosed), dactivation, _ = tangents
    y, batch = _in_place(*primals, step, shards, dtype)
    # Without the barriers, XLA saves x, and computes both from it again in the backward pass.
    y, batch = lax.optimization_barrier(y), lax.optimization_barrier(batch)
    y, batch = jax.tree.map(save_point, (y, batch))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def linear(tangents, y, scale, bias, operands, activation, batch, layout):
        dx, dscale, dbias, dmethod, dclosed, dactivation = tangents
        method, state, closed_over = operands

        def statistics(method, closed_over, batch):
            return step((method, state, closed_over), batch)[0]

        mean, rstd = statistics(method, closed_over, batch)
        scale, bias, dscale, dbias = (v.astype(rstd.dtype) for v in (scale, bias, dscale, dbias))
        wide_scale, wide_bias = layout.expand(scale, bias)
        z = activation.invert(y)
        hat = layout.where_valid((z - wide_bias) / wide_scale)
        dx = dx.astype(hat.dtype)
        mean_dx, mean_hat_dx = sums_over_count((dx, hat * dx), batch.count, layout, shards)
        # This holds because x - batch.mean = hat / rstd + (mean - batch.mean).
        dvar = 2 * (mean_hat_dx / rstd + (mean - batch.mean) * mean_dx)
        zero = jnp.zeros_like(batch.count)
        dbatch = Moments(mean_dx, dvar, zero, zero)
        options = (method, closed_over, batch), (dmethod, dclosed, dbatch)
        _, (dmean, drstd) = jax.jvp(statistics, *options)
        dfactor = scale * drstd / rstd + dscale
        dmean, dfactor, dbias = vary_like((dmean, dfactor, dbias), y)
        gain = rstd * scale
        shifted = dmean * gain
        offset = dbias - shifted
        gain, dfactor, dbias, shifted, offset = layout.expand(gain, dfactor, dbias, shifted, offset)
        dz = dx * gain + hat * dfactor
        dz = dz + offset if layout.mask is None else layout.where_valid(dz - shifted) + dbias
        dy = dz * activation.slope(y)
        if jax.tree.leaves(activation):
            dy += jax.jvp(lambda activation: activation.apply(z), (activation,), (dactivation,))[1]
        return dy.astype(y.dtype), dbatch

    moved = dx, dscale, dbias, dmethod, dclosed, dactivation
    return (y, batch), linear(moved, y, scale, bias, operands, activation, batch, layout)
