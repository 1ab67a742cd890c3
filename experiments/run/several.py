"""Several runs by one command: one for each seed and for each value of a setting."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.config import Config
from experiments.run.arithmetic import arithmetic
from experiments.run.atomic import write_text
from experiments.run.command import with_setting
from experiments.run.errors import NotFinite, RunError, complain
from experiments.run.flags import Run
from experiments.run.folder import RunFolder
from experiments.run.plan import Plan, check_folder
from experiments.run.report import is_reported
from experiments.run.results import markdown, read_result
from experiments.run.stored import PARTS, stored_config, stored_flags, stored_run, write_parts


def parts(run: Run) -> list[Run]:
    """Returns the runs that a command makes, often the one that it names.

    Several runs have folders in the folder of the command. Those that were started before are
    resumed.

    Raises:
      RunError: a setting to sweep or its value is not possible, or the folder holds other runs.
    """
    if not _is_several(run):
        return [run]
    _check_folder_of_all(run)
    name, *values = run.sweep or ("",)
    configs = {f"{name}-{v}-".replace("/", "_"): _swept(run, name, v) for v in values}
    if len(set(configs.values())) < len(values):
        raise RunError(
            f"--sweep {' '.join(run.sweep)}: two of the values are the same, or would "
            "have the same folder."
        )
    made = []
    for prefix, config in (configs or {"": run.config}).items():
        for seed in range(config.seed, config.seed + run.seeds):
            folder = run.folder / f"{prefix}seed-{seed}"
            begun = (folder / "config.json").exists()
            devices = stored_flags(folder).get("devices") if begun else None
            made.append(
                dataclasses.replace(
                    run,
                    config=dataclasses.replace(config, seed=seed),
                    output=None if begun else folder,
                    resume=folder if begun else None,
                    whole=run.folder,
                    part=f"{len(made) + 1} of {run.seeds * max(1, len(values))}",
                    devices=run.devices or devices,
                    seeds=1,
                    sweep=(),
                )
            )
    return [dataclasses.replace(part, siblings=_siblings(part, made)) for part in made]


def _siblings(part: Run, made: Sequence[Run]) -> tuple[Path, ...]:
    return tuple(other.folder for other in made if other.config.data == part.config.data)


def check_parts(made: Sequence[Run]) -> None:
    """Checks the runs of each value of a sweep, before the first one starts.

    Raises:
      DataError: the data of a run is missing or damaged.
      RunError: the devices, the data or the folder do not fit a run.
    """
    by_config = {part.config: part for part in reversed(made)}
    if len(by_config) > 1:
        for part in by_config.values():
            with arithmetic(part.config):
                if not _finished(part):
                    Plan.of(part)


def _is_several(run: Run) -> bool:
    return run.seeds > 1 or bool(run.sweep)


def _check_folder_of_all(run: Run) -> None:
    """Checks that a folder holds no run, or some of the runs of this command."""
    if (run.folder / "config.json").exists():
        raise RunError(f"{run.folder} already holds a run. Choose another --output.")
    if run.resume or not (run.folder / PARTS).exists():
        return
    old, init_from = stored_run(run.folder), run.init_from and run.init_from.absolute()
    before = old.config, old.config.seed, old.init_from, old.eval_every
    same = before == (run.config, run.config.seed, init_from, run.eval_every)
    if not (same and old.seeds <= run.seeds and run.sweep[: len(old.sweep)] == old.sweep):
        raise RunError(
            f"{run.folder} holds runs of another command. Continue them with --resume, or choose "
            "another --output."
        )


def _swept(run: Run, name: str, value: str) -> Config:
    try:
        return with_setting(run.config, name, value, run.base)
    except RunError as error:
        raise RunError(f"--sweep {name} {value}: {error}") from error


def carried_out(
    run: Run, made: Sequence[Run], carry_out: Callable[[Run, Callable[[], None]], dict[str, Any]]
) -> list[dict[str, Any] | None]:
    """Carries out the parts of a command that have not ended; returns the summary of each.

    If the loss of one of several parts is not finite, its summary is None, and the next one starts.

    Args:
      run: the run of the command.
      made: its parts.
      carry_out: function that carries out a part, and returns its summary. It calls its second
        argument when the part is checked.
    """

    def summary(part):
        try:
            return _finished(part) or carry_out(part, lambda: store_parts(run))
        except NotFinite as error:
            if not _is_several(run):
                raise
            complain(f"error: {part.folder}: {error}")
            return None

    return [summary(part) for part in made]


def _finished(part: Run) -> dict[str, Any] | None:
    """Returns the summary of a part that ended, or None if the part must still be carried out.

    Raises:
      RunError: the part's folder holds a run with another configuration.
    """
    if part.whole is None or part.resume is None or not is_reported(part.folder):
        return None
    check_folder(part)
    data_dir = part.data_dir and part.data_dir.absolute()
    before = stored_config(part.folder), stored_flags(part.folder).get("data_dir")
    if before != (part.config, data_dir):
        return None  # Its data has moved. Carrying out the part checks and stores it.
    try:
        return RunFolder(part.folder).read("summary.json")
    except RunError:
        return None  # It is damaged, and carrying out the part writes it again.


def store_parts(run: Run) -> None:
    """Writes which runs a command makes, if they are several."""
    if _is_several(run) and jax.process_index() == 0:
        write_parts(run)


def result(run: Run, made: Sequence[Run], summaries: Sequence[dict[str, Any] | None]) -> str:
    """Returns what the command found out: an accuracy, or a table, which it also writes.

    Args:
      run: the run of the command.
      made: its parts.
      summaries: the summary of each part, as `carried_out` returns them.
    """
    first = summaries[0]
    if first and not _is_several(run):
        accuracy, folder = first["accuracy"], first["folder"]
        return f"The test accuracy is {accuracy:.2%}. The report is {folder}/report.html."
    runs = [read_result(RunFolder(part.folder)) for part in made]
    table = markdown(runs, shown=run.sweep[:1])
    path = run.folder / "results.md"
    write_text(path, f"{table}\n")
    return (
        f"{table}\n\nMeans and standard deviations over seeds. This table is also {path}. "
        "The report of a run is in its folder."
    )
