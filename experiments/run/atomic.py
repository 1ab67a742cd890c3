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

    Links are followed. The content is copied into a device or a pipe, and into standard output.
    """
    is_output = path == Path("/dev/stdout")
    if is_output or is_special(path):
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder, "partial")
            yield partial
            content = partial.read_bytes()
        if is_output:
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
        else:
            path.write_bytes(content)
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file either completely or not at all."""
    with written(path) as partial:
        partial.write_text(text, encoding="utf-8")
