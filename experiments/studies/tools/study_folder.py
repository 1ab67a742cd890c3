"""The folder of a study: its runs, their environment, the figure and the answer."""

from pathlib import Path

import matplotlib.pyplot as plt

from experiments.run.atomic import write_text
from experiments.run.figures import STYLE, save
from experiments.run.folder import RunFolder
from experiments.studies.tools import environments, records
from experiments.studies.tools.definition import Scale, Study
from experiments.studies.tools.environments import Environment
from experiments.studies.tools.records import Record, Records, Setting
from experiments.studies.tools.verdicts import RULE


def folder_of(results: Path, name: str, scale: Scale) -> Path:
    """Returns the folder of a study within the folder of all results."""
    return results / scale / name if scale in ("cifar10", "full") else results / name


class StudyFolder:
    """A folder with `runs.jsonl`, `environment.json`, `figure.png` and `answer.md`.

    `environment.json` is the environment of the first run, and of the runs of older versions, which
    did not store it themselves.

    Args:
      path: the folder, which is created when the first file is written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.runs = path / "runs.jsonl"
        self.answer = path / "answer.md"
        self._files = RunFolder(path)

    def begin(self, environment: Environment) -> None:
        """Stores the environment of the first run; does nothing if there is one already."""
        if not (self.path / "environment.json").exists():
            self._files.write("environment.json", environment)

    def append(self, record: Record) -> None:
        """Adds a finished run."""
        records.append(self.runs, record)

    def all_runs(self) -> Records:
        """Returns the finished runs, each with its environment."""
        stored = records.load(self.runs)
        if not stored:
            return stored
        first = environments.of_run(self._environment())
        return Records(r if r.environment else r._replace(environment=first) for r in stored)

    def finished(self, settings: list[Setting]) -> Records:
        """Returns the finished runs of the settings, in the order of the settings."""
        return records.wanted(self.all_runs(), settings)

    def write_answer(self, study: Study, made: Records) -> None:
        """Draws the figure and writes the answer, from the stored runs alone."""
        with plt.rc_context(STYLE):
            save(study.plot(made, _caption(made)), self.path / "figure.png")
        write_text(self.answer, self.text(study, made))

    def text(self, study: Study, made: Records) -> str:
        """Returns the answer in Markdown, with the claim, the rule, the figure and the method."""
        command = self._environment()["command"]
        used, minutes = _environments(made), sum(record.seconds for record in made) / 60
        paragraphs = [
            f"# {study.question}",
            claim(study),
            f"{RULE} {study.threshold}",
            study.answer(made),
            f"![{study.question}](figure.png)",
            study.method(made),
            (
                f"The data are {environments.data(used)}{_sizes(made)}. Each setting has"
                f" {_seeds(made)}, which determine the initial weights and the order of the images."
                " Numbers after ± are standard deviations over seeds."
            ),
            (
                f"The {len(made)} runs of `{command}` took {minutes:.1f} minutes with compilation,"
                f" on {environments.machines(used)}. They used {environments.versions(used)}."
                f" `{command} --output FOLDER` makes all of them again in another folder."
            ),
        ]
        return "\n\n".join(paragraphs) + "\n"

    def _environment(self) -> Environment:
        return self._files.read("environment.json")


def claim(study: Study) -> str:
    """Returns the claim in Markdown."""
    return f"Claim: {study.claim}"


def body(answer: str) -> str:
    """Returns an answer without its first paragraphs: the question, the claim and the rule."""
    return answer.split("\n\n", 3)[3].rstrip()


def _environments(made: Records) -> list[Environment]:
    return [record.environment or {} for record in made]


def _caption(made: Records) -> str:
    """Returns the caption of a figure, which names the data and the number of seeds."""
    return f"{environments.data(_environments(made))}; {_seeds(made)} each"


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
