"""Tries claims about batch norm: python -m experiments.study NAME... [--all] [--report].

Names: faster, smoother, regularises, robust, batch_size, estimates, real_time, not_iid.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import tyro

from experiments.config import changes
from experiments.data import DataError, Dataset, load
from experiments.progress import Display
from experiments.run_folder import environment
from experiments.studies import STUDIES
from experiments.studies.definition import Scale, Study
from experiments.studies.overview import write_overview
from experiments.studies.records import Record
from experiments.studies.study_folder import StudyFolder, folder_of

RESULTS = Path(__file__).parent / "studies" / "results"


@dataclass(frozen=True)
class Arguments:
    """Tries claims about batch norm; what is finished is kept, and only what is missing is run."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Studies to carry out."""
    all: bool = False
    """Carry out all of them."""
    report: bool = False
    """Write one report of all that were carried out, from their stored runs."""
    smoke: bool = False
    """A few steps of each, to see that they run; into a temporary folder."""
    cifar10: bool = False
    """On a subset of CIFAR-10 at half its resolution, sized for a CPU."""
    full: bool = False
    """On all of CIFAR-10, sized for a GPU."""
    output: Path | None = None
    """Folder of the results, by default experiments/studies/results; those on CIFAR-10 have folders
    in it."""
    data_dir: Path | None = None
    """Folder with CIFAR-10's binary files, unpacked; by default they are fetched and cached."""
    data_variant: str | None = None
    """What reports call the data of --data-dir."""


class StudyError(Exception):
    """The studies cannot start; the message says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    try:
        carry_out(tyro.cli(Arguments, args=arguments, prog="python -m experiments.study"))
    except (DataError, StudyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Ended; finished runs are kept, and the same command goes on.", file=sys.stderr)
        return 130
    return 0


def carry_out(arguments: Arguments) -> Path:
    """Carries out studies, writes their answers and the report; returns the results' folder.

    Raises:
      StudyError: there is no such study, or nothing is asked for.
      DataError: the data cannot be had.
    """
    names = list(STUDIES) if arguments.all else list(arguments.names)
    for name in names:
        if name not in STUDIES:
            raise StudyError(f"There is no study {name!r}; choose from: {', '.join(STUDIES)}.")
    flags: tuple[Scale, ...] = ("smoke", "cifar10", "full")
    asked: list[Scale] = [flag for flag in flags if getattr(arguments, flag)]
    if len(asked) > 1:
        raise StudyError(f"Give one of --smoke, --cifar10 and --full, not {len(asked)}.")
    scale: Scale = asked[0] if asked else "digits"
    if not names and not arguments.report:
        raise StudyError(f"Name a study, or --all: {', '.join(STUDIES)}.")
    results = arguments.output or (RESULTS if scale != "smoke" else _temporary())
    images = lru_cache(8)(lambda data: load(data, arguments.data_dir, arguments.data_variant))
    for name in names:
        _carry_out(STUDIES[name], scale, StudyFolder(folder_of(results, name, scale)), images)
    if arguments.report:
        write_overview(results)
    print(f"Results are in {results}.")
    return results


def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="jbn-studies-"))


def _carry_out(study: Study, scale: Scale, folder: StudyFolder, images) -> None:
    settings = study.settings(scale)
    finished = {record.key for record in folder.finished(settings)}
    missing = [setting for setting in settings if setting.key not in finished]
    print(f"{study.name}: {len(missing)} of {len(settings)} runs to make.", flush=True)
    flag = "" if scale == "digits" else f" --{scale}"
    command = f"python -m experiments.study {study.name}{flag}"
    with Display(len(settings), len(finished), unit=f"{study.name} run") as display:
        for number, setting in enumerate(missing, len(finished) + 1):
            dataset: Dataset = images(setting.config.data)
            if setting is missing[0]:
                folder.environment.write(
                    "environment.json", environment(dataset.variant) | {"command": command}
                )
            start = time.perf_counter()
            result = study.measure(setting, dataset)
            seconds = round(time.perf_counter() - start, 2)
            folder.append(Record(setting.labels, changes(setting.config), result, seconds))
            labels = ", ".join(f"{name} {value}" for name, value in setting.labels.items())
            display.advance(number, f"{labels}: {seconds} s")
    folder.write_answer(study, folder.finished(settings))


if __name__ == "__main__":
    sys.exit(main())
