"""Command lines whose errors take one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from experiments.run.errors import RunError

T = TypeVar("T")


def cli(kind: type[T], command: str, arguments: Sequence[str] | None, **options: Any) -> T:
    """Returns the arguments of a command line.

    Args:
      kind: dataclass of the arguments.
      command: name of the command.
      arguments: the command line; by default that of the process.
      **options: options of `tyro.cli`.

    Raises:
      RunError: an argument is unknown, missing, or has a wrong value.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                kind,
                args=arguments,
                prog=f"python -m experiments.{command}",
                config=(tyro.conf.AvoidSubcommands,),
                **options,
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise RunError(_one_line(printed.getvalue())) from error


def _one_line(box: str) -> str:
    """Returns the first paragraph of an error that tyro has drawn as a box."""
    inside = [line.strip("│ ").strip() for line in box.splitlines() if line.startswith("│")]
    # Where standard output is not UTF-8, rules of dashes separate the title and the paragraphs.
    inside = inside or [line.strip() for line in box.strip().splitlines()[2:]]
    paragraph: list[str] = []
    for line in inside:
        if re.fullmatch("[─-]*", line):
            break
        paragraph.append(line)
    return " ".join(paragraph) or " ".join(box.split())
