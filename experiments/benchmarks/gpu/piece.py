"""The parts of a piece of the measurements: rows, processes that measure them, and a table."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Key = dict[str, Any]
"""The subject of a row, in values that JSON can hold."""
Row = dict[str, Any]
"""A key and the measured values."""


@dataclass(frozen=True)
class Settings:
    """The settings with which a piece is run.

    Attributes:
      small: whether to run the small version.
      folder: folder of the results, and of files that a stopped piece needs to continue.
      deadline: time at which to stop, in seconds as in `time.time`.
      data_dir: folder with CIFAR-10's binary files. With None they are downloaded.
      data_variant: name that the results give to the data in `data_dir`.
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
