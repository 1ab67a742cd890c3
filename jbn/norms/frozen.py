"""Running statistics frozen, in what they do and in what happens to them."""

from typing import TypeVar

from jbn.norms.norm import Norm

State = TypeVar("State")


def frozen(norm: Norm[State], *, use_running: bool = True, update: bool = False) -> Norm[State]:
    """Returns the norm with another training step, as for fine-tuning.

    Args:
      norm: the method; its inference stays as it is.
      use_running: whether training normalises by the running statistics, as inference does, or by
        those of the batch.
      update: whether training moves the running statistics.
    """

    def train(params, state, x, *, mask=None):
        y, new = norm.train(params, state, x, mask=mask)  # Compiled, what is not used is not run.
        if use_running:
            y = norm.infer(params, state, x, mask=mask)
        return y, new if update else state

    return norm._replace(train=train)
