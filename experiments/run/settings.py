"""Configurations as JSON, and their differences."""

import contextlib
import dataclasses
import reprlib
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from experiments.config import Config

OBSOLETE = {"optimizer.whiten_epochs"}
"""Settings that older versions stored, and that had one value."""

_TAGS = ("name", "method")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the configuration as a dictionary that JSON can hold."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """Returns the configuration from the result of `to_dict`, which may have been stored as JSON.

    Settings that are missing, because an older version did not have them, get their defaults.
    Settings of another network or norm than the chosen one, which older versions stored, are left
    out.

    Raises:
      ValueError: a setting is unknown or has a value of another type.
    """
    return _section(values, Config, "")


def variants(kind: Any) -> dict[str, Any]:
    """Returns the dataclasses of a union by their names, such as `small` or `batch`."""
    return {_tag(variant)[1]: variant for variant in get_args(kind)}


def section_variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns the sections with a choice: `{"model": ("name", {"small": Small, ...}), ...}`."""
    hints = get_type_hints(Config)
    unions = {name: hint for name, hint in hints.items() if _is_union_of_dataclasses(hint)}
    return {name: (_tag(get_args(hint)[0])[0], variants(hint)) for name, hint in unions.items()}


def _tag(variant) -> tuple[str, Any]:
    fields = {field.name: field.default for field in dataclasses.fields(variant)}
    name = next(tag for tag in _TAGS if tag in fields)
    return name, fields[name]


def _is_union_of_dataclasses(kind) -> bool:
    union = get_origin(kind) in (Union, types.UnionType)
    return union and all(dataclasses.is_dataclass(option) for option in get_args(kind))


def _section(values, kind, path):
    if not isinstance(values, dict):
        raise ValueError(f"{path.rstrip('.') or 'the configuration'} must be a dictionary.")
    others: set[str] = set()
    if _is_union_of_dataclasses(kind):
        tag, options = _tag(get_args(kind)[0])[0], variants(kind)
        chosen = values.get(tag, next(iter(options)))
        if not isinstance(chosen, str) or chosen not in options:
            raise ValueError(f"{path}{tag} is {chosen!r}; choose one of: {', '.join(options)}.")
        others = {field.name for option in options.values() for field in dataclasses.fields(option)}
        kind = options[chosen]
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    unknown = {f"{path}{key}" for key in values.keys() - known.keys() - others} - OBSOLETE
    if unknown:
        raise ValueError(f"There is no setting {min(unknown)!r}.")
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING
        and field.name not in values
    ]
    if missing:
        raise ValueError(f"The setting {path}{missing[0]} is missing.")
    return kind(**{k: typed(values[k], t, path + k) for k, t in known.items() if k in values})


def typed(value: Any, kind: Any, path: str) -> Any:
    """Returns a value from JSON as a value of a type.

    Args:
      value: the value.
      kind: the type, such as `float`, `tuple[str, ...]` or a dataclass.
      path: name of the value for errors.

    Raises:
      ValueError: the value has another type.
    """
    if dataclasses.is_dataclass(kind) or _is_union_of_dataclasses(kind):
        return _section(value, kind, f"{path}.")
    if get_origin(kind) in (Union, types.UnionType):
        *others, last = (option for option in get_args(kind) if option is not type(None))
        if value is None and type(None) in get_args(kind):
            return None
        for option in others:
            with contextlib.suppress(ValueError):
                return typed(value, option, path)
        return typed(value, last, path)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        inner = get_args(kind)
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(typed(v, t, path) for v, t in zip(value, kinds, strict=True))
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    elif value in get_args(kind) or (isinstance(kind, type) and type(value) is kind):
        return value
    name = kind.__name__ if isinstance(kind, type) else kind
    raise ValueError(f"{path} is {reprlib.repr(value)}, which is no {name}.")


def flat(config: Config) -> dict[str, Any]:
    """Returns the configuration without sections: `{"norm.decay": 0.9, ...}`."""

    def entries(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from entries(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(entries(to_dict(config)))


def changed(config: Config, values: dict[str, Any]) -> Config:
    """Returns the configuration with other values.

    Args:
      config: the configuration.
      values: new values; for a section, a dictionary of its fields. Another network or norm keeps
        those settings of the old one that it has, too.
    """
    new = dict(values)
    choices = section_variants()
    for name, section in values.items():
        if not isinstance(section, dict):
            continue
        old = getattr(config, name)
        if name in choices:
            tag, options = choices[name]
            kind = options[section.get(tag, getattr(old, tag))]
            fields = {field.name for field in dataclasses.fields(kind)} - {tag}
            kept = {k: v for k, v in dataclasses.asdict(old).items() if k in fields}
            new[name] = kind(**kept | section)
        else:
            new[name] = dataclasses.replace(old, **section)
    return dataclasses.replace(config, **new)


def applicable(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the changes, as `changes` does, without those of other networks and norms.

    Older versions stored such settings, which had no effect.
    """
    kept = dict(values)
    for section, (tag, options) in section_variants().items():
        kind = options[values.get(f"{section}.{tag}", next(iter(options)))]
        fields = {f"{section}.{field.name}" for field in dataclasses.fields(kind)}
        kept = {k: v for k, v in kept.items() if k in fields or not k.startswith(f"{section}.")}
    return kept


def from_changes(values: dict[str, Any]) -> Config:
    """Returns a configuration without a name, from the result of `changes`."""
    nested: dict[str, Any] = {}
    for key, value in applicable(values).items():
        section, _, name = key.rpartition(".")
        if section:
            nested.setdefault(section, {})[name] = value
        else:
            nested[key] = value
    return changed(Config(""), nested)


def changes(config: Config) -> dict[str, Any]:
    """Returns the settings that differ from the defaults: `{"norm.decay": 0.99}`.

    The defaults of a section are those of the chosen network or norm.
    """
    first = flat(Config(config.name))
    chosen = flat(Config(config.name, model=type(config.model)(), norm=type(config.norm)()))
    tags = {f"{section}.{tag}" for section, (tag, _) in section_variants().items()}
    default = chosen | {tag: first[tag] for tag in tags}
    return {key: value for key, value in flat(config).items() if value != default[key]}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns a line for each entry that differs: `norm.decay: 0.9 -> 0.99`."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def as_flag(name: str, value: Any) -> str:
    """Returns the flag that gives a setting this value."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        section, _, setting = name.rpartition(".")
        return f"--{name}" if value else f"--{section}.no-{setting}".replace("--.", "--")
    return f"--{name} {_words(value)}"


def _words(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(_words, value))
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.6g}"
    return short if float(short) == value else repr(value)
