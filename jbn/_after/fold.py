"""Folds a norm at inference into the linear layer before it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jbn._core.layout import Axes, Layout

_FAR = 1e18
"""A value beyond the bend of every activation, which stays in float32's range after any norm."""


def fold(
    infer: Callable[[jax.Array], jax.Array],
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
) -> tuple[jax.Array, jax.Array]:
    """Folds a norm at inference into the linear layer before it.

    Returns the kernel and the bias of one layer that computes the same as the linear layer and the
    norm. For whole Flax models, use `jbn.linen.fold` and `jbn.nnx.fold`.

    Inference is affine in each feature: (x - mean) * gain + shift with gain = scale / sqrt(var +
    epsilon). So the new bias is the norm of the old bias, and the kernel is multiplied by the gain,
    the derivative of the norm. This holds for dense layers and for convolutions, also transposed
    ones, with any stride, dilation, padding and groups. It does not hold for a norm *before* a
    layer with zero padding, because the padding would need a different value for each feature.

    >>> import functools, jax.numpy as jnp
    >>> norm = jbn.batch_norm(epsilon=0.0)
    >>> params, state = norm.init(2)
    >>> infer = functools.partial(norm.infer, params, state._replace(var=jnp.full(2, 4.0)))
    >>> kernel, bias = jbn.fold(infer, jnp.ones((3, 2)))
    >>> print(kernel[0], bias)
    [0.5 0.5] [0. 0.]

    Args:
      infer: the norm at inference, a function from `[..., *features]` to the same shape. For a norm
        with another axis, pass the same norm with the default axis.
      kernel: the kernel of the linear layer.
      bias: `[*features]` bias of the linear layer; None stands for 0.
      axis: the axis or axes of `kernel` that hold the output features: the last in Flax, the second
        to last in Flax's `ConvTranspose` with `transpose_kernel`, the first in PyTorch.

    Returns:
      The kernel and the bias, each in the dtype of the old one. Without an old bias, the new bias
      has the dtype of the kernel.

    Raises:
      TypeError: `kernel` has no real floating-point dtype.
      ValueError: `axis` or `bias` does not fit the kernel, the norm does not fit its features, or
        `infer` is not affine. The last is not checked if its values are traced.
    """
    kernel = jnp.asarray(kernel)
    layout = Layout.of(kernel, axis)
    shape = layout.feature_shape
    before = jnp.zeros(shape, kernel.dtype) if bias is None else jnp.asarray(bias)
    if before.shape != shape:
        raise ValueError(
            f"bias has shape {before.shape}, but kernel {kernel.shape} has output features of "
            f"shape {shape} on axis={axis}."
        )
    wide = np.result_type(layout.dtype, before.dtype)
    # The slope of an affine function is the same everywhere.
    points = jnp.stack(
        [before.astype(wide), jnp.full(shape, -_FAR, wide), jnp.full(shape, _FAR, wide)]
    )
    after, gain = jax.jvp(jax.vmap(infer), (points,), (jnp.ones_like(points),))
    if not isinstance(gain, Tracer) and not np.array_equal(
        gain, jnp.broadcast_to(gain[:1], gain.shape), equal_nan=True
    ):
        raise ValueError(
            "infer is not affine, for example because the norm has an activation: fold the norm "
            "without its activation, and apply the activation after the layer."
        )
    kernel_after = kernel.astype(wide) * layout.expand(gain[0].astype(wide))[0]
    return kernel_after.astype(kernel.dtype), after[0].astype(before.dtype)
