"""Writes a file either completely or not at all."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from experiments.data.paths import is_special


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yields the path of a partial file, which takes the place of `path` if no error occurs.

    Links are followed. The content is copied into a device, a pipe or a stream such as /dev/stdout.
    """
    stream = _stream(path)
    if stream is not None or is_special(path):
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder, "partial")
            yield partial
            content = partial.read_bytes()
        if stream is not None:
            sys.stdout.flush()
            sys.stderr.flush()
        with open(path if stream is None else os.dup(stream), "wb") as file:
            file.write(content)
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _stream(path: Path) -> int | None:
    """Returns the number of an open file of this process, if the path names one."""
    if path.parent in (Path("/dev/fd"), Path("/proc/self/fd")) and path.name.isdecimal():
        return int(path.name)
    return {"/dev/stdout": 1, "/dev/stderr": 2}.get(str(path))


def write_text(path: Path, text: str) -> None:
    """Writes a text file either completely or not at all."""
    with written(path) as partial:
        partial.write_text(text, encoding="utf-8")
