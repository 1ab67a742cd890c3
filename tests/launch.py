"""Starts Python processes of the repository, and waits for them."""

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """Returns a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(module: str, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Starts `python -m MODULE ARGUMENTS`, with standard output and errors in one stream."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait(processes: Sequence[subprocess.Popen], timeout: float) -> list[str]:
    """Waits for processes; returns the output of each. None is left running."""
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
