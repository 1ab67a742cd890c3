"""A study's folder: its runs, where they were made, the figure and the answer."""

from pathlib import Path

import matplotlib.pyplot as plt

from experiments.report import STYLE, save
from experiments.run_folder import RunFolder
from experiments.studies import records
from experiments.studies.definition import Scale, Study
from experiments.studies.phrases import listed
from experiments.studies.records import Record, Records, Setting


def folder_of(results: Path, name: str, scale: Scale) -> Path:
    """Returns the folder of a study among the results of all."""
    return results / scale / name if scale in ("cifar10", "full") else results / name


class StudyFolder:
    """A folder with `runs.jsonl`, `environment.json`, `figure.png` and `answer.md`.

    Args:
      path: the folder; made when something is written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.runs = path / "runs.jsonl"
        self.answer = path / "answer.md"
        self.environment = RunFolder(path)

    def append(self, record: Record) -> None:
        """Adds a finished run."""
        records.append(self.runs, record)

    def finished(self, settings: list[Setting]) -> Records:
        """Returns the settings' finished runs, in the settings' order."""
        return records.wanted(records.load(self.runs), settings)

    def write_answer(self, study: Study, made: Records) -> None:
        """Draws the figure and writes the answer, from the stored runs alone."""
        environment = self.environment.read("environment.json")
        with plt.rc_context(STYLE):
            save(study.plot(made, caption(made, environment)), self.path / "figure.png")
        self.answer.write_text(text(study, made, environment))


def caption(made: Records, environment: dict) -> str:
    """Returns what a figure's reader has to know of its runs."""
    return f"{environment['data']}; {_seeds(made)} each"


def _seeds(made: Records) -> str:
    count = len(made.labels("seed"))
    return f"{count} seed" + "s" * (count != 1)


def _sizes(made: Records) -> str:
    """How many of the images were used, where it was not all."""

    def sizes(name):
        return sorted({r.value(f"data.{name}") for r in made} - {None})

    parts = [
        f"{listed(f'{size:,}' for size in sizes(name))} {label}"
        for name, label in (("train_size", "training images"), ("test_size", "test images"))
        if sizes(name)
    ]
    return f", {listed(parts)}" if parts else ""


def text(study: Study, made: Records, environment: dict) -> str:
    """Returns the answer in Markdown, with the claim, the figure and how it was found."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    minutes = sum(record.seconds for record in made) / 60
    machine = f"{environment['devices']} x {environment['device']}, {environment['cpus']} cores"
    return f"""# {study.question}

The claim: {study.claim}

{study.answer(made)}

![{study.question}](figure.png)

How: {study.method(made)} {environment["data"]}{_sizes(made)}; {_seeds(made)} of each setting
(initial weights and order of the images), over which spreads are standard deviations.

{len(made)} runs, {minutes:.1f} minutes with compilation, on {machine}; {versions}.
`{environment["command"]}`
"""
