"""Devices to compile for. GPUs and TPUs may be absent."""

import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

import jax
from jax.experimental import topologies

Target = Literal["h100", "v5e", "cpu"]
TARGETS: tuple[Target, ...] = get_args(Target)

_H100 = Path(__file__).with_name("h100.textproto")
H100_BYTES = int(re.findall(r"device_memory_size: (\d+)", _H100.read_text())[0])
"""The memory of an H100."""
_V5E_SHAPES = {1: (1, 1), 4: (2, 2), 8: (2, 4), 256: (16, 16)}


class MissingCompiler(RuntimeError):
    """The compiler for a target is not installed."""


def devices(target: Target, count: int = 1) -> list[Any]:
    """Returns devices to compile for.

    For "h100" and "v5e" they are descriptions, because the compilers need no such device. To
    compile a program for them, shard its arguments, `jax.ShapeDtypeStruct`, over them.

    Args:
      target: an NVIDIA H100, a TPU v5e or this machine's CPU.
      count: number of devices.

    Raises:
      MissingCompiler: the target's compiler is not installed.
      ValueError: the target is unknown, or does not have this number of devices.
    """
    match target:
        case "h100":
            shape = {"target_config": _H100.read_text(), "topology": f"1x1x{count}"}
            return _described("cuda", "", **shape)
        case "v5e" if count in _V5E_SHAPES:
            width, height = _V5E_SHAPES[count]
            bounds = {"chips_per_host_bounds": (min(width, 2), min(height, 4), 1)}
            # Otherwise libtpu asks the cloud's metadata server about this machine.
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
            return _described("tpu", f"v5e:{width}x{height}", **bounds)
        case "v5e":
            raise ValueError(f"count={count} must be one of {list(_V5E_SHAPES)} for a TPU v5e.")
        case "cpu":
            found = jax.devices("cpu")
            if len(found) < count:
                raise ValueError(
                    f"count={count}, but there are {len(found)} CPU devices: call "
                    f'jax.config.update("jax_num_cpu_devices", {count}) before JAX is used.'
                )
            return found[:count]
        case _:
            raise ValueError(f"target={target!r} must be one of {TARGETS}.")


def _described(platform: str, name: str, **description: Any) -> list[Any]:
    try:
        return list(topologies.get_topology_desc(name, platform=platform, **description).devices)
    except (NotImplementedError, RuntimeError) as error:
        raise MissingCompiler(
            f"Compiling for {platform} is not possible here ({error}). Run "
            '`pip install ".[bench]"`.'
        ) from error
