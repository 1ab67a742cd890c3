"""Several runs by one command: one for each seed and for each value of a setting."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from experiments.config import Config
from experiments.run.atomic import write_text
from experiments.run.command import with_setting
from experiments.run.errors import RunError
from experiments.run.flags import Run
from experiments.run.folder import RunFolder
from experiments.run.plan import check_folder
from experiments.run.report import is_reported
from experiments.run.results import markdown, read_result
from experiments.run.stored import write_parts


def parts(run: Run) -> list[Run]:
    """Returns the runs that a command makes, often the one that it names.

    Several runs have folders in the folder of the command. Those that were started before are
    resumed.

    Raises:
      RunError: a setting to sweep or its value is not possible, or the folder holds a single run.
    """
    if run.seeds == 1 and not run.sweep:
        return [run]
    if (run.folder / "config.json").exists():
        raise RunError(f"{run.folder} already holds a run. Choose another --output.")
    name, *values = run.sweep or ("",)
    changed = [(f"{name}-{v}-", _swept(run, name, v)) for v in values] or [("", run.config)]
    made = []
    for prefix, config in changed:
        for seed in range(config.seed, config.seed + run.seeds):
            folder = run.folder / f"{prefix}seed-{seed}".replace("/", "_")
            begun = (folder / "config.json").exists()
            made.append(
                dataclasses.replace(
                    run,
                    config=dataclasses.replace(config, seed=seed),
                    output=None if begun else folder,
                    resume=folder if begun else None,
                    whole=run.folder,
                    seeds=1,
                    sweep=(),
                )
            )
    return made


def _swept(run: Run, name: str, value: str) -> Config:
    try:
        return with_setting(run.config, name, value)
    except RunError as error:
        raise RunError(f"--sweep {name} {value}: {error}") from error


def finished(part: Run) -> dict[str, Any] | None:
    """Returns the summary of a part that ended, or None if the part must still be carried out.

    Raises:
      RunError: the part's folder holds a run with another configuration.
    """
    if part.whole is None or part.resume is None or not is_reported(part.folder):
        return None
    check_folder(part)
    try:
        return RunFolder(part.folder).read("summary.json")
    except RunError:
        return None  # It is damaged, and carrying out the part writes it again.


def store_parts(run: Run) -> None:
    """Writes which runs a command makes, if they are several."""
    if (run.seeds > 1 or run.sweep) and jax.process_index() == 0:
        write_parts(run)


def result(run: Run, made: Sequence[Run], summaries: Sequence[dict[str, Any]]) -> str:
    """Returns what the command found out: an accuracy, or a table, which it also writes.

    Args:
      run: the run of the command.
      made: its parts.
      summaries: the summary of each part.
    """
    if len(summaries) == 1:
        accuracy, folder = summaries[0]["accuracy"], summaries[0]["folder"]
        return f"The test accuracy is {accuracy:.2%}. The report is {folder}/report.html."
    runs = [read_result(RunFolder(part.folder)) for part in made]
    table = markdown(runs, shown=run.sweep[:1])
    path = run.folder / "results.md"
    write_text(path, f"{table}\n")
    return f"{table}\n\nMeans and standard deviations over seeds. This table is also {path}."
