"""The command: which pieces are measured, for how long, and where results go."""

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
from experiments.run_folder import RunFolder


@dataclass(frozen=True)
class Arguments:
    """Measures jbn and its peers on a GPU; what is finished is kept, and only the rest is run.

    On a CPU it runs a small version of everything, to see that it runs.
    """

    only: tuple[Name, ...] = ()
    """Pieces; all by default."""
    minutes: float = 7.0
    """After so long a piece ends with its current row; the same command goes on with it."""
    small: bool = False
    """The small version, on a GPU, too."""
    output: Path = Path("runs/gpu")
    """Folder of the results, and of what is kept to go on."""
    data_dir: Path | None = None
    """Folder with CIFAR-10's binary files, unpacked; by default they are fetched and cached."""
    data_variant: str | None = None
    """What the results call the data of --data-dir."""


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
        except Exception:  # The next piece may do better, and the card is there now.
            traceback.print_exc()
            failed.append(name)
    report(RunFolder(asked.output))
    if failed:
        print(f"Failed, for the reasons above: {', '.join(failed)}.")
    return 1 if failed else 0


def carry_out(name: Name, settings: Settings, environment: dict[str, Any]) -> None:
    """Measures the missing rows of a piece, each list of keys in a process of its own.

    Raises:
      StoredError: rows are stored of another environment.
      Exception: whatever a process raises; what it had finished is stored.
    """

    def missing(keys):
        return Stored(settings.folder, name, environment).missing(keys)

    processes = PIECES[name].processes(settings.small)
    for keys in processes:
        if missing(keys) and settings.seconds_left > 0:
            alone(_cache(settings.folder), work, name, missing(keys), settings, environment)
    keys = list(chain.from_iterable(processes))
    left = len(missing(keys))
    end = "the same command goes on." if left else "finished."
    print(f"{name}: {len(keys) - left} of {len(keys)} rows are stored; {end}", flush=True)


def _cache(output: Path) -> Path:
    return output / "compiled"
