"""Parts of a text in Markdown."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from experiments import tables


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Returns a table whose cells show the given values."""
    return tables.table(head, (map(cell, row) for row in rows))


def pairs(head: Iterable[str], rows: Mapping[str, object]) -> str:
    """Returns a table of names and values."""
    return table(head, rows.items())


def cell(value: object) -> str:
    """Returns a text in Markdown that is shown as the value."""
    text = " ".join(str(value).split())
    text = re.sub(r"([\\`*<>|\[\]&~])", r"\\\1", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def number(value: Any, form: str) -> str:
    """Returns a formatted number, or `unknown` for None."""
    return "unknown" if value is None else format(value, form)


def encodable(text: str) -> str:
    """Returns a text that UTF-8 can encode, with escapes for lone surrogates.

    Python has lone surrogates in names of files that are not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def fenced(language: str, text: str) -> str:
    """Returns a block of code."""
    return f"```{language}\n{text}\n```"
