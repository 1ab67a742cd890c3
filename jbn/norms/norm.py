"""What every norm is: an initialiser, a training step and an inference step."""

from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
from jax.typing import ArrayLike

State = TypeVar("State")
NewState = TypeVar("NewState", covariant=True)


class BatchNormParams(NamedTuple):
    """What is learned of each feature.

    Attributes:
      scale: `[*features]` the factor after normalisation, or None where unused; starts at 1.
      bias: `[*features]` the offset after normalisation, or None where unused; starts at 0.
    """

    scale: jax.Array | None
    bias: jax.Array | None


class InitFn(Protocol[NewState]):
    """The type of `Norm.init`."""

    def __call__(self, num_features: int | tuple[int, ...], /) -> tuple[BatchNormParams, NewState]:
        """Returns parameters and state before the first batch."""
        ...


class TrainFn(Protocol[State]):
    """The type of `Norm.train`."""

    def __call__(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: ArrayLike | None = None
    ) -> tuple[jax.Array, State]:
        """Returns the normalised `x` and the next state."""
        ...


class InferFn(Protocol):
    """The type of `Norm.infer`."""

    def __call__(
        self, params: BatchNormParams, state: Any, x: ArrayLike, *, mask: ArrayLike | None = None
    ) -> jax.Array:
        """Returns the normalised `x`."""
        ...


class Norm(NamedTuple, Generic[State]):
    """A normalisation method.

    Attributes:
      init: `init(num_features) -> (params, state)`; a tuple of sizes for several feature axes.
      train: `train(params, state, x, *, mask=None) -> (y, state)`.
      infer: `infer(params, state, x, *, mask=None) -> y`, which treats each example for itself.
    """

    init: InitFn[State]
    train: TrainFn[State]
    infer: InferFn
