"""The file of a piece, with its rows and the environment in which all of them were measured."""

from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu.piece import Key, Row
from experiments.run.folder import RunFolder
from experiments.run.settings import differences


class StoredError(Exception):
    """The file holds rows of another environment. The message says what to do."""


class Stored:
    """The rows of a piece in `NAME.json`.

    Each new row writes the file again, either completely or not at all.

    Args:
      folder: folder of the file.
      name: name of the piece.
      environment: environment of the new rows.

    Raises:
      StoredError: the file is from another environment.
    """

    def __init__(self, folder: Path, name: str, environment: dict[str, Any]):
        self._folder, self._file, self._environment = RunFolder(folder), f"{name}.json", environment
        self.rows: list[Row] = []
        path = folder / self._file
        if path.exists():
            content = self._folder.read(self._file)
            if changes := differences(content["environment"], environment):
                raise StoredError(
                    f"{path} was measured in another environment. Move it away, or choose another "
                    "--output. These values changed:\n  " + "\n  ".join(changes)
                )
            self.rows = content["rows"]

    def add(self, row: Row) -> None:
        """Adds a row."""
        self.rows.append(row)
        self._folder.write(self._file, {"environment": self._environment, "rows": self.rows})

    def missing(self, keys: list[Key]) -> list[Key]:
        """Returns the keys without a row."""
        return [key for key in keys if not any(_is_about(row, key) for row in self.rows)]


def _is_about(row: Row, key: Key) -> bool:
    return all(row.get(name) == value for name, value in key.items())
