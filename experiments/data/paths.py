"""Paths as users write them."""

import os
from pathlib import Path

from experiments.data.dataset import DataError


def expanded(path: str | Path) -> Path:
    """Returns the path with the home folder in place of a leading `~` or `~user`.

    Raises:
      DataError: the home folder is not known, or this can be no path.
    """
    if "\0" in str(path):
        raise DataError(f"{path} holds a null character, which no path has.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{path} starts with the home folder of a user that this machine does not know. Write "
            "the whole path, or ./~ if the folder's own name starts with ~."
        ) from error


def is_special(path: Path) -> bool:
    """Returns whether this is a device, a pipe or a socket, which could be read forever."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))
