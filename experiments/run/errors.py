"""The errors that end a command, and their exit codes."""

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from experiments.data.dataset import DataError, in_one_line


class RunError(Exception):
    """The run cannot start or continue. The message says what to do.

    Args:
      message: the message. Its control characters are escaped.
    """

    def __init__(self, message: str):
        super().__init__(in_one_line(message))


class NotFinite(RunError):
    """The loss or another number of a run is not finite, so the run ends."""


class Interrupted(Exception):
    """A signal ended the run, and the state of the run is saved.

    Args:
      number: number of the signal.
      command: command that resumes the run.
    """

    def __init__(self, number: int, command: str):
        name = signal.Signals(number).name
        super().__init__(f"{name} ended the run, and its state is saved. Resume with: {command}")
        self.exit_code = 128 + number


def exit_code(command: Callable[[], object]) -> int:
    """Runs a command; prints an error as one line, and returns the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # The command was started with this stream closed.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
        return 128 + signal.SIGPIPE
    except (DataError, RunError) as error:
        return _fail(f"error: {error}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"error: {where}{error.strerror or error}", 2)
    except Interrupted as interrupted:
        return _fail(str(interrupted), interrupted.exit_code)
    except KeyboardInterrupt as interrupt:
        return _fail(f"Ctrl-C ended the command. {interrupt}".rstrip(), 128 + signal.SIGINT)
    return 0


def discard(stream: TextIO) -> None:
    """Discards what is printed to an output stream, because what read it has ended."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def complain(message: str) -> None:
    """Prints a line to standard error, if something still reads it."""
    try:
        print(message, file=sys.stderr, flush=True)
    except BrokenPipeError:
        discard(sys.stderr)


def _fail(message: str, code: int) -> int:
    complain(message)
    return code
