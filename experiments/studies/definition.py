"""What a study is."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure

from experiments.data import Dataset
from experiments.studies.records import Records, Setting

Scale = Literal["smoke", "digits", "cifar10", "full"]
"""How large: a minute for all studies; scikit-learn's digits or a subset of CIFAR-10, for two CPU
cores; or all of CIFAR-10, for a GPU."""


class Study(NamedTuple):
    """A claim and how it is tried.

    Attributes:
      name: on the command line, and of its folder.
      question: what the figure answers.
      claim: what is said of batch norm, in a sentence.
      method: `method(records) -> sentences`, how it was tried.
      settings: `settings(scale)`, the runs to make, those that share a compiled program in a row.
      measure: `measure(setting, dataset) -> result`, a run; what it returns JSON can hold.
      plot: `plot(records, caption) -> figure`.
      answer: `answer(records) -> paragraphs`, with every number computed from the runs.
    """

    name: str
    question: str
    claim: str
    method: Callable[[Records], str]
    settings: Callable[[Scale], list[Setting]]
    measure: Callable[[Setting, Dataset], dict[str, Any]]
    plot: Callable[[Records, str], Figure]
    answer: Callable[[Records], str]
