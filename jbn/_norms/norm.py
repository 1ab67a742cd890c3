"""What every norm is: an initializer, a training step and an inference step."""

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

    @property
    def axis(self) -> Axes:
        """The feature axis or axes of x; the last, unless a norm says otherwise."""
        return -1

    @property
    def needs_count(self) -> bool:
        """Whether training or inference depends on the count in the state.

        If not, the Flax modules store none, as Flax's own do not.
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
        """

    @abc.abstractmethod
    def train(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: Mask = None
    ) -> tuple[jax.Array, State]:
        """Normalizes a batch, and moves the running statistics by it.

        A batch in which the mask leaves fewer than two values of a feature is normalized as in
        inference. Neither it nor a batch by which statistics would not be finite changes the state.
        An x without elements gives a y without elements and the old state.

        Args:
          params: scale and bias, each `[*features]` of any floating dtype, or None.
          state: running statistics; carries no gradient.
          x: `[...]` of a real floating-point dtype, with the features on the axes of the norm.
          mask: boolean, True at valid positions. Of rank 1 it has one entry an example, which lie
            on the first axis of x that is not a feature axis. Otherwise it has an axis for each
            axis of x, or for each that is not a feature axis; each of its sizes is that of x or 1,
            and 1 on feature axes. What it hides is never computed with, so it may be NaN. There y
            is the bias and x has no gradient: leave these positions out of the loss, too. Layers
            before the norm do compute with them, so pad with zeros.

        Returns:
          y, of the shape of x and of its dtype unless the norm has a `dtype`; and the next state,
          in the dtypes of `state`. Statistics and arithmetic are in float32 or wider.

        Raises:
          TypeError: x is not real floating point, or the mask is not boolean.
          ValueError: a shape does not fit, or x has only one value per feature. Where only a mask
            leaves one, there is no error, since masks may be traced.
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
          mask: as in training.

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
