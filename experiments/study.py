"""Measures claims about batch norm: python -m experiments.study NAME... [--all] [--report].

Names: faster, smoother, regularises, robust, batch_size, small_batches, estimates, real_time,
not_iid.
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
    """Measures claims about batch norm. Finished runs are kept, and only missing runs are made."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Studies to run."""
    all: bool = False
    """Run all studies."""
    report: bool = False
    """Write one report of all studies that have stored answers."""
    smoke: bool = False
    """Run a few steps of each study in a temporary folder, to check that it works."""
    cifar10: bool = False
    """Use a subset of CIFAR-10 at half its resolution. This is meant for a CPU."""
    full: bool = False
    """Use all of CIFAR-10. This is meant for a GPU."""
    output: Path | None = None
    """Folder of the results, also of those on CIFAR-10; by default experiments/studies/results."""
    data_dir: Path | None = None
    """Folder with CIFAR-10's unpacked binary files; by default they are downloaded and cached."""
    data_variant: str | None = None
    """Name that reports give to the data in --data-dir."""


class StudyError(Exception):
    """The studies cannot start. The message says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    try:
        carry_out(tyro.cli(Arguments, args=arguments, prog="python -m experiments.study"))
    except (DataError, StudyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "Ctrl-C ended the study. Finished runs are kept, and the same command makes the rest.",
            file=sys.stderr,
        )
        return 130
    return 0


def carry_out(arguments: Arguments) -> Path:
    """Runs studies, and writes their answers and the report; returns the folder of the results.

    Raises:
      StudyError: no study is named, a study is unknown, or two flags contradict each other.
      DataError: the data is missing or damaged.
    """
    names = list(STUDIES) if arguments.all else list(arguments.names)
    for name in names:
        if name not in STUDIES:
            raise StudyError(f"There is no study {name!r}; choose from: {', '.join(STUDIES)}.")
    flags: tuple[Scale, ...] = ("smoke", "cifar10", "full")
    asked: list[Scale] = [flag for flag in flags if getattr(arguments, flag)]
    if len(asked) > 1:
        raise StudyError(f"Use only one of --smoke, --cifar10 and --full, not {len(asked)}.")
    scale: Scale = asked[0] if asked else "digits"
    if not names and not arguments.report:
        raise StudyError(f"Name a study, or use --all. The studies are: {', '.join(STUDIES)}.")
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
    print(f"{study.name}: {len(missing)} of {len(settings)} runs are missing.", flush=True)
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
