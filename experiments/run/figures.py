"""The style and the axes of all figures."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from experiments.run.atomic import written

STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "text.parse_math": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "font.size": 10,
    "grid.alpha": 0.3,
}

MOST_TICKS = 8


def percent(axis: Axes) -> None:
    """Labels the vertical axis in percent."""
    axis.yaxis.set_major_formatter(PercentFormatter(1))


def drawable(text: str) -> str:
    """Returns the text in one line, with `?` for each character that the fonts lack.

    Matplotlib would warn of these characters, and fail at lone surrogates.
    """
    families = plt.rcParams["font.family"]
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]

    def is_known(character):
        return any(font.get_char_index(ord(character)) for font in fonts)

    return "".join(c if is_known(c) else "?" for c in " ".join(text.split()))


def save(figure: Figure, path: Path) -> None:
    """Writes the figure to a file and closes it."""
    try:
        with written(path) as partial:
            figure.savefig(partial, format=path.suffix[1:])
    finally:
        plt.close(figure)


def logarithmic(axis: Axes, values: Iterable[float]) -> None:
    """Makes the vertical axis logarithmic, with at least three plain numbers on it.

    It stays linear if the largest value is less than three times the smallest.

    Args:
      axis: axes with curves.
      values: all values of the curves. Those that are not positive numbers are not shown.
    """
    numbers = np.array(list(values), float)
    numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
    if not numbers.size or numbers.max() < 3 * numbers.min():
        return
    margin = (numbers.max() / numbers.min()) ** 0.05
    low, high = numbers.min() / margin, numbers.max() * margin
    axis.set_yscale("log", nonpositive="mask")
    axis.set_ylim(low, high)
    axis.yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def plain(value: float) -> str:
    """Returns a number without an exponent, unless it is very large or very small."""
    if 1e-4 <= abs(value) < 1e6:
        return np.format_float_positional(value, precision=6, trim="-")
    return f"{value:.0e}"


def _ticks(low: float, high: float) -> Sequence[float]:
    """Returns three or more round numbers between two that differ by a factor of 3 or more."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / MOST_TICKS)]
