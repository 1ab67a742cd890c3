"""Names of classes."""

from collections.abc import Iterable
from pathlib import Path

from experiments.data.dataset import DataError


def check_names(place: str | Path, classes: Iterable[str]) -> None:
    """Checks that reports can show the names of classes.

    Args:
      place: where the names are, for errors.
      classes: the names.

    Raises:
      DataError: a name is blank, or holds control characters or half a character.
    """
    for name in classes:
        if not name.strip() or not name.isprintable():
            raise DataError(f"{place}: the class {name!a} has an unreadable name. Rename it.")
