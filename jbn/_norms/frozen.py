"""Running statistics frozen: whether they normalize, and whether they move."""

import dataclasses

import jax
from jax.typing import ArrayLike

from jbn._core.layout import Axes, Mask
from jbn._norms.method import replaced_method
from jbn._norms.norm import BatchNormParams, Norm, State, require_norm


class frozen(Norm[State]):
    """A norm with another training step, as for fine-tuning.

    Unless it uses or moves batch statistics, it takes a single example and needs no axis name.
    `adapting` does not reach it.

    >>> norm = jbn.frozen(jbn.batch_norm())
    >>> params, state = norm.init(3)

    Args:
      norm: any norm; its inference stays as it is. To change an option, change that of this norm
        and freeze the result.
      use_running: whether training normalizes by the running statistics, as inference does, or by
        those of the batch.
      update: whether training moves the running statistics.
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
        if self.use_running:  # Under jit, the other y is then not computed.
            y = self.norm.infer(params, state, x, mask=mask)
        return y, new if self.update else state

    def infer(
        self, params: BatchNormParams, state: State, x: ArrayLike, *, mask: Mask = None
    ) -> jax.Array:
        return self.norm.infer(params, state, x, mask=mask)
