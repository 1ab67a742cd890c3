"""Checkpoints of a run: the two newest and the best."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from experiments.learner import TrainState
from experiments.run.errors import NotFinite, RunError

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what the errors below say.


class Checkpoints:
    """Saves and restores checkpoints in a run's folder.

    It keeps the two newest states, because a crash can damage one, and the state with the best
    accuracy. It is a context manager, which waits at the end until all checkpoints are written.

    Args:
      folder: folder of the run.
    """

    def __init__(self, folder: Path):
        newest = ocp.CheckpointManagerOptions(max_to_keep=2)
        best = ocp.CheckpointManagerOptions(max_to_keep=1)
        self.path = folder.absolute() / "checkpoints"
        self._newest = ocp.CheckpointManager(self.path / "newest", options=newest)
        self._best = ocp.CheckpointManager(self.path / "best", options=best)

    def save(self, state: TrainState, best: bool = False) -> None:
        """Saves a state as the newest, and also as the best if that is asked for.

        Raises:
          NotFinite: the state is not finite.
          RunError: it cannot be written.
        """
        step = int(state.step)
        if not _is_finite(state):
            raise NotFinite(
                f"The weights after step {step} are not finite, so they are not saved, and the run "
                f"ends. {self.advice()}"
            )
        # Two saves at the same time can hang if processes wait for each other.
        self.wait()
        with self._told():
            if best and step not in self._best.all_steps():
                self._best.save(step, args=ocp.args.StandardSave(state))
                self._best.wait_until_finished()
            if step not in self._newest.all_steps():
                self._newest.save(step, args=ocp.args.StandardSave(state))

    def best_step(self) -> int | None:
        """Returns the step of the state with the best accuracy, or None if none is saved."""
        return self._best.latest_step()

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
          RunError: one cannot be written.
        """
        with self._told():
            self._newest.wait_until_finished()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Says where a checkpoint cannot be written."""
        try:
            yield
        except Exception as error:  # Each storage driver raises its own errors.
            reason = " ".join(str(error).split())
            raise RunError(f"A checkpoint cannot be written to {self.path} ({reason}).") from error

    def advice(self) -> str:
        """Returns a sentence on the last checkpoint and what to change."""
        last = ""
        if steps := self._newest.all_steps():
            initial = "" if max(steps) else " (the initial weights)"
            last = f"The last good checkpoint is {self.path}/newest/{max(steps)}{initial}. "
        return f"{last}Lower --optimizer.learning-rate, or check the data."

    def restore(self, like: TrainState, warn: Callable[[str], None]) -> TrainState | None:
        """Returns the newest state that can be read, or None if none was saved.

        It then deletes newer checkpoints, which cannot be read.

        Args:
          like: a state with the same structure, shapes, dtypes and shardings. Its leaves are arrays
            or `jax.ShapeDtypeStruct`.
          warn: function that takes a message, called for each checkpoint that cannot be read.

        Raises:
          RunError: there are checkpoints, and none can be read.
        """
        damaged = []
        managers = {"newest": self._newest, "best": self._best}
        saved = {(step, name) for name, m in managers.items() for step in m.all_steps()}
        for step, name in sorted(saved, key=lambda s: (s[0], s[1] == "newest"), reverse=True):
            try:
                state: Any = managers[name].restore(step, args=ocp.args.StandardRestore(like))
            except Exception as error:  # Each storage driver raises its own errors.
                warn(f"{self.path}/{name}/{step} cannot be read ({type(error).__name__}).")
                damaged.append((step, name))
                continue
            for step, name in damaged:
                managers[name].delete(step)
            return state
        if damaged:
            files = ", ".join(f"{self.path}/{name}/{step}" for step, name in damaged)
            raise RunError(
                f"None of the checkpoints can be read: {files}. Nothing was deleted. Restore one "
                "of these folders, or start a new run."
            )
        return None

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until all checkpoints are written."""
        with self._told():
            self._newest.close()
            self._best.close()


def load_checkpoint(
    folder: Path, like: TrainState, which: Literal["newest", "best"] = "newest"
) -> TrainState:
    """Returns the newest or the best state of a run, and changes nothing.

    Args:
      folder: folder of the run.
      like: a state with the same structure, as in `Checkpoints.restore`.
      which: which state.

    Raises:
      RunError: there is no such state, or none can be read.
    """
    path = folder.absolute() / "checkpoints" / which
    steps = sorted((int(p.name) for p in path.glob("*") if p.name.isdecimal()), reverse=True)
    reader = ocp.StandardCheckpointer()
    for step in steps:
        try:
            return reader.restore(path / str(step) / "default", like)
        except Exception as error:  # Each storage driver raises its own errors.
            warnings.warn(f"{path / str(step)} cannot be read ({error!r:.200}).", stacklevel=2)
    found = f"its checkpoints {steps} cannot be read" if steps else "it holds no checkpoint"
    other = "best" if which == "newest" else "newest"
    raise RunError(f"{path}: {found}. Try the checkpoint {other}, or finish the run with --resume.")


@jax.jit
def _is_finite(state: Any) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))
