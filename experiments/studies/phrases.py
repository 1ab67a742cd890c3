"""Phrases for numbers: spreads, differences, and whether a claim held."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Verdict = Literal["held", "did not hold", "unclear"]


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


class Difference(NamedTuple):
    """How much greater the mean of one sample is than that of another.

    Attributes:
      mean: the difference.
      low: lower end of its 95% interval (Welch's, unpaired).
      high: upper end.
      relevant: the smallest difference worth the name.
    """

    mean: float
    low: float
    high: float
    relevant: float

    @property
    def verdict(self) -> Verdict:
        """Whether there is a relevant difference: yes, no, or too little data to tell."""
        if self.low > 0 and self.mean >= self.relevant:
            return "held"
        return "did not hold" if self.high < self.relevant else "unclear"

    def __format__(self, spec: str) -> str:
        return f"{self.mean:+{spec}} (95% interval {self.low:+{spec}} to {self.high:+{spec}})"


def difference(more: ArrayLike, less: ArrayLike, relevant: float) -> Difference:
    """Returns mean(more) - mean(less) with its uncertainty; of single values it is unlimited."""
    more, less = np.asarray(more, float), np.asarray(less, float)
    mean = more.mean() - less.mean()
    if min(len(more), len(less)) < 2:
        return Difference(mean, -np.inf, np.inf, relevant)
    errors = np.array([sample.var(ddof=1) / len(sample) for sample in (more, less)])
    if errors.sum() == 0:
        return Difference(mean, mean, mean, relevant)
    degrees = np.array([len(more), len(less)]) - 1
    freedom = errors.sum() ** 2 / (errors**2 / degrees).sum()
    reach = float(stats.t.ppf(0.975, freedom) * np.sqrt(errors.sum()))
    return Difference(mean, mean - reach, mean + reach, relevant)


def listed(items: Iterable[str]) -> str:
    """Returns the items as in a sentence: a, b and c."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
