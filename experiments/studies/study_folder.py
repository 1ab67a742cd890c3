"""The folder of a study: its runs, their environment, the figure and the answer."""

from pathlib import Path

import matplotlib.pyplot as plt

from experiments.report import STYLE, save
from experiments.run_folder import RunFolder
from experiments.studies import records
from experiments.studies.definition import Scale, Study
from experiments.studies.phrases import listed
from experiments.studies.records import Record, Records, Setting


def folder_of(results: Path, name: str, scale: Scale) -> Path:
    """Returns the folder of a study within the folder of all results."""
    return results / scale / name if scale in ("cifar10", "full") else results / name


class StudyFolder:
    """A folder with `runs.jsonl`, `environment.json`, `figure.png` and `answer.md`.

    Args:
      path: the folder, which is created when the first file is written.
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
        """Returns the finished runs of the settings, in the order of the settings."""
        return records.wanted(records.load(self.runs), settings)

    def write_answer(self, study: Study, made: Records) -> None:
        """Draws the figure and writes the answer, from the stored runs alone."""
        environment = self.environment.read("environment.json")
        with plt.rc_context(STYLE):
            save(study.plot(made, caption(made, environment)), self.path / "figure.png")
        self.answer.write_text(text(study, made, environment))


def caption(made: Records, environment: dict) -> str:
    """Returns the caption of a figure, which names the data and the number of seeds."""
    return f"{environment['data']}; {_seeds(made)} each"


def _seeds(made: Records) -> str:
    count = len(made.labels("seed"))
    return f"{count} seed" + "s" * (count != 1)


def _sizes(made: Records) -> str:
    """Says how many images were used, if it was not all of them."""

    def sizes(name):
        return sorted({r.value(f"data.{name}") for r in made} - {None})

    parts = [
        f"{' or '.join(f'{size:,}' for size in sizes(name))} {label}"
        for name, label in (("train_size", "training images"), ("test_size", "test images"))
        if sizes(name)
    ]
    return f", with {' and '.join(parts)}" if parts else ""


def text(study: Study, made: Records, environment: dict) -> str:
    """Returns the answer in Markdown, with the claim, the figure and the method."""
    versions = listed(f"{name} {version}" for name, version in environment["versions"].items())
    minutes = sum(record.seconds for record in made) / 60
    paragraphs = [
        f"# {study.question}",
        claim(study),
        study.answer(made),
        f"![{study.question}](figure.png)",
        study.method(made),
        (
            f"The data are {environment['data']}{_sizes(made)}. Each setting has {_seeds(made)},"
            " which determine the initial weights and the order of the images. Numbers after ± are"
            " standard deviations over seeds."
        ),
        (
            f"The {len(made)} runs of `{environment['command']}` took {minutes:.1f} minutes with"
            f" compilation, on {environment['devices']} x {environment['device']} with"
            f" {environment['cpus']} CPU cores. They used {versions}."
        ),
    ]
    return "\n\n".join(paragraphs) + "\n"


def claim(study: Study) -> str:
    """Returns the claim in Markdown."""
    return f"Claim: {study.claim}"
