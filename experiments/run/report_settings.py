"""The settings of a run as tables."""

from collections.abc import Mapping
from typing import Any

from experiments.config import Config
from experiments.configs import PRESETS
from experiments.run.markdown import cell, pairs
from experiments.run.settings import flat, from_dict

Content = Mapping[str, Any]

_NEEDED = {"augment.pad": "augment.shift", "optimizer.nesterov": "optimizer.momentum"}
"""Settings that have an effect only if another one is not zero."""


def settings(stored: Content) -> list[str]:
    """Returns two tables: the settings that differ from the preset, and the others.

    Args:
      stored: content of `config.json`.
    """
    try:
        config = from_dict(dict(stored))
    except ValueError as error:
        return [f"`config.json` cannot be read: {cell(error)}"]
    values = {name: _value(value) for name, value in _effective(flat(config)).items()}
    preset = flat(PRESETS.get(config.name, Config(config.name)))
    changed = {name for name, value in flat(config).items() if value != preset.get(name)}
    first = {name: value for name, value in values.items() if name in changed}
    others = {name: value for name, value in values.items() if name not in changed}
    known = config.name in PRESETS
    rest = f"setting, as in the preset {config.name}" if known else "setting, as by default"
    tables = [pairs((rest, ""), others)]
    return [pairs(("changed setting", ""), first), *tables] if first else tables


def _effective(settings: Content) -> Content:
    """Returns the settings that have an effect."""
    idle = {name for name, needed in _NEEDED.items() if not settings.get(needed)}
    return {k: v for k, v in settings.items() if v is not None and k not in {"name", *idle}}


def _value(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case [[*_], *_]:
            return ", ".join("(" + ", ".join(f"{x:g}" for x in point) + ")" for point in value)
        case [*_]:
            return ", ".join(map(str, value))
    return str(value)
