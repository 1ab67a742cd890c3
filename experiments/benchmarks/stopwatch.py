"""Times several libraries, which take turns in one process."""

import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

Turn = Callable[[], dict[str, float]]
"""Runs the timed code once; returns the seconds of each part."""


def clock(f: Callable[[], Any], now: Callable[[], float] = time.perf_counter) -> float:
    """Returns the seconds that `f` takes.

    Args:
      f: the function to time.
      now: the clock. Other processes on the machine disturb `time.process_time` less.
    """
    start = now()
    f()
    return now() - start


def interleaved(
    turns: dict[str, Turn], rounds: int, warm_up: int = 2
) -> dict[str, dict[str, list[float]]]:
    """Lets every library take one turn in each round, in random order.

    Args:
      turns: turn of each library. All turns time the same parts.
      rounds: number of rounds.
      warm_up: number of rounds before them that do not count.

    Returns:
      Seconds by part, library and round.
    """
    seconds: dict[str, dict[str, list[float]]] = {}
    order = random.Random(0)
    for number in range(-warm_up, rounds):
        for name in order.sample(list(turns), len(turns)):
            for part, taken in turns[name]().items():
                if number >= 0:
                    seconds.setdefault(part, {n: [] for n in turns})[name].append(taken)
    return seconds


def compared(seconds: dict[str, list[float]], to: str) -> dict[str, dict[str, float]]:
    """Returns each library's median in milliseconds, and the median of its ratios in a round.

    Args:
      seconds: by library and round.
      to: the library to compare with. A library with a ratio of 2 takes twice as long.
    """
    ratios = {
        name: [a / b for a, b in zip(s, seconds[to], strict=True)] for name, s in seconds.items()
    }
    return {
        "median_ms": {name: round(1e3 * median(s), 3) for name, s in seconds.items()},
        f"times_{to}": {name: round(median(r), 3) for name, r in ratios.items()},
    }


def table(rows: list[dict[str, Any]], to: str) -> str:
    """Returns a Markdown table of milliseconds and of medians of ratios.

    Args:
      rows: results of `compared`. The key `what` names the timed part, and `shape` its data, if the
        row has that key.
      to: the library to compare with. The table gives its milliseconds.
    """
    names = [name for name in dict.fromkeys(n for r in rows for n in r["median_ms"]) if name != to]
    lines = [f"| | {to}, ms | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        about = [f"{name} {row[name]}" for name in ("batch", "memory") if name in row]
        shape = [f"{row['what']} {list(row['shape'])}"] if "shape" in row else [row["what"]]
        ratios = (row[f"times_{to}"].get(name) for name in names)
        cells = ["n/a" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        cells = [", ".join(shape + about), f"{row['median_ms'][to]:.2f}", *cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
