"""Shows the progress of a run: a live bar on a terminal, and plain lines elsewhere."""

import contextlib
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from experiments.run.errors import complain, discard

SECONDS_BETWEEN_LINES = 10.0
SECONDS_OF_SILENCE = 2.0
COPIED = ("folder", "resume")
"""Rows of the header that people copy. They are never wrapped."""


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
        self._console = console or RunConsole()
        # A live display on a quiet console would also swallow what others print.
        self._live = self._console.is_interactive and not self._console.quiet
        self._total_steps = total_steps
        self._unit = unit
        self._progress = Progress(
            TextColumn(unit),
            MofNCompleteColumn(table_column=_unbroken()),
            BarColumn(bar_width=None),
            _TimeLeft(compact=True, table_column=_unbroken()),
            _Figures(self._console, len(f"{unit} {total_steps}/{total_steps}")),
            console=self._console,
            disable=not self._live,
            expand=True,
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

    def header(self, rows: Mapping[str, str]) -> None:
        """Prints what the run is: a name and a text in each row.

        The row `resume` is a command. It gets a line of its own.
        """
        width = max(map(len, rows), default=0) + 2
        for name, text in rows.items():
            if name == "resume":
                self._print(Text(f"if it stops, {name} with", "dim"))
                self._print(Text(text))
                continue
            first, *others = self._lines(name, text, width)
            self._print(Text.assemble((f"{name:{width}}", "dim"), first))
            for line in others:
                self._print(Text(" " * width + line))

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Says what the run waits for: on a terminal at once, elsewhere if it takes long."""
        if self._live:
            started = self._progress.live.is_started
            self._progress.stop()  # Before version 14.1, Rich shows one live display at a time.
            with self._console.status(text):
                yield
            if started:
                self._progress.start()
            return
        timer = threading.Timer(SECONDS_OF_SILENCE, self.line, [f"{text} ..."])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def show(self, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Shows the figures of a training step, as `advance` does."""
        self.advance(
            step, f"loss {loss:.3f}  accuracy {accuracy:.1%}  {images_per_second:,.0f} images/s"
        )

    def advance(self, step: int, figures: str) -> None:
        """Shows the number of steps done, and the figures of the last one.

        Two spaces separate figures. Those at the end are left out if the terminal is too narrow.
        Without a terminal it prints them only if the last line is older than
        `SECONDS_BETWEEN_LINES`.
        """
        self._progress.update(self._task, completed=step, figures=figures)
        overdue = time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES
        if overdue and not self._live:
            left = self._progress.tasks[0].time_remaining
            time_left = "" if left is None else f"  {timedelta(seconds=left)} left"
            self.line(f"{self._unit} {step}/{self._total_steps}{time_left}  {figures}")

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self._print(Text(text))
        self._last_line = time.monotonic()

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

    def _lines(self, name: str, text: str, indent: int) -> list[str]:
        if name in COPIED or not self._live:
            return [text]
        room = max(self._console.width - indent, 10)
        lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
        return lines or [""]


class RunConsole(Console):
    """A console for a run, which goes on if nobody reads its output any more."""

    def on_broken_pipe(self) -> None:
        """Says so, and prints nothing from now on."""
        discard(sys.stdout)
        complain("Nothing reads the output any more. The run goes on and prints no more.")


def _unbroken() -> Column:
    """Returns a column that keeps its width, so that only the bar becomes shorter."""
    return Column(no_wrap=True)


class _TimeLeft(TimeRemainingColumn):
    """The time that the run still takes."""

    def render(self, task: Task) -> Text:
        return super().render(task).append(" left")


class _Figures(ProgressColumn):
    """As many figures as fit.

    Args:
      console: console whose width counts.
      taken: number of characters of the unit and the number of steps.
    """

    shortest_bar, time_left = 6, len("0:00:00 left")

    def __init__(self, console: Console, taken: int):
        super().__init__(_unbroken())
        spaces = 3  # Between the four columns after the unit's.
        self._console, self._taken = console, taken + self.shortest_bar + self.time_left + spaces

    def render(self, task: Task) -> Text:
        room = max(self._console.width - self._taken, 0)
        parts = task.fields["figures"].split("  ")
        while len(parts) > 1 and len("  ".join(parts)) > room:
            parts.pop()
        text = Text("  ".join(parts), no_wrap=True)
        text.truncate(room, overflow="ellipsis")
        return text
