"""Writes down what a run finds out: metrics, checkpoints and the summary."""

import math
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np

from experiments.learner import Learner, TrainState
from experiments.run.checkpoints import Checkpoints
from experiments.run.errors import NotFinite
from experiments.run.folder import RunFolder
from experiments.run.progress import Display
from experiments.run.tensorboard import TensorBoard


class Journal:
    """The files and the display of a run.

    All processes make the same calls at the same time.

    Args:
      folder: folder of the run. Only that of process 0 writes.
      learner: the learner.
      checkpoints: checkpoints of the run.
      display: shows the progress.
      first_step: number of steps done before.
    """

    def __init__(
        self,
        folder: RunFolder,
        learner: Learner,
        checkpoints: Checkpoints,
        display: Display,
        first_step: int,
    ):
        self._folder, self._learner, self._checkpoints = folder, learner, checkpoints
        self._display = display
        accuracies = {
            r["step"]: r["accuracy"] for r in folder.records("test") if r["step"] <= first_step
        }
        self._best = max(accuracies.values(), default=-1.0)
        best = checkpoints.best_step()
        if best is not None and best not in accuracies:
            self._best = math.inf
            display.line(
                f"No record says how accurate {checkpoints.path}/best/{best} is, so it stays."
            )
        self._board = TensorBoard(folder.path, first_step) if folder.writes else None

    def trained(self, step: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        """Writes down the metrics `[steps]` of the last steps, of which `step` is the last.

        Raises:
          NotFinite: a loss or another metric is not finite.
        """
        losses = metrics["loss"]
        size, finite = len(losses), np.all([np.isfinite(v) for v in metrics.values()], axis=0)
        good = size if finite.all() else int(np.argmin(finite))
        self._append(
            {"kind": "train", "step": step - size + i + 1}
            | {name: float(values[i]) for name, values in metrics.items()}
            | {"seconds": round(seconds / size, 6)}
            for i in range(good)
        )
        if good < size:
            name = next(name for name in metrics if not np.isfinite(metrics[name][good]))
            raise NotFinite(
                f"The {name.replace('_', ' ')} of step {step - size + good + 1} is "
                f"{metrics[name][good]}, so the run ends. "
                f"{self._checkpoints.advice()}"
            )
        rate = size * self._learner.config.batch_size / seconds
        self._display.show(step, losses[-1], metrics["accuracy"][-1], rate)

    def tested(
        self, state: TrainState, results: Any, drift: Any, seconds: Mapping[str, float]
    ) -> None:
        """Writes down the results on the test images, and saves the state.

        Raises:
          NotFinite: the loss or the state is not finite.
        """
        step = int(state.step)
        results = {name: np.asarray(value).tolist() for name, value in results.items()}
        drift = jax.tree.map(float, drift)
        if not np.isfinite(results["loss"]):
            raise NotFinite(
                f"The test loss after step {step} is {results['loss']}, so the run ends. "
                f"{self._checkpoints.advice()}"
            )
        record = {"kind": "test", "step": step, **results, "drift": drift}
        self._append([record | {name: round(value, 6) for name, value in seconds.items()}])
        self._checkpoints.save(state, best=results["accuracy"] > self._best)
        self._best = max(self._best, results["accuracy"])
        epoch = step / self._learner.steps_per_epoch
        own = results["accuracy_batch_statistics"]
        mode = f"  (in training mode {own:.2%})" if drift else ""
        self._display.line(
            f"epoch {epoch:6.2f}  test loss {results['loss']:.4f}  accuracy "
            f"{results['accuracy']:.2%}{mode}"
        )

    def is_tested(self, state: TrainState) -> bool:
        """Returns whether the results of the state are written down."""
        return any(r["step"] == int(state.step) for r in self._folder.records("test"))

    def _append(self, records) -> None:
        records = list(records)
        self._folder.append(records)
        if self._board:
            self._board.add(records)

    def summarize(self) -> dict[str, Any]:
        """Writes the summary of a finished run from its files, and returns it."""
        config, data = self._learner.config, self._folder.read("data.json")
        train, test = self._folder.records("train"), self._folder.records("test")
        seconds = {
            "compiling": sum(record.get("compiling", 0.0) for record in test),
            "training": sum(record.get("seconds", 0.0) for record in train),
            "evaluating": sum(record.get("seconds", 0.0) for record in test),
        }
        is_whole = len({record["step"] for record in train}) == self._learner.total_steps
        names = ("accuracy", "accuracy_plain", "accuracy_batch_statistics", "loss")
        summary = {
            "folder": str(self._folder.path),
            "preset": config.name,
            "norm": config.norm.method,
            "seed": config.seed,
            "data": data["variant"],
            "classes": data["classes"],
            "num_params": data["num_params"],
            "steps": self._learner.total_steps,
            "steps_per_epoch": self._learner.steps_per_epoch,
            **{name: test[-1][name] for name in names},
            # If metrics were lost, these are not known of the whole run.
            "best_accuracy": max(record["accuracy"] for record in test) if is_whole else None,
            "seconds": {
                name: round(value, 3) if is_whole else None for name, value in seconds.items()
            },
            "images_per_second": round(
                len(train) * config.batch_size / max(seconds["training"], 1e-9), 1
            )
            if train
            else None,
        }
        self._folder.write("summary.json", summary)
        return summary

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the files."""
        if self._board:
            self._board.close()
