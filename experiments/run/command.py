"""Makes a run of a command line."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from experiments.config import Config
from experiments.configs import DESCRIPTIONS, PRESETS
from experiments.data import NAMES, expanded
from experiments.run.checks import check
from experiments.run.command_line import cli
from experiments.run.errors import RunError
from experiments.run.flags import Run
from experiments.run.settings import as_flag, changed, flat, section_variants
from experiments.run.stored import config_in, stored_run


def parse(arguments: Sequence[str]) -> Run:
    """Returns the run that the command line describes.

    Raises:
      RunError: a flag is unknown or has a wrong value, the preset is unknown, the folder to resume
        holds no run, or a flag for several processes is missing.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    preset, flags = (arguments[0], arguments[1:]) if named else (None, arguments)
    if preset is not None and preset not in PRESETS:
        raise RunError(f"There is no preset {preset!r}; choose one of: {', '.join(PRESETS)}.")
    _check_place_of_preset(flags)
    default = _default(preset, flags)
    run = _cli(dataclasses.replace(default, config=_with_variants(default.config, flags)), flags)
    run = dataclasses.replace(run, config=_with_absolute_data(run.config, Path()))
    check(run)
    _check_flags(flags, run, default)
    if run.output or run.resume:
        return run
    time_of_day = datetime.now().strftime("%Y%m%d-%H%M%S")
    return dataclasses.replace(run, output=Path("runs") / f"{run.config.name}-{time_of_day}")


def _check_flags(flags: Sequence[str], run: Run, default: Run) -> None:
    """Checks for flags that are empty, given twice or without effect, and the preset's name."""
    for name in ("output", "resume", "data_dir", "init_from"):
        if _value(flags, name) == "":
            raise RunError(f"--{name.replace('_', '-')} is empty. Give a path, or leave it out.")
    if sum(flag.partition("=")[0] == "--sweep" for flag in flags) > 1:
        raise RunError("--sweep is given twice. Sweep over one setting, or start several commands.")
    if run.sweep and _value(flags, run.sweep[0]) is not None:
        raise RunError(
            f"--{run.sweep[0]} has no effect with a sweep over {run.sweep[0]}. Leave it out."
        )
    if "--sweep" in flags and not run.sweep:
        raise RunError("--sweep needs a setting and its values, such as: norm.decay 0.9 0.99")
    if run.config.name not in PRESETS:
        raise RunError(
            f"The configuration's name {run.config.name!r} must be that of a preset: "
            f"{', '.join(PRESETS)}."
        )
    for name in ("init_from", "seeds", "sweep"):
        if run.resume and getattr(run, name) != getattr(default, name):
            raise RunError(
                f"--{name.replace('_', '-')} has no effect with --resume, which continues the runs "
                "of a folder. Leave it out, or choose another folder with --output."
            )


def with_setting(config: Config, name: str, value: str, base: Path = Path()) -> Config:
    """Returns the configuration with another value, as `--NAME VALUE` sets it.

    Args:
      config: the configuration.
      name: name of the setting.
      value: the value.
      base: folder to which a path of the data is relative.

    Raises:
      RunError: the setting or its value is not possible.
    """
    start = _with_variants(config, [f"--{name}", value])
    settings = flat(start)
    if name.replace("-", "_") not in settings:
        raise RunError(f"{name} is no setting of this run. Choose one of: {', '.join(settings)}.")
    old = settings[name.replace("-", "_")]
    flags = [f"--{name}", *(value.split() if isinstance(old, tuple) else [value])]
    if isinstance(old, bool):
        if value not in ("True", "False"):
            raise RunError("its values are True and False.")
        flags = [as_flag(name, value == "True")]
    run = _cli(Run(start), flags)
    check(run)
    return _with_absolute_data(run.config, base)


def _with_absolute_data(config: Config, base: Path) -> Config:
    """Returns the configuration with an absolute path of the data, which holds in any folder.

    Args:
      config: the configuration.
      base: folder to which a path of the data is relative.
    """
    if config.data.dataset in NAMES:
        return config
    path = base / expanded(config.data.dataset)
    if not path.exists():
        return config
    path = path.resolve() if ".." in path.parts else path.absolute()
    return changed(config, {"data": {"dataset": str(path)}})


def _check_place_of_preset(flags: Sequence[str]) -> None:
    in_sweep = False
    for before, flag in zip(["", *flags], flags, strict=False):
        in_sweep = flag == "--sweep" or (in_sweep and not flag.startswith("--"))
        if flag in PRESETS and not before.startswith("--") and not in_sweep:
            rest = " ".join(other for other in flags if other != flag)
            raise RunError(
                f"The preset {flag} goes first: python -m experiments.train {flag} {rest}"
            )


def _default(preset: str | None, flags: Sequence[str]) -> Run:
    """Returns the run that the flags change."""
    path = _value(flags, "config")
    if path is not None:
        if preset is not None:
            raise RunError(f"Use either the preset {preset} or --config {path}, not both.")
        if _value(flags, "resume") is not None:
            raise RunError(f"--config {path} has no effect with --resume. Leave it out.")
        return Run(config_in(Path(path)))
    resumed = _value(flags, "resume")
    if resumed is None:
        return Run(PRESETS[preset or "digits"])
    stored = stored_run(Path(resumed))
    return stored if preset is None else dataclasses.replace(stored, config=PRESETS[preset])


def _value(flags: Sequence[str], name: str) -> str | None:
    """Returns the value of a flag, or None."""
    forms = {f"--{name}", f"--{name.replace('_', '-')}"}
    for flag, following in zip(flags, [*flags[1:], None], strict=False):
        key, has_value, value = flag.partition("=")
        if key in forms:
            return value if has_value else following
    return None


def _with_variants(config: Config, flags: Sequence[str]) -> Config:
    """Returns the configuration with the network and the norm that the flags name.

    Raises:
      RunError: there is no such network or norm, or a flag belongs to another one.
    """
    for section, (tag, options) in section_variants().items():
        current = getattr(getattr(config, section), tag)
        chosen = _value(flags, f"{section}.{tag}") or current
        if chosen not in options:
            raise RunError(
                f"--{section}.{tag} {chosen}: there is none; choose one of: {', '.join(options)}."
            )
        if chosen != current:
            config = changed(config, {section: {tag: chosen}})
        fields = {
            name: {field.name for field in dataclasses.fields(option)}
            for name, option in options.items()
        }
        for flag in flags:
            prefix, _, setting = flag.partition("=")[0].replace("-", "_").rpartition(".")
            owners = [name for name, names in fields.items() if setting in names]
            if prefix == f"__{section}" and owners and chosen not in owners:
                raise RunError(
                    f"{flag} has no effect with --{section}.{tag} {chosen}. It belongs to: "
                    f"{', '.join(owners)}."
                )
    return config


def _cli(default: Run, flags: Sequence[str]) -> Run:
    presets = f"Trains a network.\n\nPresets, which go first:\n\n{DESCRIPTIONS}"
    return cli(Run, "train [PRESET]", flags, default=default, description=presets)
