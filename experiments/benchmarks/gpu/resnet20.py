"""Trains the preset `resnet20`, and continues a run that the deadline stopped."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu.piece import Key, Piece, Row, Settings
from experiments.benchmarks.gpu.tables import markdown, spread

SEEDS = 3
INTERVAL = 1.0
"""Seconds between signals after the deadline."""
FLAGS = ("--eval-every", "10")
SMALL_FLAGS = (
    *("--data.dataset", "digits", "--data.train-size", "64", "--data.test-size", "32"),
    *("--batch-size", "32", "--eval-batch-size", "32", "--epochs", "1"),
    *("--model.name", "small", "--model.width", "8", "--model.depth", "2"),
)


def processes(small: bool) -> list[list[Key]]:
    """Returns the keys, which are seeds. Each has its own process."""
    return [[{"seed": seed}] for seed in range(1 if small else SEEDS)]


def measure(keys: list[Key], settings: Settings) -> Iterator[Row]:
    """Yields the outcome of each seed that is finished before the deadline.

    Raises:
      DataError: the data is missing or damaged.
    """
    for key in keys:
        summary = train_until(settings, key["seed"])
        if summary:
            outcome = ("accuracy", "loss", "steps", "images_per_second", "data")
            yield key | {name: summary[name] for name in outcome}


def train_until(settings: Settings, seed: int) -> dict[str, Any] | None:
    """Starts or continues a run; returns its summary, or None if the deadline came first."""
    from experiments import train  # It needs Matplotlib, because it draws reports.

    run = train.parse(command(seed, settings.folder / f"resnet20-{seed}", settings))
    with _interrupted_at(settings), contextlib.suppress(train.Interrupted):
        return train.carry_out(run)


def command(seed: int, folder: Path, settings: Settings) -> list[str]:
    """Returns the arguments of `python -m experiments.train` for a new or a stopped run."""
    has_begun = (folder / "config.json").exists()
    arguments = ["--resume" if has_begun else "--output", str(folder)]
    for flag in ("data_dir", "data_variant"):
        if value := getattr(settings, flag):
            arguments += [f"--{flag.replace('_', '-')}", str(value)]
    flags = SMALL_FLAGS if settings.small else FLAGS
    return ["resnet20", *flags, "--devices", "1", "--seed", str(seed), *arguments]


@contextlib.contextmanager
def _interrupted_at(settings: Settings) -> Iterator[None]:
    """Sends SIGTERM to this process after the deadline, so that the trainer ends the run.

    The signal is repeated, because this process ignores it until the trainer catches signals.
    """
    ended = threading.Event()

    def interrupt():
        while not ended.wait(max(INTERVAL, settings.seconds_left)):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)


def table(rows: list[Row]) -> str:
    """Returns a Markdown table of the mean and the standard deviation over the seeds."""
    lines = [
        [
            f"`resnet20`, {rows[0]['data']}",
            str(len(rows)),
            spread([row["accuracy"] for row in rows]),
            f"{rows[0]['images_per_second']:,.0f}",
        ]
    ]
    return markdown(["run", "seeds", "test accuracy", "images/s"], lines)


PIECE = Piece(processes, measure, table)
