"""Writes the report of a run, in Markdown, HTML and CSV, from the files in the run's folder.

Command: python -m experiments.run.report FOLDER
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.run import csv_files
from experiments.run.atomic import write_text
from experiments.run.csv_files import write_csv
from experiments.run.errors import RunError, exit_code
from experiments.run.folder import RunFolder
from experiments.run.markdown import encodable
from experiments.run.page import page
from experiments.run.report_files import RunFiles
from experiments.run.report_text import report_text, title

LAST = "test.csv"
"""The file that is written last."""


def write_report(folder: RunFolder) -> None:
    """Writes `report.md`, `report.html`, the plots and the metrics as CSV into the folder.

    Raises:
      RunError: the folder holds no finished run, or a file in it is damaged.
    """
    run = RunFiles.read(folder)
    _prepare_matplotlib()
    # Matplotlib takes a second to import, which a run shall not spend before its first step.
    from experiments.run.plots import Plots

    steps, classes = run.summary["steps_per_epoch"], run.summary["classes"]
    Plots(run.path, run.train, run.test, steps, classes).write()
    text, name = encodable(report_text(run)), encodable(title(run.config, run.summary))
    write_text(run.path / "report.md", text)
    write_text(run.path / "report.html", page(name, text, run.path))
    epochs = [{"epoch": record["step"] / steps} | dict(record) for record in run.test]
    write_csv(run.path / "train.csv", csv_files.TRAIN, run.train)
    write_csv(run.path / LAST, csv_files.TEST, epochs)


def is_reported(folder: Path) -> bool:
    """Returns whether the report of a run is complete."""
    return (folder / LAST).exists()


def _prepare_matplotlib() -> None:
    """Hides what Matplotlib logs about its cache, and sets its backend."""
    # It refuses to be imported if the environment names a backend that it does not know.
    os.environ["MPLBACKEND"] = "agg"
    # Without a writable home, Matplotlib logs two long lines when it is imported. They tell the
    # user to change the system, although the plots are right and only take longer.
    for name in ("matplotlib", "matplotlib.font_manager"):
        logging.getLogger(name).addFilter(_is_not_about_the_cache)


def _is_not_about_the_cache(record: logging.LogRecord) -> bool:
    words = ("cache", "mkdir -p failed", "is not a writable directory")
    return not any(word in str(record.msg) for word in words)


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
