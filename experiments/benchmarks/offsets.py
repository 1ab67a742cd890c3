"""Measures the error of the variance against the mean of the data, for jbn and installed peers.

Command: python -m experiments.benchmarks.offsets [--output FILE]
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro

from experiments.benchmarks.layers import DISTRIBUTIONS, installed
from experiments.benchmarks.peers import variance_error
from experiments.run.environment import versions
from experiments.run.folder import RunFolder

RESULTS = Path(__file__).parent / "results" / "offsets.json"
OFFSETS = [1, 2, 2.9, *(float(offset) for offset in np.logspace(0.5, 5, 10))]


@dataclass(frozen=True)
class Arguments:
    """Measures the variance's relative error for means of 1 to 100,000 standard deviations."""

    output: Path = RESULTS
    """JSON file for the results. A plot with the same name is stored beside it."""


def main(arguments: Arguments) -> None:
    """Measures, stores and plots."""
    libraries = installed()
    packages = {DISTRIBUTIONS.get(library, library) for library, _ in libraries.values()}
    errors = {
        name: [variance_error(offset, make) for offset in OFFSETS]
        for name, (_, make) in libraries.items()
    }
    result = {
        "versions": versions("jax", *sorted(packages - {"jbn"})),
        "offsets": OFFSETS,
        "errors": errors,
    }
    picture = arguments.output.with_suffix(".png")
    RunFolder(arguments.output.parent).write(arguments.output.name, result)
    plot(errors, picture)
    print(f"Wrote {arguments.output} and {picture}.")


def plot(errors: dict[str, list[float]], path: Path) -> None:
    """Draws a line for each library. Libraries with nearly equal errors share one line."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    lines: dict[tuple[float, ...], list[str]] = {}
    for name, values in errors.items():
        decades = np.log10(np.maximum(values, 1e-8))
        same = (line for line in lines if np.allclose(line, decades, atol=0.1))
        lines.setdefault(next(same, tuple(decades)), []).append(name)
    for decades, names in lines.items():
        ours = "jbn" in names
        axes.loglog(
            OFFSETS,
            10.0 ** np.array(decades),
            label=", ".join(names),
            linewidth=3 if ours else 1.5,
            zorder=3 if ours else 2,
            marker="o" if ours else ".",
        )
    axes.set_xlabel("mean of the data, in standard deviations")
    axes.set_ylabel("relative error of the variance")
    axes.set_title("Variance of 65,536 float32 rows")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.benchmarks.offsets"))
