"""Numbers in words: spreads, differences and verdicts on claims."""

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
    """Difference between the means of two samples.

    Attributes:
      mean: the difference.
      low: lower end of its 95% interval (Welch's, unpaired).
      high: upper end of the interval.
      relevant: the smallest difference that matters.
    """

    mean: float
    low: float
    high: float
    relevant: float

    @property
    def verdict(self) -> Verdict:
        """The answer to the claim that there is a relevant difference.

        It is "unclear" if the runs are too few, or differ too much, to tell.
        """
        if self.low > 0 and self.mean >= self.relevant:
            return "held"
        return "did not hold" if self.high < self.relevant else "unclear"

    def __format__(self, spec: str) -> str:
        return f"{self.mean:+{spec}} (95% interval {self.low:+{spec}} to {self.high:+{spec}})"


def difference(more: ArrayLike, less: ArrayLike, relevant: float) -> Difference:
    """Returns mean(more) - mean(less) with its 95% interval, which has no limits for one value."""
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


def points(change: Difference, more: str, less: str) -> str:
    """Returns a difference of shares in words: "higher by 1.2 points (95% interval 0.4 to 2.0)".

    Args:
      change: the difference.
      more: word for a positive difference.
      less: word for a negative difference.
    """
    values = [100 * value for value in (change.mean, change.low, change.high)]
    mean, low, high = values if change.mean >= 0 else (-values[0], -values[2], -values[1])
    word = more if change.mean >= 0 else less
    return f"{word} by {mean:.1f} points (95% interval {low:.1f} to {high:.1f})"


def listed(items: Iterable[str], word: str = "and") -> str:
    """Returns the items as in a sentence: a, b and c."""
    *first, last = items
    return f"{', '.join(first)} {word} {last}" if first else last


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
