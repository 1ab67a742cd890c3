"""A norm whose running statistics are frozen in training."""

import dataclasses

import jax
from jax.typing import ArrayLike

from jbn._core.layout import Axes, Mask
from jbn._norms.method import replaced_method
from jbn._norms.norm import BatchNormParams, Norm, State, require_norm


class frozen(Norm[State]):
    """A norm whose running statistics are frozen in training, for instance for fine-tuning.

    By default, training normalizes by the running statistics, as inference does, and does not
    change them. Such a training step accepts a single example and needs no axis name. With
    `use_running=False`, training normalizes by the batch. With `update=True`, it updates the
    running statistics. `adapting` has no effect on a frozen norm.

    >>> import jax.numpy as jnp
    >>> norm = jbn.frozen(jbn.batch_norm())
    >>> params, state = norm.init(1)
    >>> y, state = norm.train(params, state, jnp.array([[1.0], [3.0]]))
    >>> print(state.mean)
    [0.]

    Args:
      norm: any norm. Its inference is unchanged. To change an option, change it in this norm, and
        freeze the result.
      use_running: whether training normalizes by the running statistics, as inference does, or by
        the statistics of the batch.
      update: whether training updates the running statistics.

    Raises:
      TypeError: `norm` is not a norm.
    """

    norm: Norm[State] = dataclasses.field(kw_only=False)
    use_running: bool = True
    update: bool = False

    def __post_init__(self):
        super().__post_init__()
        require_norm(self.norm)

    @property
    def axis(self) -> Axes:
        return self.norm.axis

    @property
    def needs_count(self) -> bool:
        return self.norm.needs_count

    def init(self, num_features: int | tuple[int, ...]) -> tuple[BatchNormParams, State]:
        return self.norm.init(num_features)

    def train(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: Mask = None
    ) -> tuple[jax.Array, State]:
        if self.use_running and not self.update:
            return self.norm.infer(params, state, x, mask=mask), state
        replaced = replaced_method.value
        with replaced_method(replaced if getattr(replaced, "reaches_frozen", False) else None):
            y, new = self.norm.train(params, state, x, mask=mask)
        if self.use_running:  # Under jit, XLA does not compute the first y.
            y = self.norm.infer(params, state, x, mask=mask)
        return y, new if self.update else state

    def infer(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: Mask = None
    ) -> jax.Array:
        return self.norm.infer(params, state, x, mask=mask)
