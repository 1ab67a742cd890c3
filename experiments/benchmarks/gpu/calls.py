"""Times a call by many calls in a row."""

from collections.abc import Callable
from statistics import quantiles
from typing import Any, NamedTuple

import jax

from experiments.benchmarks.stopwatch import clock, compared


class Repeats(NamedTuple):
    """How often something is timed.

    Attributes:
      calls: number of calls in a row. A GPU gets all of them before the host waits for it.
      rounds: number of rounds. In each round every library takes a turn.
    """

    calls: int
    rounds: int


def seconds_a_call(
    call: Callable[[], Any], calls: int, wait: Callable[[Any], Any] = jax.block_until_ready
) -> float:
    """Returns the seconds of a call, as a mean over many calls in a row.

    Args:
      call: the function to time.
      calls: number of calls.
      wait: `wait(result)` takes the result of the last call, and returns when all are done.
    """

    def all_calls():
        result = None
        for _ in range(calls):
            result = call()
        wait(result)

    return clock(all_calls) / calls


def summary(seconds: dict[str, list[float]], to: str) -> dict[str, Any]:
    """Returns quartiles in milliseconds by library, and medians of ratios as `compared` does.

    Args:
      seconds: by library and round.
      to: the library to compare with.
    """
    cuts = {name: quantiles(taken, n=4, method="inclusive") for name, taken in seconds.items()}
    return {
        "quartiles_ms": {
            name: [round(1e3 * cut, 5) for cut in found] for name, found in cuts.items()
        },
        f"times_{to}": compared(seconds, to)[f"times_{to}"],
    }


def median_ms(summarized: dict[str, Any]) -> dict[str, float]:
    """Returns the median of each library from a `summary`."""
    return {name: cuts[1] for name, cuts in summarized["quartiles_ms"].items()}
