"""Trains a network: python -m experiments.train [PRESET] [--flags].

Presets: digits (the default), cifar10_small, cifar10, resnet20.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jax.sharding import AxisType, Mesh

from experiments.checkpoints import Checkpoints
from experiments.config import Config, differences, from_dict, to_dict
from experiments.configs import PRESETS
from experiments.data import DataError, Dataset, load
from experiments.learner import Learner, TrainState, make_learner
from experiments.progress import Display
from experiments.report import write_report
from experiments.run_folder import RunFolder, environment


@dataclass(frozen=True)
class Run:
    """A configuration, and how it is carried out."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Path | None = None
    """Folder of the run; by default runs/PRESET-TIME."""
    resume: Path | None = None
    """Folder of a run to go on with."""
    data_dir: Path | None = None
    """Folder with CIFAR-10's binary files, unpacked; by default they are fetched and cached."""
    data_variant: str | None = None
    """What reports call the data of --data-dir."""
    devices: int | None = None
    """Number of devices, by default all; on a CPU, that many are made."""
    chunk: int | None = None
    """Steps in one call of the device; by default 1 on a CPU, else 50."""
    eval_every: float = 1.0
    """Epochs between evaluations, each of which saves a checkpoint."""


class RunError(Exception):
    """The run cannot start or go on; the message says what to do."""


class Interrupted(Exception):
    """A signal asked the run to end; its state is saved."""

    def __init__(self, number: int, folder: Path):
        super().__init__(
            f"Ended by {signal.Signals(number).name}; saved. "
            f"Go on with: python -m experiments.train --resume {folder}"
        )
        self.exit_code = 128 + number


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    try:
        run = parse(sys.argv[1:] if arguments is None else list(arguments))
        summary = carry_out(run)
    except (DataError, RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return interrupted.exit_code
    print(f"{summary['accuracy']:.2%} test accuracy; report in {summary['folder']}/report.md")
    return 0


def parse(arguments: list[str]) -> Run:
    """Returns the run that the command line describes.

    Raises:
      RunError: the preset is unknown, or the folder to resume holds no run.
    """
    presets = ", ".join(PRESETS)
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else "digits"
    if name not in PRESETS:
        raise RunError(f"There is no preset {name!r}; choose one of: {presets}.")
    config = PRESETS[name]
    resume = tyro.cli(_Resume, args=arguments[named:], return_unknown_args=True, add_help=False)[0]
    if resume.resume and not named:
        config = _stored_config(resume.resume)
    return tyro.cli(
        Run,
        default=Run(config),
        args=arguments[named:],
        prog=f"python -m experiments.train {name}",
        description=f"Trains a network. The first argument may name a preset: {presets}.",
    )


@dataclass(frozen=True)
class _Resume:
    resume: Path | None = None


def _stored_config(folder: Path) -> Config:
    try:
        return from_dict(RunFolder(folder).read("config.json"))
    except FileNotFoundError as error:
        raise RunError(
            f"--resume {folder}: there is no run; {error.filename} is missing."
        ) from error


def carry_out(run: Run) -> dict[str, Any]:
    """Trains, evaluates, saves and reports; returns the summary.

    Raises:
      DataError: the data cannot be had.
      RunError: the configuration or the folder does not fit, or the loss is not finite.
      Interrupted: SIGTERM or SIGINT came.
    """
    folder = _open_folder(run)
    mesh = _mesh(run)
    dataset = load(run.config.data, run.data_dir, run.data_variant)
    learner = make_learner(run.config, dataset, mesh)
    with Checkpoints(folder.path) as checkpoints, _Signals() as signals:
        like = jax.eval_shape(learner.init)
        state = None
        if run.resume:
            sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            like = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like
            )
            state = checkpoints.restore(like, print)
            print(f"Going on from step {int(state.step) if state else 0} of {learner.total_steps}.")
        else:
            folder.write("config.json", to_dict(run.config))
        folder.write("environment.json", environment(dataset.variant))
        state = learner.init() if state is None else state
        folder.metrics.touch()
        folder.forget_after(int(state.step))
        return _Session(run, folder, dataset, learner, checkpoints, signals).train(state)


def _open_folder(run: Run) -> RunFolder:
    """The run's folder, after checking that it is new or holds the same configuration."""
    if run.resume is None:
        time_of_day = datetime.now().strftime("%Y%m%d-%H%M%S")
        path = run.output or Path("runs") / f"{run.config.name}-{time_of_day}"
        if (path / "config.json").exists():
            raise RunError(f"{path} holds a run: resume it, or choose another --output.")
        return RunFolder(path)
    changes = differences(to_dict(_stored_config(run.resume)), to_dict(run.config))
    if changes:
        raise RunError(
            f"{run.resume} holds a run of another configuration; start a new one, or drop the "
            "flags that change it:\n  " + "\n  ".join(changes)
        )
    return RunFolder(run.resume)


def _mesh(run: Run) -> Mesh:
    """All devices, or the number asked for, on one axis `data`."""
    if run.devices:
        # Where JAX has started before, the number of its devices is checked below.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", run.devices)
    devices = jax.devices()
    count = run.devices or len(devices)
    if count > len(devices):
        raise RunError(f"--devices {count}: this process has {len(devices)} ({devices[0]}).")
    for name in ("batch_size", "eval_batch_size"):
        if getattr(run.config, name) % count:
            raise RunError(
                f"{name}={getattr(run.config, name)} cannot be spread evenly over {count} devices: "
                "choose a multiple, or fewer with --devices."
            )
    return jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=devices[:count])


class _Signals:
    """Remembers the last SIGINT or SIGTERM, so that the steps in flight end first."""

    received: int | None = None

    def __enter__(self):
        self._previous = {
            number: signal.signal(number, self._remember)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number, _):
        self.received = number


class _Session:
    """The host's part of a run: which steps are next, and what is written when."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        dataset: Dataset,
        learner: Learner,
        checkpoints: Checkpoints,
        signals: _Signals,
    ):
        self.run, self.folder, self.dataset, self.learner = run, folder, dataset, learner
        self.checkpoints, self.signals = checkpoints, signals
        self.chunk = run.chunk or (1 if jax.default_backend() == "cpu" else 50)
        self.eval_steps = max(1, round(run.eval_every * learner.steps_per_epoch))
        self.seconds = {"compiling": 0.0, "training": 0.0, "evaluating": 0.0}
        self.programs: dict[Any, Any] = {}

    def train(self, state: TrainState) -> dict[str, Any]:
        """Trains to the end, evaluates, saves and reports."""
        first, total = int(state.step), self.learner.total_steps
        if first >= total:
            print("The run is finished; its report is made anew.")
        with Display(total, first) as display:
            step = first
            while step < total:
                until_evaluation = self.eval_steps - step % self.eval_steps
                size = min(self.chunk, until_evaluation, total - step)
                state = self._steps(state, step, size, display)
                step += size
                if step % self.eval_steps == 0 or step == total:
                    self._evaluate(state, step, display)
                if self.signals.received:
                    self.checkpoints.save(state)
                    raise Interrupted(self.signals.received, self.folder.path)
        if first < total:
            self._summarise(total - first)
        write_report(self.folder)
        return self.folder.read("summary.json")

    def _compiled(self, function: Any, state: TrainState, *static: int) -> Any:
        """The compiled program of a jitted function; compilation has a clock of its own."""
        key = (function, *static)
        if key not in self.programs:
            start = time.perf_counter()
            self.programs[key] = function.lower(state, *static).compile()
            self.seconds["compiling"] += time.perf_counter() - start
        return self.programs[key]

    def _steps(self, state: TrainState, step: int, size: int, display: Display) -> TrainState:
        program = self._compiled(self.learner.train, state, size)
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
                f"The loss of step {step + good + 1} is {metrics['loss'][good]}: the run ends. "
                f"Checkpoints from before are in {self.folder.path}/checkpoints. Lower "
                "--optimizer.learning-rate, or look at the data."
            )
        rate = size * self.run.config.batch_size / elapsed
        display.show(step + size, metrics["loss"][-1], metrics["accuracy"][-1], rate)
        return state

    def _evaluate(self, state: TrainState, step: int, display: Display) -> None:
        programs = [self._compiled(f, state) for f in (self.learner.evaluate, self.learner.drift)]
        start = time.perf_counter()
        results, drift = (jax.device_get(program(state)) for program in programs)
        self.seconds["evaluating"] += time.perf_counter() - start
        record = {name: np.asarray(value).tolist() for name, value in results.items()}
        drift = {layer: {k: float(v) for k, v in pair.items()} for layer, pair in drift.items()}
        self.folder.append([{"kind": "test", "step": step, **record, "drift": drift}])
        self.checkpoints.save(state, record["accuracy"])
        epoch = step / self.learner.steps_per_epoch
        display.line(
            f"epoch {epoch:6.2f}  test loss {record['loss']:.4f}  accuracy {record['accuracy']:.2%}"
            f"  (in training mode {record['accuracy_batch_statistics']:.2%})"
        )

    def _summarise(self, steps: int) -> None:
        tests = self.folder.records("test")
        images = steps * self.run.config.batch_size
        self.folder.write(
            "summary.json",
            {
                "folder": str(self.folder.path),
                "preset": self.run.config.name,
                "norm": self.run.config.norm.method,
                "seed": self.run.config.seed,
                "data": self.dataset.variant,
                "classes": self.dataset.classes,
                "num_params": self.learner.num_params,
                "steps": self.learner.total_steps,
                "steps_per_epoch": self.learner.steps_per_epoch,
                "accuracy": tests[-1]["accuracy"],
                "accuracy_plain": tests[-1]["accuracy_plain"],
                "accuracy_batch_statistics": tests[-1]["accuracy_batch_statistics"],
                "best_accuracy": max(test["accuracy"] for test in tests),
                "loss": tests[-1]["loss"],
                "steps_timed": steps,
                "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
                "images_per_second": round(images / self.seconds["training"], 1),
            },
        )


if __name__ == "__main__":
    sys.exit(main())
