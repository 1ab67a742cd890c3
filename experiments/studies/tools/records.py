"""The stored runs of a study, each one line of `runs.jsonl`, which is found by its setting."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.config import Config
from experiments.run.settings import applicable, changes, flat, from_changes


class Setting(NamedTuple):
    """A run to make.

    Attributes:
      labels: values that vary within the study, by name, for tables and figures.
      config: the whole configuration.
    """

    labels: dict[str, Any]
    config: Config

    @property
    def key(self) -> str:
        """The run's identity."""
        return _key(self.labels, changes(self.config))


class Record(NamedTuple):
    """A finished run.

    Attributes:
      labels: labels of its setting.
      config: settings that differ from the defaults.
      result: measured values.
      seconds: duration of the run with compilation.
      environment: data, versions and hardware. Older versions did not store it.
    """

    labels: dict[str, Any]
    config: dict[str, Any]
    result: dict[str, Any]
    seconds: float
    environment: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """The run's identity."""
        return _key(self.labels, applicable(self.config))

    @property
    def full_config(self) -> Config:
        """All settings of the run."""
        return from_changes(self.config)

    def value(self, name: str) -> Any:
        """Returns a value of the run's configuration: `value("norm.decay")`."""
        return flat(self.full_config)[name]


class Records(list[Record]):
    """Runs that can be selected by their labels."""

    def where(self, **labels: Any) -> "Records":
        """Returns the runs with these labels."""
        return Records(r for r in self if all(r.labels.get(k) == v for k, v in labels.items()))

    def labels(self, name: str) -> list[Any]:
        """Returns the different values of a label, in the order of their first run."""
        return list(dict.fromkeys(r.labels[name] for r in self if name in r.labels))

    def best(self, label: str, result: str) -> "Records":
        """Returns the runs with the best value of a label, that with the highest mean result."""
        choices = [self.where(**{label: value}) for value in self.labels(label)]
        return max(choices, key=lambda runs: runs.values(result).mean(), default=Records())

    def values(self, name: str) -> np.ndarray:
        """Returns a result of each run, `[runs, ...]`, with NaN in place of None."""
        return np.array([r.result[name] for r in self], float)


def load(path: Path) -> Records:
    """Returns all runs in the file, except a last one that was cut short."""
    if not path.exists():
        return Records()
    lines = path.read_text().splitlines(keepends=True)
    return Records(Record(**json.loads(line)) for line in lines if line.endswith("\n"))


def append(path: Path, record: Record) -> None:
    """Adds a run as one line. It replaces a last line that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        entries = {name: value for name, value in record._asdict().items() if value is not None}
        file.write((json.dumps(entries, allow_nan=False) + "\n").encode())


def wanted(records: Iterable[Record], settings: Iterable[Setting]) -> Records:
    """Returns the finished runs of the settings, in the order of the settings."""
    made = {record.key: record for record in records}
    return Records(made[s.key] for s in settings if s.key in made)


def _key(labels, config) -> str:
    return json.dumps([labels, config], sort_keys=True)
