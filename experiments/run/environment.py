"""The data, the versions and the hardware that a result comes from."""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import jbn

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(variant: str) -> dict[str, Any]:
    """Returns the data, the versions and the hardware of this process.

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


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of jbn and of installed packages."""
    return {"jbn": jbn.__version__} | {name: version(name) for name in packages}


def _processor() -> str | None:
    """Returns the name of this machine's processor, or None if the system does not tell it."""
    names = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", names.read_text()) if names.exists() else None
    return found[1] if found else platform.processor() or None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
