"""Folds a norm at inference into the linear layer before it.

    infer = functools.partial(norm.infer, params, state)
    kernel, bias = jbn.fold(infer, kernel, bias)

`jbn.linen.fold` and `jbn.nnx.fold` do so for all layers of a model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jbn._core.layout import Axes, Layout


def fold(
    infer: Callable[[jax.Array], jax.Array],
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
) -> tuple[jax.Array, jax.Array]:
    """Returns kernel and bias of one layer that computes what a linear layer and its norm compute.

    Inference is affine in each feature, (x - mean) * gain + shift with gain = scale / sqrt(var +
    epsilon). So the new bias is the norm of the old one, and the kernel is multiplied by the norm's
    derivative, the gain. This holds for dense layers and for convolutions of any stride, dilation,
    padding and groups, also transposed. It does not hold for a norm *before* a layer with zero
    padding, since the padding would need a value for each feature.

    >>> import functools, jax.numpy as jnp
    >>> norm = jbn.batch_norm(epsilon=0.0)
    >>> params, state = norm.init(2)
    >>> infer = functools.partial(norm.infer, params, state._replace(var=jnp.full(2, 4.0)))
    >>> kernel, bias = jbn.fold(infer, jnp.ones((3, 2)))
    >>> print(kernel[0], bias)
    [0.5 0.5] [0. 0.]

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
    layout = Layout.of(kernel, axis)
    shape = layout.feature_shape
    before = jnp.zeros(shape, kernel.dtype) if bias is None else jnp.asarray(bias)
    if before.shape != shape:
        raise ValueError(
            f"bias has shape {before.shape}, but kernel {kernel.shape} has output features of "
            f"shape {shape} on axis={axis}."
        )
    wide = np.result_type(layout.dtype, before.dtype)
    after, gain = jax.jvp(infer, (before.astype(wide),), (jnp.ones(shape, wide),))
    kernel_after = kernel.astype(wide) * layout.expand(gain.astype(wide))[0]
    return kernel_after.astype(kernel.dtype), after.astype(before.dtype)
