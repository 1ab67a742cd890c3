"""Reads and checks the files of a finished run, from which its report is made."""

import reprlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Self

from experiments.run.errors import RunError
from experiments.run.folder import RunFolder

Content = Mapping[str, Any]

_TEXT, _NUMBER = (str, NoneType), (int, float, NoneType)

_SUMMARY = {
    **{"preset": str, "classes": [str], "steps_per_epoch": (int, float), "data": _TEXT},
    **dict.fromkeys(("accuracy", "loss", "num_params", "steps", "images_per_second"), _NUMBER),
    "seconds": dict.fromkeys(("training", "evaluating", "compiling"), _NUMBER),
}
_CONFIG = {"model": {}, "data": {}}
_ENVIRONMENT = {"command": (str, list), "versions": {}, "commit": _TEXT}
_DATA = {"train_images": [int], "test_images": [int]}
_FLAGS = {"init_from": _TEXT}
_TRAIN = {"step": int} | dict.fromkeys(("loss", "accuracy", "learning_rate"), _NUMBER)
_TEST = {"step": int, "drift": {}} | dict.fromkeys(
    ("loss", "accuracy", "accuracy_plain", "accuracy_batch_statistics"), _NUMBER
)
_LAYER = {"mean": _NUMBER, "var": _NUMBER}


@dataclass(frozen=True)
class RunFiles:
    """The contents of the files of a finished run.

    Attributes:
      path: folder of the run.
      summary: content of `summary.json`.
      config: content of `config.json`.
      environment: content of `environment.json`.
      data: content of `data.json`.
      flags: content of `run.json`, which old runs lack.
      train: records of the training steps.
      test: records of the evaluations.
    """

    path: Path
    summary: Content
    config: Content
    environment: Content
    data: Content
    flags: Content
    train: Sequence[Content]
    test: Sequence[Content]

    @classmethod
    def read(cls, folder: RunFolder) -> Self:
        """Returns the contents of the files in a folder.

        Raises:
          RunError: the folder holds no finished run, or a file in it is damaged.
        """
        path = folder.path
        if not (path / "summary.json").exists():
            reason = f"{path} holds no finished run, because {path / 'summary.json'} is missing."
            if (path / "config.json").exists():
                reason += f" Finish it with: {command('train', '--resume', str(path))}"
            raise RunError(reason)

        def read(name, kinds, *needed):
            return _checked(path / name, folder.read(name, *needed), kinds)

        summary = read("summary.json", _SUMMARY, "preset", "classes", "steps_per_epoch")
        if not summary["steps_per_epoch"] > 0:
            raise _damaged(path / "summary.json", "steps_per_epoch is not positive")
        train, test = folder.records("train"), folder.records("test")
        _check_records(folder.metrics, train, test, len(summary["classes"]))
        data = read("data.json", _DATA, *_DATA)
        for name in _DATA:
            if len(data[name]) != 4:
                raise _damaged(path / "data.json", f"{name} has not four numbers")
        return cls(
            path=path,
            summary=summary,
            config=read("config.json", _CONFIG),
            environment=read("environment.json", _ENVIRONMENT),
            data=data,
            flags=read("run.json", _FLAGS) if (path / "run.json").exists() else {},
            train=train,
            test=test,
        )


def command(module: str, *arguments: str) -> str:
    """Returns a command line that runs a module of the experiments."""
    return shlex.join(["python", "-m", f"experiments.{module}", *arguments])


def _check_records(
    path: Path, train: Sequence[Content], test: Sequence[Content], classes: int
) -> None:
    if not test:
        raise RunError(f"{path} holds no evaluation.")
    for record in train:
        _checked(path, record, _TRAIN)
    for record in test:
        _checked(path, record, _TEST)
        for layer in record.get("drift", {}).values():
            _checked(path, layer, _LAYER)
    # The report shows the last confusion matrix only.
    counts = _checked(path, test[-1], {"confusion": [[int]]}).get("confusion", [])
    if [len(row) for row in counts] != [classes] * classes:
        raise _damaged(path, f"the last confusion matrix has not {classes} rows and columns")


def _checked(path: Path, content: Any, kinds: Mapping[str, Any]) -> Any:
    """Returns the content of a file.

    Args:
      path: the file, for errors.
      content: its content.
      kinds: type of each entry that may be there, as `_check` takes it.

    Raises:
      RunError: an entry has another type.
    """
    try:
        _check(content, kinds, "")
    except ValueError as error:
        raise _damaged(path, error) from error
    return content


def _check(value: Any, kind: Any, name: str) -> None:
    """Checks the type of a value from JSON.

    Args:
      value: the value.
      kind: a type or a tuple of types; `[kind]` for a list; `{name: kind}` for a dictionary.
      name: name of the value for errors.

    Raises:
      ValueError: the value has another type.
    """
    if not isinstance(value, type(kind) if isinstance(kind, dict | list) else kind):
        raise ValueError(f"{name or 'an entry'} is {reprlib.repr(value)}, which has another type")
    if isinstance(kind, dict):
        for key in kind.keys() & value.keys():
            _check(value[key], kind[key], f"{name}.{key}".lstrip("."))
    elif isinstance(kind, list):
        for entry in value:
            _check(entry, kind[0], name)


def _damaged(path: Path, reason: object) -> RunError:
    return RunError(f"{path} is damaged: {reason}. Restore it, or start a new run.")
