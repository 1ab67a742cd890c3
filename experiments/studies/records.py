"""What a study's runs measured: a line of `runs.jsonl` each, found again by its settings."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.config import Config, changes, flat


class Setting(NamedTuple):
    """A run to be made.

    Attributes:
      labels: what varies within the study, by name, for tables and figures.
      config: the whole configuration.
    """

    labels: dict[str, Any]
    config: Config

    @property
    def key(self) -> str:
        """The run's identity."""
        return _key(self.labels, changes(self.config))


class Record(NamedTuple):
    """A run that was made.

    Attributes:
      labels: those of its setting.
      config: what its configuration has other than the defaults.
      result: what was measured.
      seconds: how long it took, with compilation.
    """

    labels: dict[str, Any]
    config: dict[str, Any]
    result: dict[str, Any]
    seconds: float

    @property
    def key(self) -> str:
        """The run's identity."""
        return _key(self.labels, self.config)

    def value(self, name: str) -> Any:
        """Returns what the run's configuration has: `value("norm.decay")`."""
        return (flat(Config("")) | self.config)[name]


class Records(list[Record]):
    """Runs, to choose from by their labels."""

    def where(self, **labels: Any) -> "Records":
        """Returns the runs with these labels."""
        return Records(r for r in self if all(r.labels.get(k) == v for k, v in labels.items()))

    def labels(self, name: str) -> list[Any]:
        """Returns the different values of a label, in the order of their first run."""
        return list(dict.fromkeys(r.labels[name] for r in self if name in r.labels))

    def best(self, label: str, result: str) -> "Records":
        """Returns the runs with the value of a label at which the result's mean is the highest."""
        choices = [self.where(**{label: value}) for value in self.labels(label)]
        return max(choices, key=lambda runs: runs.values(result).mean(), default=Records())

    def values(self, name: str) -> np.ndarray:
        """Returns a result of each run, `[runs, ...]`; NaN for what did not happen."""
        return np.array([r.result[name] for r in self], float)


def load(path: Path) -> Records:
    """Returns all runs of the file but a last one that was cut short."""
    if not path.exists():
        return Records()
    lines = path.read_text().splitlines(keepends=True)
    return Records(Record(**json.loads(line)) for line in lines if line.endswith("\n"))


def append(path: Path, record: Record) -> None:
    """Adds a run as one whole line, in the place of a last one that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write((json.dumps(record._asdict(), allow_nan=False) + "\n").encode())


def wanted(records: Iterable[Record], settings: Iterable[Setting]) -> Records:
    """Returns the runs of the settings that were made, in the settings' order."""
    made = {record.key: record for record in records}
    return Records(made[s.key] for s in settings if s.key in made)


def _key(labels, config) -> str:
    return json.dumps([labels, config], sort_keys=True)
