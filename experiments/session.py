"""The host's part of a training run, which calls the compiled programs and writes the files."""

import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from experiments.checkpoints import Checkpoints
from experiments.cluster import Signals
from experiments.command import Interrupted, Run, RunError
from experiments.data import Dataset
from experiments.learner import TrainState
from experiments.programs import Programs
from experiments.progress import Display
from experiments.report import write_report
from experiments.run_folder import RunFolder


class Session:
    """A run from its first step to its report.

    All processes make the same calls at the same time.

    Args:
      run: the run.
      folder: folder of the run. Only that of process 0 writes.
      dataset: the images.
      programs: compiled functions of the learner.
      checkpoints: checkpoints of the run.
      signals: signals that end the run early. They are checked after each call of the device.
    """

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        dataset: Dataset,
        programs: Programs,
        checkpoints: Checkpoints,
        signals: Signals,
    ):
        self.run, self.folder, self.dataset, self.programs = run, folder, dataset, programs
        self.checkpoints, self.signals = checkpoints, signals
        self.chunk = run.chunk or (1 if jax.default_backend() == "cpu" else 50)
        self.eval_steps = max(1, round(run.eval_every * programs.learner.steps_per_epoch))
        self.seconds = {"training": 0.0, "evaluating": 0.0}
        self.console = Console(quiet=run.process > 0)

    def train(self, state: TrainState) -> dict[str, Any]:
        """Trains to the end, evaluates, saves and reports; returns the summary."""
        first, total = int(state.step), self.programs.learner.total_steps
        with Display(total, first, self.console) as display:
            if first >= total:
                display.line("The run is already finished. Its report is written again.")
            elif self.run.resume:
                display.line(f"The run continues from step {first} of {total}.")
            step = first
            while step < total:
                until_evaluation = self.eval_steps - step % self.eval_steps
                size = min(self.chunk, until_evaluation, total - step)
                state = self._steps(state, step, size, display)
                step += size
                if step % self.eval_steps == 0 or step == total:
                    self._evaluate(state, step, display)
                if number := self.signals.agreed():
                    self.checkpoints.save(state)
                    raise Interrupted(self.run, number)
        if self.folder.writes:
            if first < total:
                self._summarize(state, total - first)
            write_report(self.folder)
        multihost_utils.sync_global_devices("report")
        return self.folder.read("summary.json")

    def _steps(self, state: TrainState, step: int, size: int, display: Display) -> TrainState:
        program = self.programs.compiled("train", state, static=(size,))
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(program(state))
        elapsed = time.perf_counter() - start
        self.seconds["training"] += elapsed
        metrics = {name: np.asarray(values) for name, values in metrics.items()}
        finite = np.isfinite(metrics["loss"])
        good = size if finite.all() else int(np.argmin(finite))
        self.folder.append(
            {"kind": "train", "step": step + i + 1}
            | {name: float(values[i]) for name, values in metrics.items()}
            for i in range(good)
        )
        if good < size:
            raise RunError(
                f"The loss of step {step + good + 1} is {metrics['loss'][good]}, so the run ends. "
                f"Earlier checkpoints are in {self.folder.path}/checkpoints. Lower "
                "--optimizer.learning-rate, or check the data."
            )
        rate = size * self.run.config.batch_size / elapsed
        display.show(step + size, metrics["loss"][-1], metrics["accuracy"][-1], rate)
        return state

    def _evaluate(self, state: TrainState, step: int, display: Display) -> None:
        programs = [self.programs.compiled(name, state) for name in ("evaluate", "drift")]
        start = time.perf_counter()
        results, drift = (jax.device_get(program(state)) for program in programs)
        self.seconds["evaluating"] += time.perf_counter() - start
        record = {name: np.asarray(value).tolist() for name, value in results.items()}
        drift = {layer: {k: float(v) for k, v in pair.items()} for layer, pair in drift.items()}
        self.folder.append([{"kind": "test", "step": step, **record, "drift": drift}])
        self.checkpoints.save(state, record["accuracy"])
        epoch = step / self.programs.learner.steps_per_epoch
        display.line(
            f"epoch {epoch:6.2f}  test loss {record['loss']:.4f}  accuracy {record['accuracy']:.2%}"
            f"  (in training mode {record['accuracy_batch_statistics']:.2%})"
        )

    def _summarize(self, state: TrainState, steps: int) -> None:
        tests = self.folder.records("test")
        images = steps * self.run.config.batch_size
        seconds = {"compiling": self.programs.seconds} | self.seconds
        self.folder.write(
            "summary.json",
            {
                "folder": str(self.folder.path),
                "preset": self.run.config.name,
                "norm": self.run.config.norm.method,
                "seed": self.run.config.seed,
                "data": self.dataset.variant,
                "classes": self.dataset.classes,
                "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
                "steps": self.programs.learner.total_steps,
                "steps_per_epoch": self.programs.learner.steps_per_epoch,
                "accuracy": tests[-1]["accuracy"],
                "accuracy_plain": tests[-1]["accuracy_plain"],
                "accuracy_batch_statistics": tests[-1]["accuracy_batch_statistics"],
                "best_accuracy": max(test["accuracy"] for test in tests),
                "loss": tests[-1]["loss"],
                "steps_timed": steps,
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "images_per_second": round(images / self.seconds["training"], 1),
            },
        )
