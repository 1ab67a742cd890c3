"""Reads the settings of a run from its folder, so that no flag is needed to resume it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.config import Config
from experiments.run.errors import RunError
from experiments.run.flags import Run
from experiments.run.folder import RunFolder
from experiments.run.settings import from_dict, to_dict, typed

PARTS = "parts.json"
"""File that says which runs a folder holds, if a command makes several."""

_FLAGS = {
    **{"data_dir": Path, "data_variant": str, "init_from": Path},
    **{"chunk": int, "eval_every": float, "devices": int},
}
"""Flags that are stored."""


def stored_run(folder: Path) -> Run:
    """Returns the run or the runs in a folder, with the flags of the command that made them.

    Raises:
      RunError: the folder holds no run, or a file in it is damaged.
    """
    if (folder / PARTS).exists():
        kinds = {"config": Config, "seeds": int, "sweep": tuple[str, ...]}
        return Run(**read_typed(folder, PARTS, kinds | _FLAGS | {"base": Path}, needed=kinds))
    return Run(stored_config(folder), **stored_flags(folder))


def stored_flags(folder: Path) -> dict[str, Any]:
    """Returns the flags of the command that made a run.

    Raises:
      RunError: the file that holds them is damaged.
    """
    return read_typed(folder, "run.json", _FLAGS) if (folder / "run.json").exists() else {}


def stored_config(folder: Path) -> Config:
    """Returns the configuration in a run's folder.

    Raises:
      RunError: the folder holds no run, or its configuration is damaged.
    """
    try:
        return from_dict(RunFolder(folder).read("config.json"))
    except ValueError as error:
        raise RunError(f"{folder / 'config.json'} is damaged: {error} Restore it.") from error


def config_in(path: Path) -> Config:
    """Returns the configuration in a file.

    Raises:
      RunError: the file cannot be read or holds something else.
    """
    try:
        if path.is_dir():
            return stored_config(path)
        return from_dict(json.loads(path.read_text()))
    except RunError as error:
        raise RunError(f"--config {path}: {error}") from error
    except OSError as error:
        raise RunError(f"--config {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"--config {path} is no configuration: {error}") from error


def stored_fingerprint(folder: Path) -> str | None:
    """Returns the hash of a run's images, or None if an older version made the run.

    Raises:
      RunError: the file that holds it is damaged.
    """
    if not (folder / "data.json").exists():
        return None
    return read_typed(folder, "data.json", {"fingerprint": str}).get("fingerprint")


def check_images(folder: Path, images: str) -> None:
    """Checks that images are those of a run.

    Args:
      folder: folder of the run.
      images: fingerprint of the images.

    Raises:
      RunError: they are others.
    """
    kinds = {"fingerprint": str, "variant": str}
    stored = read_typed(folder, "data.json", kinds, needed=kinds)
    if stored["fingerprint"] != images:
        raise RunError(
            f"The images are not those of the run in {folder}, which used {stored['variant']}. "
            "Restore its data, or say where it is: with --data-dir for CIFAR, with --resume and "
            "--data.dataset for your own."
        )


def write_flags(run: Run, folder: RunFolder) -> None:
    """Writes `run.json`."""
    folder.write("run.json", _flags(run))


def write_parts(run: Run) -> None:
    """Writes which runs a command makes, so that `--resume` finds them."""
    record = {"config": to_dict(run.config), "seeds": run.seeds, "sweep": run.sweep}
    record["base"] = str(run.base)
    RunFolder(run.folder).write(PARTS, record | _flags(run))


def _flags(run: Run) -> dict[str, Any]:
    values = {name: getattr(run, name) for name in _FLAGS}
    values["devices"] = run.devices or jax.local_device_count()
    return {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in values.items()}


def read_typed(
    folder: Path, name: str, kinds: Mapping[str, Any], needed: Iterable[str] = ()
) -> dict[str, Any]:
    """Returns the values in a JSON file that are not null.

    Args:
      folder: folder of the file.
      name: name of the file.
      kinds: type of each value.
      needed: names of the values that must be there.

    Raises:
      RunError: a value has another type, or one that is needed is missing.
    """
    stored = RunFolder(folder).read(name, *needed)

    def value(key, kind):
        path = kind is Path
        found = typed(stored[key], str if path else kind, key)
        return Path(found) if path else found

    try:
        return {k: value(k, kind) for k, kind in kinds.items() if stored.get(k) is not None}
    except ValueError as error:
        raise RunError(f"{folder / name} is damaged: {error} Restore it.") from error
