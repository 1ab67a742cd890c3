"""Python processes of the repository, started and waited for."""

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """Returns a port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(module: str, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Starts `python -m MODULE ARGUMENTS`; what it prints and its errors come in one stream."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait(processes: Sequence[subprocess.Popen], timeout: float) -> list[str]:
    """Returns what each printed; none is left running."""
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
