"""Writes the metrics of a run as event files, which TensorBoard shows."""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from tensorboardX import RecordWriter
from tensorboardX.proto import event_pb2, summary_pb2

_events: Any = event_pb2  # Its classes are made when it is imported.
_summaries: Any = summary_pb2


class TensorBoard:
    """An event file in the folder `tensorboard` of a run.

    It writes at once, in the caller's thread, so that errors of the disk reach the caller.
    `tensorboardX.SummaryWriter` writes in a thread of its own, which such an error ends silently.

    Args:
      folder: folder of the run.
      first_step: number of steps done before. TensorBoard forgets what an earlier file of the run
        tells about later steps.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        path = folder / "tensorboard"
        path.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(str(path / name))
        self._write(file_version="brain.Event:2")
        self._write(
            step=first_step + 1, session_log=_events.SessionLog(status=_events.SessionLog.START)
        )
        self._writer.flush()

    def __enter__(self) -> Self:
        """Returns the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.close()

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds records of `metrics.jsonl`. Those of kind `test` are on the disk at the return."""
        for record in records:
            values = [
                _summaries.Summary.Value(tag=tag, simple_value=value)
                for tag, value in _scalars(record)
            ]
            self._write(step=record["step"], summary=_summaries.Summary(value=values))
            if record["kind"] == "test":
                self._writer.flush()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.write(_events.Event(wall_time=time.time(), **content).SerializeToString())


def _scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the tag and the value of each number in a record."""
    for name, value in record.items():
        if isinstance(value, int | float) and name != "step":
            yield f"{record['kind']}/{name}", float(value)
    for layer, distances in record.get("drift", {}).items():
        for name, value in distances.items():
            yield f"drift/{name}/{layer}", value
