"""Differences between two samples, and the verdicts on claims about them."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Verdict = Literal["held", "did not hold", "unclear"]

LEVEL = 0.95
"""Confidence of the intervals."""

RULE = (
    "A claim **held** if the difference between the means is at least the threshold, and its"
    f" {LEVEL:.0%} interval (Welch's) lies above 0. It **did not hold** if the whole interval lies"
    " below the threshold. Otherwise it is **unclear**: the runs are too few, or differ too much."
)
"""The rule for a verdict in Markdown. Each study has its own threshold."""


class Difference(NamedTuple):
    """Difference between the means of two samples.

    Attributes:
      mean: the difference.
      low: lower end of its interval (Welch's, unpaired).
      high: upper end of the interval.
      relevant: the threshold, which is the smallest difference that matters.
    """

    mean: float
    low: float
    high: float
    relevant: float

    @property
    def verdict(self) -> Verdict:
        """The answer to the claim that there is a relevant difference, by `RULE`."""
        if self.low > 0 and self.mean >= self.relevant:
            return "held"
        return "did not hold" if self.high < self.relevant else "unclear"


def difference(more: ArrayLike, less: ArrayLike, relevant: float) -> Difference:
    """Returns mean(more) - mean(less) with its interval, which has no limits for one value."""
    more, less = np.asarray(more, float), np.asarray(less, float)
    mean = more.mean() - less.mean()
    if min(len(more), len(less)) < 2:
        return Difference(mean, -np.inf, np.inf, relevant)
    errors = np.array([sample.var(ddof=1) / len(sample) for sample in (more, less)])
    if errors.sum() == 0:
        return Difference(mean, mean, mean, relevant)
    degrees = np.array([len(more), len(less)]) - 1
    freedom = errors.sum() ** 2 / (errors**2 / degrees).sum()
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(errors.sum()))
    return Difference(mean, mean - reach, mean + reach, relevant)
