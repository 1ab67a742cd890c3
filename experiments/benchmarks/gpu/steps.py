"""Measures training steps on a GPU: time, memory as measured, and memory by the compiler."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

from experiments.benchmarks import program_cost
from experiments.benchmarks.gpu.calls import Repeats, median_ms, seconds_a_call, summary
from experiments.benchmarks.gpu.piece import Key, Row
from experiments.benchmarks.stopwatch import interleaved

FORMS = ("jbn", "jbn, in place", "jbn, policy", "flax.linen")
TO = "flax.linen"


class Step:
    """A compiled step with its arguments, which can be repeated.

    Args:
      function: the step.
      arguments: arguments of the function.
      carries: whether the first result becomes the first argument of the next step, and uses its
        memory.
    """

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], carries: bool = False
    ):
        donated = (0,) if carries else ()
        self.compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
        self._arguments, self._carries = arguments, carries

    def __call__(self) -> Any:
        """Takes a step; returns its results."""
        results = self.compiled(*self._arguments)
        if self._carries:
            self._arguments = (results[0], *self._arguments[1:])
        return results


def processes(cells: list[Key]) -> list[list[Key]]:
    """Returns the keys of the rows about each cell, a list for each process.

    One process compiles all programs. Then the memory of each form is measured in a process of its
    own, because a peak never goes down. This process finds its program in the cache, because
    compiling needs memory, too. Finally one process times the forms in turns.
    """
    compiled = [{"what": "compiled", **cell, "form": form} for cell in cells for form in FORMS]
    memory = [key | {"what": "memory"} for key in compiled]
    return [compiled, *([key] for key in memory), [{"what": "time", **cell} for cell in cells]]


def measure(keys: list[Key], make: Callable[[Key, str], Step], repeats: Repeats) -> Iterator[Row]:
    """Yields the rows of `processes`.

    Args:
      keys: keys of the rows.
      make: `make(key, form)` returns the step of a form.
      repeats: how often to time a step.
    """
    for key in keys:
        match key["what"]:
            case "compiled":
                yield key | compiled_bytes(make(key, key["form"]))
            case "memory":
                yield key | peak_bytes(make(key, key["form"]))
            case "time":
                steps = {form: partial(_turn, make(key, form), repeats.calls) for form in FORMS}
                seconds = interleaved(steps, repeats.rounds)["step"]
                yield key | repeats._asdict() | summary(seconds, TO)


def compiled_bytes(step: Step) -> dict[str, int]:
    """Returns the compiler's figures: memory with arguments and results, and bytes moved."""
    program = program_cost.read(step.compiled)
    return {"total_bytes": program.total_bytes, "moved_bytes": program.moved_bytes}


def peak_bytes(step: Callable[[], Any]) -> dict[str, int | None]:
    """Takes two steps; returns the peak of memory in use, or None if the device does not tell it.

    Raises:
      RuntimeError: the peak was reached before the steps.
    """
    before = _most_in_use()
    for _ in range(2):
        jax.block_until_ready(step())
    peak = _most_in_use()
    if before is not None and before == peak:
        raise RuntimeError(
            f"The peak of {peak} bytes was reached before the first step, because this process "
            "compiled the step, which needs memory, too. Run the same command again. The program "
            "is cached now."
        )
    return {"peak_bytes": peak}


def _most_in_use() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _turn(step: Step, calls: int) -> dict[str, float]:
    return {"step": seconds_a_call(step, calls)}


def figures(rows: list[Row], cell: Key) -> dict[str, dict[str, float]]:
    """Returns the values that were measured so far for each form in a cell.

    Returns:
      By form: `ms`, `peak_gb` as measured, and `compiled_gb` by the compiler. A gigabyte is 1e9
      bytes.
    """
    found: dict[str, dict[str, float]] = {form: {} for form in FORMS}
    for row in rows:
        if any(row[name] != value for name, value in cell.items()):
            continue
        if row["what"] == "time":
            for form, values in found.items():
                values["ms"] = median_ms(row)[form]
        elif row["what"] == "compiled":
            found[row["form"]]["compiled_gb"] = row["total_bytes"] / 1e9
        elif row["peak_bytes"] is not None:
            found[row["form"]]["peak_gb"] = row["peak_bytes"] / 1e9
    return found


def text(values: dict[str, float], name: str, form: str) -> str:
    """Returns a value as text, or n/a if there is none."""
    return f"{values[name]:{form}}" if name in values else "n/a"
