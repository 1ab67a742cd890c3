"""The files of a run: its configuration, its environment and its results."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import jbn

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunFolder:
    """A folder with `config.json`, `environment.json`, `metrics.jsonl` and `summary.json`.

    Args:
      path: the folder, which is created when the first file is written.
      writes: whether the methods that write do so. Only one of several processes writes.
    """

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self.metrics = path / "metrics.jsonl"

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Writes a JSON file, either completely or not at all."""
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / f".{name}.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(partial, self.path / name)

    def read(self, name: str) -> dict[str, Any]:
        """Returns the content of a JSON file."""
        return json.loads((self.path / name).read_text())

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Adds records to `metrics.jsonl`, one line each."""
        if not self.writes:
            return
        with self.metrics.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Returns the records of one kind, `train` or `test`.

        If a crash cut a line short, it returns the records before that line.
        """
        records = []
        for line in self.metrics.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return [record for record in records if record["kind"] == kind]

    def forget_after(self, step: int) -> None:
        """Deletes the records of steps after `step`, because a resumed run repeats these steps."""
        if not self.writes:
            return
        self.metrics.touch()
        kept = [r for kind in ("train", "test") for r in self.records(kind) if r["step"] <= step]
        partial = self.path / ".metrics.jsonl.partial"
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(partial, self.metrics)


def environment(variant: str) -> dict[str, Any]:
    """Returns the data, the versions and the hardware that a result comes from.

    Args:
      variant: name of the data.
    """
    devices = jax.devices()
    return {
        "data": variant,
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": versions(*PACKAGES),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _processor() -> str | None:
    """Returns the name of this machine's processor, or None if the system does not tell it."""
    names = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", names.read_text()) if names.exists() else None
    return found[1] if found else platform.processor() or None


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of jbn and of installed packages."""
    return {"jbn": jbn.__version__} | {name: version(name) for name in packages}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
