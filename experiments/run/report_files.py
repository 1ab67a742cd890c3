"""Reads and checks the files of a finished run, from which its report is made."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from experiments.run.errors import RunError
from experiments.run.folder import RunFolder
from experiments.run.settings import typed

Content = Mapping[str, Any]

_TEXT, _NUMBER = str | None, float | None

_SUMMARY = {
    **{"preset": str, "classes": tuple[str, ...], "steps_per_epoch": float, "data": _TEXT},
    **dict.fromkeys(("accuracy", "loss", "num_params", "steps", "images_per_second"), _NUMBER),
    "seconds": dict.fromkeys(("training", "evaluating", "compiling"), _NUMBER),
}
_CONFIG = {"model": dict, "data": dict}
_ENVIRONMENT = {"command": str | tuple[str, ...], "versions": dict, "commit": _TEXT}
_DATA = dict.fromkeys(("train_images", "test_images"), tuple[int, int, int, int])
_FLAGS = {"init_from": _TEXT}


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
        _check_evaluations(folder.metrics, test, len(summary["classes"]))
        return cls(
            path=path,
            summary=summary,
            config=read("config.json", _CONFIG),
            environment=read("environment.json", _ENVIRONMENT),
            data=read("data.json", _DATA, *_DATA),
            flags=read("run.json", _FLAGS) if (path / "run.json").exists() else {},
            train=train,
            test=test,
        )


def command(module: str, *arguments: str) -> str:
    """Returns a command line that runs a module of the experiments."""
    return shlex.join(["python", "-m", f"experiments.{module}", *arguments])


def _check_evaluations(path: Path, test: Sequence[Content], classes: int) -> None:
    if not test:
        raise RunError(f"{path} holds no evaluation.")
    # The report shows the last confusion matrix only.
    counts = _checked(path, test[-1], {"confusion": tuple[tuple[int, ...], ...]})
    if [len(row) for row in counts.get("confusion", [])] != [classes] * classes:
        raise _damaged(path, f"the last confusion matrix has not {classes} rows and columns")


def _checked(path: Path, content: Any, kinds: Mapping[str, Any]) -> Any:
    """Returns the content of a file.

    Args:
      path: the file, for errors.
      content: its content.
      kinds: type of each entry that may be there; a dictionary for those of a dictionary.

    Raises:
      RunError: an entry has another type.
    """
    try:
        _check(content, kinds)
    except ValueError as error:
        raise _damaged(path, error) from error
    return content


def _check(values: Any, kinds: Mapping[str, Any], prefix: str = "") -> None:
    typed(values, dict, prefix.rstrip(".") or "an entry")
    for key in kinds.keys() & values.keys():
        if isinstance(kinds[key], dict):
            _check(values[key], kinds[key], f"{prefix}{key}.")
        else:
            typed(values[key], kinds[key], f"{prefix}{key}")


def _damaged(path: Path, reason: object) -> RunError:
    return RunError(
        f"{path} is damaged: {str(reason).rstrip('.')}. Restore it, or start a new run."
    )
