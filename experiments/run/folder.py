"""The files of a run: its configuration, its environment and its results."""

import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from experiments.run.atomic import write_text
from experiments.run.errors import RunError
from experiments.run.records import is_record

WRITER = "writer.json"
"""File that says which process writes to a folder."""


_FILES = frozenset(
    (
        *("config.json", "run.json", "data.json", "environment.json", "summary.json", "parts.json"),
        *("metrics.jsonl", "train.csv", "test.csv", "results.md", "report.md", "report.html"),
        *(WRITER, ".lock", "checkpoints", "tensorboard"),
    )
)
"""Files and folders of a run, or of a command that makes several, but the plots."""


def check_output(path: Path) -> None:
    """Checks that a file can be written without replacing one of a run.

    Raises:
      RunError: it cannot.
    """
    if path.is_dir():
        raise RunError(f"{path} is a folder. Name a file.")
    # Links are followed, as they are when the file is written.
    target = Path(os.path.realpath(path))
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        raise RunError(f"{path} cannot be written, because {above} is no folder. Name another.")
    for folder in target.parents if target.exists() else ():
        is_run = (folder / "config.json").exists() and (folder / "data.json").exists()
        if is_run or (folder / "parts.json").exists():
            name, *below = target.relative_to(folder).parts
            if name in _FILES or (target.suffix == ".png" and not below):
                raise RunError(f"{path} is a file of the run in {folder}. Choose another name.")


class RunFolder:
    """A folder with JSON files, and records in `metrics.jsonl`.

    As a context manager it locks the folder: a second writer gets an error.

    Args:
      path: the folder, which is created when the first file is written.
      writes: whether the methods that write do so. Only one of several processes writes.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self.metrics = path / "metrics.jsonl"
        self._lock = FileLock(path / ".lock")

    def __enter__(self) -> Self:
        """Locks the folder.

        Raises:
          RunError: another process writes to the folder.
        """
        if not self.writes:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"The folder {self.path} cannot be made ({error.strerror}). Choose another."
            ) from error
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise RunError(
                f"{self.path}: {self._writer()} writes to this folder. Wait for its end, or choose "
                "another --output."
            ) from error
        self.write(WRITER, {"process": os.getpid(), "host": socket.gethostname()})
        return self

    def __exit__(self, *_: object) -> None:
        """Unlocks the folder."""
        if self.writes:
            (self.path / WRITER).unlink(missing_ok=True)
            self._lock.release()

    def _writer(self) -> str:
        try:
            writer = self.read(WRITER)
        except RunError:
            return "another process"
        return f"process {writer['process']} on {writer['host']}"

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file, either completely or not at all."""
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / name, json.dumps(content, indent=2) + "\n")

    def read(self, name: str, *keys: str) -> dict[str, Any]:
        """Returns the content of a JSON file.

        Raises:
          RunError: the file is missing or damaged, or one of the keys is missing in it.
        """
        path = self.path / name
        try:
            content = json.loads(path.read_text())
            if not isinstance(content, dict):
                raise ValueError("it must hold a dictionary")
            if missing := sorted(set(keys) - content.keys()):
                raise ValueError(f"{missing[0]} is missing")
            return content
        except (FileNotFoundError, NotADirectoryError) as error:
            if runs := sorted(file.parent.name for file in self.path.glob("*/config.json")):
                raise RunError(
                    f"{self.path} holds several runs. Name one of them, such as "
                    f"{self.path / runs[0]}."
                ) from error
            raise RunError(f"{self.path} holds no run, because {path} is missing.") from error
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"{path} is damaged: {error}. Restore it, or start a new run."
            ) from error

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Adds records to `metrics.jsonl`, one line each."""
        if not self.writes:
            return
        with self.metrics.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Returns the records of one kind, `train` or `test`, or all, without damaged lines."""
        return [r for r in self._lines()[0] if kind is None or r["kind"] == kind]

    def keep_until(self, step: int) -> tuple[int, int]:
        """Deletes the records of later steps, which a resumed run repeats, and damaged lines.

        Returns:
          The number of damaged lines, and the number of training steps whose records are missing.
        """
        if not self.writes:
            return 0, 0
        records, damaged = self._lines()
        kept = [record for record in records if record["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))
        trained = {record["step"] for record in kept if record["kind"] == "train"}
        return damaged, step - len(trained)

    def _lines(self) -> tuple[list[dict[str, Any]], int]:
        """Returns the records that can be read, and the number of the other lines."""
        if not self.metrics.exists():
            return [], 0
        records, damaged = [], 0
        for line in self.metrics.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if is_record(record):
                records.append(record)
            else:
                damaged += 1
        return records, damaged
