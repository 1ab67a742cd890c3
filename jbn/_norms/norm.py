"""The interface of every norm: an initializer, a training step and an inference step."""

import abc
from typing import Generic, NamedTuple, TypeVar

import jax
from jax.typing import ArrayLike

from jbn._core.export import exportable
from jbn._core.layout import Axes, Mask
from jbn._core.value import Value

State = TypeVar("State")


@exportable
class BatchNormParams(NamedTuple):
    """The learned parameters of each feature.

    Attributes:
      scale: `[*features]` factors that multiply the normalized x; they start at 1. None if the norm
        has no scale.
      bias: `[*features]` values that are added last; they start at 0. None if the norm has no bias.
    """

    scale: jax.Array | None
    bias: jax.Array | None


class Norm(Value, abc.ABC, Generic[State]):
    """Base class of all norms. A norm has three pure functions: `init`, `train` and `infer`.

    A norm is a frozen dataclass that holds its options. It is hashable and picklable, and equal
    norms compile once. `dataclasses.replace(norm, axis_name="data")` returns a norm with another
    option. The functions run under `jax.jit`, `jax.vmap` and `jax.checkpoint`, and inside
    `shard_map` and `pmap`.
    """

    @property
    def axis(self) -> Axes:
        """The feature axis or axes of x; by default the last axis."""
        return -1

    @property
    def needs_count(self) -> bool:
        """Whether training or inference depends on the count in the state.

        If not, the modules of `jbn.linen` and `jbn.nnx` store no count, like Flax's BatchNorm.
        """
        return True

    @abc.abstractmethod
    def init(self, num_features: int | tuple[int, ...]) -> tuple[BatchNormParams, State]:
        """Returns parameters and running statistics before the first batch.

        Args:
          num_features: number of features, or the sizes of several feature axes.

        Returns:
          The `BatchNormParams` and the state, with vectors `[*features]` of float32. With them,
          inference returns x, up to epsilon.

        Raises:
          ValueError: `num_features` does not have one size for each feature axis.
        """

    @abc.abstractmethod
    def train(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: Mask = None
    ) -> tuple[jax.Array, State]:
        """Normalizes a training batch, and updates the running statistics with it.

        If a mask leaves fewer than two valid values of a feature, the batch is normalized as in
        inference, and the state does not change. The state also does not change if statistics of
        the batch or of the next state are not finite. If x has no elements, y has none either, and
        the state does not change.

        Args:
          params: scale and bias, each `[*features]` of any floating dtype, or None.
          state: running statistics; they carry no gradient.
          x: `[...]` array of a real floating-point dtype, with the features on the axes of the
            norm.
          mask: boolean array, True at valid positions. A mask of rank 1 has one entry for each
            example; the examples are on the first axis of x that is not a feature axis. Any other
            mask has one axis for each axis of x that is not a feature axis, or one axis for each
            axis of x, with size 1 on feature axes. Each size equals that of x or is 1. Masked
            positions never enter the computation, so they may hold NaN. At masked positions, y is
            the bias and x has no gradient: leave these positions out of the loss as well. Layers
            before the norm do compute with masked positions, so pad with zeros.

        Returns:
          y, with the shape of x and the dtype of x (or the norm's `dtype`, if it has one); and the
          next state, in the dtypes of `state`. Statistics and arithmetic are in float32 or wider.

        Raises:
          TypeError: x has no real floating-point dtype, the mask is not boolean, or `params` and
            `state` are swapped.
          ValueError: a shape does not fit, or x has only one value per feature. If only the mask
            leaves one value, there is no error, because masks may be traced.
          NameError: the norm's `axis_name` is not bound.
        """

    @abc.abstractmethod
    def infer(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x` by the running statistics, each example independently of all others.

        Args:
          params: scale and bias, each `[*features]`, or None.
          state: running statistics; they carry no gradient.
          x: `[...]` array of a real floating-point dtype, with the features on the axes of the
            norm.
          mask: boolean array, True at valid positions, as in `train`.

        Returns:
          y, with the shape of x and the dtype of x (or the norm's `dtype`, if it has one).

        Raises:
          TypeError: x has no real floating-point dtype, the mask is not boolean, or `params` and
            `state` are swapped.
          ValueError: a shape does not fit.
        """


def require_norm(norm: object) -> None:
    """Checks that `norm` is a norm, and for instance not the class of a norm.

    Raises:
      TypeError: `norm` is not a `Norm`.
    """
    if not isinstance(norm, Norm):
        raise TypeError(f"norm={norm!r} must be a jbn.Norm, such as jbn.batch_norm().")
