"""Checkpoints of a run: the two newest and the best."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from experiments.learner import TrainState


class Checkpoints:
    """The checkpoints below a run's folder; a context manager that waits for what is being written.

    Two newest are kept, so that one damaged by a crash has one before it.

    Args:
      folder: of the run.
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
        """Saves a state; with an accuracy it may be the best, too."""
        step = int(state.step)
        # Where processes wait for each other, two saves at a time can hang.
        self._best.wait_until_finished()
        if step not in self._newest.all_steps():
            self._newest.save(step, args=ocp.args.StandardSave(state))
        self._newest.wait_until_finished()
        if accuracy is not None and step not in self._best.all_steps():
            metrics = {"accuracy": accuracy}
            self._best.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    def restore(self, like: TrainState, warn: Callable[[str], None]) -> TrainState | None:
        """Returns the newest state that can be read, or None.

        Args:
          like: a state of the same structure, shapes, dtypes and shardings; arrays or their shapes.
          warn: called with a line for each checkpoint that cannot be read.
        """
        for step in sorted(self._newest.all_steps(), reverse=True):
            try:
                restored: Any = self._newest.restore(step, args=ocp.args.StandardRestore(like))
                return restored
            except Exception as error:  # Each storage driver raises errors of its own.
                warn(f"The checkpoint of step {step} cannot be read ({type(error).__name__}).")
                self._newest.delete(step)
        return None

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for what is being written."""
        self._newest.close()
        self._best.close()
