"""Checkpoints of a run: the two newest and the best."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from experiments.learner import TrainState


class Checkpoints:
    """Saves and restores checkpoints in a run's folder.

    It keeps the two newest states, because a crash can damage one, and the state with the best
    accuracy. It is a context manager, which waits at the end until all checkpoints are written.

    Args:
      folder: folder of the run.
    """

    def __init__(self, folder: Path):
        newest = ocp.CheckpointManagerOptions(max_to_keep=2)
        best = ocp.CheckpointManagerOptions(
            max_to_keep=1, best_fn=lambda metrics: metrics["accuracy"]
        )
        folder = folder.absolute() / "checkpoints"
        self._newest = ocp.CheckpointManager(folder / "newest", options=newest)
        self._best = ocp.CheckpointManager(folder / "best", options=best)

    def save(self, state: TrainState, accuracy: float | None = None) -> None:
        """Saves a state as the newest, and as the best if its accuracy is the highest so far."""
        step = int(state.step)
        # Two saves at the same time can hang if processes wait for each other.
        self._best.wait_until_finished()
        if step not in self._newest.all_steps():
            self._newest.save(step, args=ocp.args.StandardSave(state))
        self._newest.wait_until_finished()
        if accuracy is not None and step not in self._best.all_steps():
            metrics = {"accuracy": accuracy}
            self._best.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    def restore(self, like: TrainState, warn: Callable[[str], None]) -> TrainState | None:
        """Returns the newest state that can be read, or None.

        It deletes newer checkpoints that cannot be read.

        Args:
          like: a state with the same structure, shapes, dtypes and shardings. Its leaves are arrays
            or `jax.ShapeDtypeStruct`.
          warn: function that takes a message, called for each checkpoint that cannot be read.
        """
        for step in sorted(self._newest.all_steps(), reverse=True):
            try:
                restored: Any = self._newest.restore(step, args=ocp.args.StandardRestore(like))
                return restored
            except Exception as error:  # Each storage driver raises its own errors.
                warn(f"The checkpoint of step {step} cannot be read ({type(error).__name__}).")
                self._newest.delete(step)
        return None

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until all checkpoints are written."""
        self._newest.close()
        self._best.close()
