"""The command line: which pieces are measured, for how long, and where the results are stored."""

import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import tyro

from experiments.benchmarks.gpu.hardware import describe
from experiments.benchmarks.gpu.piece import Settings
from experiments.benchmarks.gpu.pieces import PIECES, Name, work
from experiments.benchmarks.gpu.processes import alone
from experiments.benchmarks.gpu.report import report
from experiments.benchmarks.gpu.stored import Stored, StoredError
from experiments.run.folder import RunFolder


@dataclass(frozen=True)
class Arguments:
    """Measures jbn and its peers on a GPU. Finished rows are kept, and only missing rows are made.

    On a CPU it runs a small version of everything, to check that it works.
    """

    only: tuple[Name, ...] = ()
    """Pieces to measure; all by default."""
    minutes: float = 7.0
    """Minutes after which a piece finishes its current row and ends. The same command continues."""
    small: bool = False
    """Run the small version, also on a GPU."""
    output: Path = Path("runs/gpu")
    """Folder of the results, and of files that are needed to continue."""
    data_dir: Path | None = None
    """Folder with CIFAR-10's unpacked binary files; by default they are downloaded and cached."""
    data_variant: str | None = None
    """Name that the results give to the data in --data-dir."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 if a piece failed, else 0."""
    asked = tyro.cli(Arguments, args=arguments, prog="python -m experiments.benchmarks.gpu")
    environment = alone(_cache(asked.output), describe)
    environment["small"] = asked.small or environment["platform"] == "cpu"
    failed = []
    for name in asked.only or PIECES:
        settings = Settings(
            small=environment["small"],
            folder=asked.output,
            deadline=time.time() + 60 * asked.minutes,
            data_dir=asked.data_dir,
            data_variant=asked.data_variant,
        )
        try:
            carry_out(name, settings, environment)
        except StoredError as error:
            print(error, file=sys.stderr)
            failed.append(name)
        except Exception:  # The next piece may work, and the GPU is available now.
            traceback.print_exc()
            failed.append(name)
    report(RunFolder(asked.output))
    if failed:
        print(f"These pieces failed for the reasons above: {', '.join(failed)}.")
    return 1 if failed else 0


def carry_out(name: Name, settings: Settings, environment: dict[str, Any]) -> None:
    """Measures the missing rows of a piece, each list of keys in its own process.

    Raises:
      StoredError: the stored rows are from another environment.
      Exception: any error of a process, whose finished rows are stored.
    """

    def missing(keys):
        return Stored(settings.folder, name, environment).missing(keys)

    processes = PIECES[name].processes(settings.small)
    for keys in processes:
        if missing(keys) and settings.seconds_left > 0:
            alone(_cache(settings.folder), work, name, missing(keys), settings, environment)
    keys = list(chain.from_iterable(processes))
    left = len(missing(keys))
    end = "The same command makes the rest." if left else "The piece is finished."
    print(f"{name}: {len(keys) - left} of {len(keys)} rows are stored. {end}", flush=True)


def _cache(output: Path) -> Path:
    return output / "compiled"
