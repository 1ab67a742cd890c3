"""Writes the report of a run, in Markdown, HTML and CSV, from the files in the run's folder.

Command: python -m experiments.run.report FOLDER
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.run import csv_files
from experiments.run.atomic import write_text
from experiments.run.csv_files import write_csv
from experiments.run.errors import RunError, exit_code
from experiments.run.folder import RunFolder
from experiments.run.page import page
from experiments.run.report_text import command, report_text, title

Records = Sequence[dict[str, Any]]

LAST = "test.csv"
"""The file that is written last."""


def write_report(folder: RunFolder) -> None:
    """Writes `report.md`, `report.html`, the plots and the metrics as CSV into the folder.

    Raises:
      RunError: the folder holds no finished run.
    """
    summary, train, test = _results(folder)
    # Matplotlib takes a second to import, which a run shall not spend before its first step.
    from experiments.run.plots import Plots

    Plots(folder.path, train, test, summary["steps_per_epoch"], summary["classes"]).write()
    config, environment = folder.read("config.json"), folder.read("environment.json")
    text = report_text(folder.path, summary, config, environment, test)
    write_text(folder.path / "report.md", text)
    write_text(folder.path / "report.html", page(title(config, summary), text, folder.path))
    epochs = [{"epoch": r["step"] / summary["steps_per_epoch"]} | r for r in test]
    write_csv(folder.path / "train.csv", csv_files.TRAIN, train)
    write_csv(folder.path / LAST, csv_files.TEST, epochs)


def is_reported(folder: Path) -> bool:
    """Returns whether the report of a run is complete."""
    return (folder / LAST).exists()


def _results(folder: RunFolder) -> tuple[Mapping[str, Any], Records, Records]:
    path = folder.path
    if not (path / "summary.json").exists():
        reason = f"{path} holds no finished run, because {path / 'summary.json'} is missing."
        if (path / "config.json").exists():
            reason += f" Finish it with: {command('train', '--resume', str(path))}"
        raise RunError(reason)
    train, test = folder.records("train"), folder.records("test")
    if not test:
        raise RunError(f"{path / 'metrics.jsonl'} holds no evaluation.")
    return folder.read("summary.json"), train, test


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)

    def carry_out() -> None:
        if len(given) != 1:
            raise RunError("Name one folder: python -m experiments.run.report FOLDER")
        write_report(RunFolder(Path(given[0])))

    return exit_code(carry_out)


if __name__ == "__main__":
    sys.exit(main())
