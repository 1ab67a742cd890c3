"""Spreads over seeds, and tables in Markdown."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Spread(NamedTuple):
    """Mean and standard deviation of n values."""

    mean: float
    std: float
    n: int

    def __format__(self, spec: str) -> str:
        mean = f"{self.mean:{spec}}"
        return mean if self.n == 1 else f"{mean} ± {self.std:{spec}}"


def spread(values: ArrayLike) -> Spread:
    """Returns the spread of values over seeds; the deviation of one value is 0."""
    values = np.asarray(values, float)
    return Spread(values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0, len(values))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
