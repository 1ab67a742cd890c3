"""What a piece of the measurements is: rows, the processes that measure them, and a table."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Key = dict[str, Any]
"""What a row is about, of values that JSON can hold."""
Row = dict[str, Any]
"""A key and what was measured."""


@dataclass(frozen=True)
class Settings:
    """How a piece is carried out.

    Attributes:
      small: whether to run the small version.
      folder: for files that a piece needs to go on where it stopped.
      deadline: when to stop, in the seconds of `time.time`.
      data_dir: folder with CIFAR-10's binary files; None fetches them.
      data_variant: what to call the data of `data_dir`.
    """

    small: bool
    folder: Path
    deadline: float
    data_dir: Path | None = None
    data_variant: str | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.time()


class Piece(NamedTuple):
    """A piece of the measurements.

    Attributes:
      processes: `processes(small)` returns the keys of all rows, a list for each process, in order.
      measure: `measure(keys, settings)` yields the rows of one process in order. It ends early if
        the deadline comes in the middle of a row.
      table: `table(rows)` returns the rows measured so far as Markdown.
    """

    processes: Callable[[bool], list[list[Key]]]
    measure: Callable[[list[Key], Settings], Iterator[Row]]
    table: Callable[[list[Row]], str]
