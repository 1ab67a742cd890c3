"""Compiled functions of a learner, with the time of their compilation apart."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments.evaluation import drift, evaluate
from experiments.learner import Learner, init, train
from experiments.run.errors import RunError
from experiments.run.progress import Display

_JITTED = {
    init: jax.jit(init, static_argnums=0),
    train: jax.jit(train, static_argnums=(0, 3), donate_argnums=1),
    evaluate: jax.jit(evaluate, static_argnums=0),
    drift: jax.jit(drift, static_argnums=0),
}
_PURPOSES = {
    init: "the initial state",
    train: "the training steps",
    evaluate: "the evaluation",
    drift: "the drift of running statistics",
}
_programs: dict[Any, Any] = {}
"""Compiled programs by function, learner, number of steps and shapes, for all runs of a process."""


class Compiled:
    """Compiles each function of a learner when it is first called.

    Args:
      learner: the learner.
      display: shows what is compiled.

    Attributes:
      compiling: number of seconds spent on compiling since this was last set to 0.
      seconds: number of seconds that the last call took without compilation.
    """

    def __init__(self, learner: Learner, display: Display):
        self._learner, self._display = learner, display
        self.compiling = self.seconds = 0.0

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns `function(learner, *arguments)`. An int, the number of steps, is static."""
        arrays = [argument for argument in arguments if not isinstance(argument, int)]
        static = [argument for argument in arguments if isinstance(argument, int)]
        shapes = [leaf.shape for leaf in jax.tree.leaves(arrays)]
        mesh = jax.sharding.get_abstract_mesh()
        key = function, self._learner, mesh, *static, *shapes
        with _told_of_memory(_PURPOSES[function]):
            if key not in _programs:
                start = time.perf_counter()
                with self._display.waiting(f"compiling {_PURPOSES[function]}"):
                    lowered = _JITTED[function].lower(self._learner, *arguments)
                    _programs[key] = lowered.compile()
                self.compiling += time.perf_counter() - start
            start = time.perf_counter()
            result = jax.block_until_ready(_programs[key](*arrays))
            self.seconds = time.perf_counter() - start
            return result


@contextlib.contextmanager
def _told_of_memory(purpose: str) -> Iterator[None]:
    """Says what to do if the memory of the devices does not suffice."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            f"The memory does not suffice for {purpose}. Choose a smaller --batch-size, "
            "--eval-batch-size or network, or more --devices."
        ) from error
