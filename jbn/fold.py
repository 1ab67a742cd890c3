"""Folds a norm at inference into the linear layer before it, where it costs nothing.

    infer = functools.partial(norm.infer, params, state)
    kernel, bias = jbn.fold(infer, kernel, bias)

`jbn.linen_fold` and `jbn.nnx_fold` do so for all layers of a model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jbn import features


def fold(
    infer: Callable[[jax.Array], jax.Array],
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    axis: features.Axes = -1,
) -> tuple[jax.Array, jax.Array]:
    """Returns kernel and bias of the layer that does what a linear layer and its norm did.

    Inference is affine in each feature, (x - mean) * gain + shift with gain = scale / sqrt(var +
    epsilon). So the bias becomes what the norm makes of it, and the kernel is multiplied by the
    norm's derivative, the gain. That holds for dense layers and for convolutions of any
    stride, dilation, padding, groups, and transposed. It does not for a norm *before* a layer with
    zero padding: the padding would have to become a value of each feature.

    Args:
      infer: the norm at inference, from `[..., *features]` to the same shape. A norm with another
        axis folds the same: pass one with the default.
      kernel: of the linear layer.
      bias: `[*features]` of the linear layer; None is 0.
      axis: the axis or axes of `kernel` that hold the output features: the last in Flax, the one
        before in its `ConvTranspose` with `transpose_kernel`, the first in PyTorch.

    Returns:
      The kernel in its own dtype, and the bias in its own, by default the kernel's.

    Raises:
      TypeError: `kernel` is not real floating point.
      ValueError: `axis` or `bias` does not fit the kernel, or the norm does not fit its features.
    """
    kernel = jnp.asarray(kernel)
    axes = features.feature_axes(kernel, axis)
    shape = features.feature_shape(kernel, axes)
    before = jnp.zeros(shape, kernel.dtype) if bias is None else jnp.asarray(bias)
    if before.shape != shape:
        raise ValueError(
            f"bias has shape {before.shape}, but kernel {kernel.shape} has output features of "
            f"shape {shape} on axis={axis}."
        )
    wide = features.statistics_dtype(kernel, before)
    after, gain = jax.jvp(infer, (before.astype(wide),), (jnp.ones(shape, wide),))
    kernel_after = kernel.astype(wide) * features.along_features(gain.astype(wide), kernel, axes)
    return kernel_after.astype(kernel.dtype), after.astype(before.dtype)
