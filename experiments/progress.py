"""Shows the progress of a run: a live bar on a terminal, and plain lines elsewhere."""

import time
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class Display:
    """Shows the progress of a run within a `with` statement.

    Args:
      total_steps: number of steps of the run.
      done: number of steps done before.
      console: console to print to; standard output by default.
      unit: name of a step.
    """

    def __init__(
        self,
        total_steps: int,
        done: int = 0,
        console: Console | None = None,
        unit: str = "step",
    ):
        self._console = console or Console()
        self._total_steps = total_steps
        self._unit = unit
        self._progress = Progress(
            TextColumn(unit),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            speed_estimate_period=300,
            transient=True,
        )
        self._task = self._progress.add_task("", completed=done, total=total_steps, figures="")
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        """Starts the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the bar."""
        self._progress.stop()

    def show(self, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Shows the figures of a training step, as `advance` does."""
        self.advance(
            step, f"loss {loss:.3f}  accuracy {accuracy:.1%}  {images_per_second:,.0f} images/s"
        )

    def advance(self, step: int, figures: str) -> None:
        """Shows the number of steps done, and the figures of the last one.

        Without a terminal it prints them only if the last line is older than
        `SECONDS_BETWEEN_LINES`.
        """
        self._progress.update(self._task, completed=step, figures=figures)
        overdue = time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES
        if overdue and not self._console.is_terminal:
            left = self._progress.tasks[0].time_remaining
            time_left = "" if left is None else f"  {timedelta(seconds=left)} left"
            self.line(f"{self._unit} {step}/{self._total_steps}{time_left}  {figures}")

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._last_line = time.monotonic()
