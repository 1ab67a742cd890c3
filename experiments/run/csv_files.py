"""The metrics of a run as CSV."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.run.atomic import written

TRAIN = ("step", "loss", "accuracy", "learning_rate", "grad_norm")
TEST = ("step", "epoch", "loss", "accuracy", "accuracy_plain", "accuracy_batch_statistics")


def write_csv(path: Path, columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Writes some entries of all records. An entry that a record lacks stays empty."""
    with written(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
