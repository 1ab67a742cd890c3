"""Describes the machine on which the measurements are made."""

import subprocess
from importlib.util import find_spec
from typing import Any

import jax

from experiments.run.environment import environment, versions

_FIELDS = ("name", "driver_version", "memory.total", "power.limit")


def describe() -> dict[str, Any]:
    """Returns the device, driver, memory, versions and commit. The data is named in each row."""
    found = environment(variant="")
    del found["data"], found["command"]
    client: Any = jax.devices()[0].client
    torch = versions("torch") if find_spec("torch") else {}
    return found | {
        "versions": found["versions"] | torch,
        "runtime": client.platform_version,
        "nvidia_smi": _nvidia_smi(),
    }


def _nvidia_smi() -> dict[str, str] | None:
    """Returns what NVIDIA's driver reports of the first GPU, or None if there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return dict(
        zip(_FIELDS, (value.strip() for value in lines.splitlines()[0].split(",")), strict=True)
    )
