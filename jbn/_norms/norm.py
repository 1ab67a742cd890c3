"""What every norm is: an initializer, a training step and an inference step."""

import abc
from typing import Generic, NamedTuple, TypeVar

import jax
from jax.typing import ArrayLike

from jbn._core.export import exportable
from jbn._core.layout import Mask
from jbn._core.value import Value

State = TypeVar("State")


@exportable
class BatchNormParams(NamedTuple):
    """The learned parameters of each feature.

    Attributes:
      scale: `[*features]` the factor after normalization, or None if it is not used; starts at 1.
      bias: `[*features]` the offset after normalization, or None if it is not used; starts at 0.
    """

    scale: jax.Array | None
    bias: jax.Array | None


class Norm(Value, abc.ABC, Generic[State]):
    """A norm: three pure functions, and their options.

    A norm is a frozen dataclass. It is hashable and picklable, equal norms compile once, and
    `dataclasses.replace(norm, axis_name="data")` changes an option. The functions run under
    `jax.jit`, `jax.vmap` and `jax.checkpoint`, and inside `shard_map` and `pmap`.
    """

    @abc.abstractmethod
    def init(self, num_features: int | tuple[int, ...]) -> tuple[BatchNormParams, State]:
        """Returns parameters and running statistics before the first batch.

        Args:
          num_features: number of features, or the sizes of several feature axes.

        Returns:
          The `BatchNormParams` and the state, with vectors `[*features]` of float32. With them,
          inference returns x, up to epsilon.
        """

    @abc.abstractmethod
    def train(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: Mask = None
    ) -> tuple[jax.Array, State]:
        """Normalizes a batch, and moves the running statistics by it.

        A batch with no valid position is normalized as in inference. Neither it nor a batch with
        statistics that are not finite changes the state.

        Args:
          params: scale and bias, each `[*features]` of any floating dtype, or None.
          state: running statistics; carries no gradient.
          x: `[...]` of a real floating-point dtype, with the features on the axes of the norm.
          mask: boolean, broadcastable to the shape of x without its feature axes; True marks valid
            positions. Masked positions never enter the computation, so they may hold NaN. Where
            the mask is False, y is the bias and no gradient flows: leave these positions out of
            the loss, too.

        Returns:
          y, of the shape of x and of its dtype unless the norm has a `dtype`; and the next state,
          in the dtypes of `state`. Statistics and arithmetic are in float32 or wider.

        Raises:
          TypeError: x is not real floating point, or the mask is not boolean.
          ValueError: a shape does not fit, or x has only one value per feature.
          NameError: the norm's `axis_name` is not bound.
        """

    @abc.abstractmethod
    def infer(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: Mask = None
    ) -> jax.Array:
        """Normalizes `x` by the running statistics, each example independently of all others.

        Args:
          params: scale and bias, each `[*features]`, or None.
          state: running statistics; carries no gradient.
          x: `[...]` of a real floating-point dtype, with the features on the axes of the norm.
          mask: as in training; where it is False, y is the bias.

        Returns:
          y, of the shape of x and of its dtype unless the norm has a `dtype`.

        Raises:
          TypeError: x is not real floating point, or the mask is not boolean.
          ValueError: a shape does not fit.
        """


def require_norm(norm: object) -> None:
    """Checks that a norm is one, not the class of a norm.

    Raises:
      TypeError: it is something else.
    """
    if not isinstance(norm, Norm):
        raise TypeError(f"norm={norm!r} must be a jbn.Norm, such as jbn.batch_norm().")
