"""Numbers, differences and lists in words."""

from collections.abc import Iterable

from experiments.studies.tools.verdicts import LEVEL, Difference


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
    return f"{word} by {mean:.1f} points ({interval(low, high, '.1f')})"


def interval(low: float, high: float, spec: str) -> str:
    """Returns an interval in words: "95% interval 0.4 to 2.0"."""
    return f"{LEVEL:.0%} interval {low:{spec}} to {high:{spec}}"


def threshold(share: float, what: str) -> str:
    """Returns a threshold in a sentence: "The threshold is 1 point of" what is measured."""
    size = f"{100 * share:g}"
    return f"The threshold is {size} point{'s' * (size != '1')} of {what}."


def listed(items: Iterable[str], word: str = "and") -> str:
    """Returns the items as in a sentence: a, b and c."""
    *first, last = items
    return f"{', '.join(first)} {word} {last}" if first else last
