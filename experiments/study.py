"""Measures claims about batch norm: python -m experiments.study NAME... [--all] [--report].

Names: faster, smoother, regularises, robust, batch_size, small_batches, estimates, real_time,
not_iid.
"""

import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import tyro

from experiments.config import DataConfig
from experiments.data import Dataset, load
from experiments.run.command_line import cli
from experiments.run.environment import environment
from experiments.run.errors import Interrupted, RunError, exit_code
from experiments.run.progress import Display
from experiments.run.settings import changes
from experiments.studies import STUDIES
from experiments.studies.tools.definition import Scale, Study
from experiments.studies.tools.environments import of_run
from experiments.studies.tools.overview import write_overview
from experiments.studies.tools.records import Record
from experiments.studies.tools.study_folder import StudyFolder, folder_of

RESULTS = Path(__file__).parent / "studies" / "results"
"""Folder of the results that the documentation shows."""


@dataclass(frozen=True)
class Arguments:
    """Measures claims about batch norm. Finished runs are kept, and only missing runs are made."""

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="NAME...", help=f"Studies to run: {', '.join(STUDIES)}."),
    ] = ()
    all: bool = False
    """Run all studies."""
    report: bool = False
    """Write one report of all studies that have answers in the folder."""
    smoke: bool = False
    """Run a few steps of each study in a temporary folder, to check that it works."""
    cifar10: bool = False
    """Use a subset of CIFAR-10 at half its resolution. This is meant for a CPU."""
    full: bool = False
    """Use all of CIFAR-10. This is meant for a GPU."""
    output: Path | None = None
    """Folder of the results of all studies; by default runs/studies."""
    data_dir: Path | None = None
    """Folder or archive with CIFAR-10 or CIFAR-100; by default they are downloaded and cached."""
    data_variant: str | None = None
    """Name that reports give to the data in --data-dir."""

    @property
    def scale(self) -> Scale:
        """The size of the studies.

        Raises:
          RunError: there is more than one.
        """
        flags: tuple[Scale, ...] = ("smoke", "cifar10", "full")
        asked: list[Scale] = [flag for flag in flags if getattr(self, flag)]
        if len(asked) > 1:
            raise RunError(f"Use only one of --smoke, --cifar10 and --full, not {len(asked)}.")
        return asked[0] if asked else "digits"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)

    def command():
        try:
            carry_out(cli(Arguments, "study", words))
        except KeyboardInterrupt:
            again = shlex.join(["python", "-m", "experiments.study", *words])
            raise Interrupted(signal.SIGINT, again) from None

    return exit_code(command)


def carry_out(arguments: Arguments) -> Path:
    """Runs studies, and writes their answers and the report; returns the folder of the results.

    Raises:
      RunError: no study is named, a study is unknown, or a flag does not fit another one.
      DataError: the data is missing or damaged.
    """
    names = list(STUDIES) if arguments.all else list(arguments.names)
    for name in names:
        if name not in STUDIES:
            raise RunError(f"There is no study {name!r}; choose from: {', '.join(STUDIES)}.")
    scale = arguments.scale
    if not names and not arguments.report:
        raise RunError(f"Name a study, or use --all. The studies are: {', '.join(STUDIES)}.")
    if arguments.data_dir and scale not in ("cifar10", "full"):
        raise RunError("--data-dir holds CIFAR-10. Add --cifar10 or --full, or leave it out.")
    results = arguments.output or (_temporary() if scale == "smoke" else Path("runs/studies"))
    images = lru_cache(8)(lambda data: load(data, arguments.data_dir, arguments.data_variant))
    for name in names:
        _carry_out(STUDIES[name], scale, StudyFolder(folder_of(results, name, scale)), images)
    if arguments.report:
        write_overview(results, STUDIES.values())
    print(f"Results are in {results}.")
    return results


def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="jbn-studies-"))


def _carry_out(
    study: Study, scale: Scale, folder: StudyFolder, images: Callable[[DataConfig], Dataset]
) -> None:
    settings = study.settings(scale)
    finished = {record.key for record in folder.finished(settings)}
    missing = [setting for setting in settings if setting.key not in finished]
    print(f"{study.name}: {len(missing)} of {len(settings)} runs to make.", flush=True)
    flag = "" if scale == "digits" else f" --{scale}"
    command = f"python -m experiments.study {study.name}{flag}"
    surroundings = lru_cache(environment)
    with Display(len(settings), len(finished), unit=f"{study.name} run") as display:
        for number, setting in enumerate(missing, len(finished) + 1):
            dataset = images(setting.config.data)
            here = surroundings(dataset.variant)
            folder.begin(here | {"command": command})
            start = time.perf_counter()
            result = study.measure(setting, dataset)
            seconds = round(time.perf_counter() - start, 2)
            config = changes(setting.config)
            folder.append(Record(setting.labels, config, result, seconds, of_run(here)))
            labels = ", ".join(f"{name} {value}" for name, value in setting.labels.items())
            display.advance(number, f"{labels}: {seconds} s")
    folder.write_answer(study, folder.finished(settings))


if __name__ == "__main__":
    sys.exit(main())
