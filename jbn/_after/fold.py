"""Folds a norm at inference into the linear layer before it.

    infer = functools.partial(norm.infer, params, state)
    kernel, bias = jbn.fold(infer, kernel, bias)

`jbn.linen.fold` and `jbn.nnx.fold` do so for all layers of a model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jbn._core.layout import Axes, Layout

_FAR = 1e18
"""Beyond the bend of every activation, and in the range of float32 after any norm."""


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
      ValueError: `axis` or `bias` does not fit the kernel, or the norm does not fit its features;
        or `infer` is not affine, where it is not traced.
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
            "infer is not affine, as of a norm with an activation: fold the norm without it, and "
            "apply the activation after the layer."
        )
    kernel_after = kernel.astype(wide) * layout.expand(gain[0].astype(wide))[0]
    return kernel_after.astype(kernel.dtype), after[0].astype(before.dtype)
