"""The parts of a study."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure

from experiments.data import Dataset
from experiments.studies.tools.records import Records, Setting

Scale = Literal["smoke", "digits", "cifar10", "full"]
"""Size of a study. All studies together take two minutes with "smoke". The others use
scikit-learn's digits or a subset of CIFAR-10, for two CPU cores, or all of CIFAR-10, for a GPU."""


class Study(NamedTuple):
    """A claim and the way it is measured.

    Attributes:
      name: name on the command line and of the folder.
      question: the question that the figure answers.
      claim: the claim about batch norm in whole sentences.
      threshold: the smallest difference that matters, with its unit, in whole sentences.
      method: `method(records) -> sentences`, a description of the measurement.
      settings: `settings(scale)`, the runs to make. Runs that share a compiled program follow each
        other.
      measure: `measure(setting, dataset) -> result`, makes a run. JSON can hold the result.
      plot: `plot(records, caption) -> figure`.
      answer: `answer(records) -> paragraphs`, with every number computed from the runs.
    """

    name: str
    question: str
    claim: str
    threshold: str
    method: Callable[[Records], str]
    settings: Callable[[Scale], list[Setting]]
    measure: Callable[[Setting, Dataset], dict[str, Any]]
    plot: Callable[[Records, str], Figure]
    answer: Callable[[Records], str]
