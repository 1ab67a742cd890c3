"""Activations whose input and derivative can be computed from their output.

An in-place norm applies one of them, and saves only its output for the backward pass:

>>> norm = jbn.inplace_batch_norm(activation=jbn.activations.elu())
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jbn._core.value import Number, Value, require_number

__all__ = ["InvertibleActivation", "elu", "identity", "leaky_relu"]


class InvertibleActivation(Value, abc.ABC):
    """Base class of activations z -> y whose input and derivative can be computed from y.

    A subclass has the three methods `apply`, `invert` and `slope`. It is a frozen dataclass and
    needs no decorator. Its annotated attributes are its hyperparameters.

    >>> import jax.numpy as jnp
    >>> class steeper(jbn.activations.InvertibleActivation):
    ...     factor: float = 2.0
    ...
    ...     def apply(self, z):
    ...         return jnp.where(z > 0, self.factor * z, z)
    ...
    ...     def invert(self, y):
    ...         return y.astype(jnp.float32) / self.slope(y)
    ...
    ...     def slope(self, y):
    ...         return jnp.where(y > 0, jnp.float32(self.factor), 1)
    >>> norm = jbn.inplace_batch_norm(activation=steeper(factor=3.0), epsilon=0.0)
    >>> params, state = norm.init(1)
    >>> y, state = norm.train(params, state, jnp.array([[1.0], [3.0]]))
    >>> print(y.ravel())
    [-1.  3.]
    """

    @abc.abstractmethod
    def apply(self, z: jax.Array) -> jax.Array:
        """Returns y, which increases strictly with z and has the shape and dtype of z."""

    @abc.abstractmethod
    def invert(self, y: jax.Array) -> jax.Array:
        """Returns z in float32 or wider, for y of any dtype. It is finite for every finite y."""

    @abc.abstractmethod
    def slope(self, y: jax.Array) -> jax.Array:
        """Returns dy/dz in float32 or wider."""


class identity(InvertibleActivation):
    """The identity: y = z.

    >>> import jax.numpy as jnp
    >>> print(jbn.activations.identity().apply(jnp.float32(-2)))
    -2.0
    """

    def apply(self, z: jax.Array) -> jax.Array:  # noqa: D102
        return z

    def invert(self, y: jax.Array) -> jax.Array:  # noqa: D102
        return _wide(y)

    def slope(self, y: jax.Array) -> jax.Array:  # noqa: D102
        return jnp.ones_like(_wide(y))


class leaky_relu(InvertibleActivation):
    """Leaky ReLU: y = z for z >= 0, and y = negative_slope * z for z < 0.

    >>> import jax.numpy as jnp
    >>> print(jbn.activations.leaky_relu(0.5).apply(jnp.float32(-2)))
    -1.0

    Args:
      negative_slope: the slope for z < 0. It must be positive, so that z can be computed from y.

    Raises:
      ValueError: `negative_slope` is not positive.
    """

    negative_slope: Number = dataclasses.field(default=0.01, kw_only=False)

    def __post_init__(self):
        super().__post_init__()
        slope, wanted = self.negative_slope, "positive for the activation to have an inverse"
        require_number("negative_slope", slope, lambda number: number > 0, wanted)

    def apply(self, z: jax.Array) -> jax.Array:  # noqa: D102
        return jax.nn.leaky_relu(z, self.negative_slope)

    def invert(self, y: jax.Array) -> jax.Array:  # noqa: D102
        return _wide(y) / self.slope(y)

    def slope(self, y: jax.Array) -> jax.Array:  # noqa: D102
        return jnp.where(y >= 0, 1, jnp.asarray(self.negative_slope, _wide(y).dtype))


class elu(InvertibleActivation):
    """ELU: y = z for z > 0, and y = alpha * (exp(z) - 1) for z <= 0 (Clevert et al. 2016).

    Where y has been rounded to -alpha, `invert` returns the z of a y that is half a rounding step
    larger: -5.5 in bfloat16, and -16.6 in float32.

    >>> import jax.numpy as jnp
    >>> activation = jbn.activations.elu()
    >>> y = activation.apply(jnp.array([-1.0, 2.0]))
    >>> print(y, activation.invert(y))
    [-0.63212055  2.        ] [-1.  2.]

    Args:
      alpha: the limit of -y for small z. It must be positive.

    Raises:
      ValueError: `alpha` is not positive.
    """

    alpha: Number = dataclasses.field(default=1.0, kw_only=False)

    def __post_init__(self):
        super().__post_init__()
        wanted = "positive for the activation to have an inverse"
        require_number("alpha", self.alpha, lambda number: number > 0, wanted)

    def apply(self, z: jax.Array) -> jax.Array:  # noqa: D102
        return jax.nn.elu(z, self.alpha)

    def invert(self, y: jax.Array) -> jax.Array:  # noqa: D102
        least = float(jnp.finfo(y.dtype).eps) / 2 - 1
        y = _wide(y)
        return jnp.where(y > 0, y, jnp.log1p(jnp.clip(y / self.alpha, least, 0)))

    def slope(self, y: jax.Array) -> jax.Array:  # noqa: D102
        return jnp.where(y > 0, 1, _wide(y) + self.alpha)


def _wide(y: jax.Array) -> jax.Array:
    return y.astype(np.result_type(np.float32, y.dtype))
