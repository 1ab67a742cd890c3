"""Results of runs as a small dictionary each, and a table of them."""

import dataclasses
import shlex
from collections.abc import Iterable
from typing import Any

from experiments.config import Config
from experiments.configs import PRESETS
from experiments.run.folder import RunFolder
from experiments.run.settings import as_flag, changed, flat, from_dict, section_variants
from experiments.run.stored import stored_config, stored_fingerprint, stored_flags
from experiments.tables import spread, table

_OUTCOME = ("accuracy", "accuracy_plain", "loss", "steps", "seconds", "images_per_second")


def read_result(folder: RunFolder) -> dict[str, Any]:
    """Returns the configuration, the images' hash, the environment and the outcome of a run.

    The outcome of a run that ended early is its last step.

    Raises:
      RunError: the folder holds no run, or a file in it is damaged.
    """
    environment = folder.read("environment.json")
    environment.pop("command", None)  # It names local folders. Its flags are in the configuration.
    if (folder.path / "summary.json").exists():
        summary = folder.read("summary.json", *_OUTCOME)
        outcome = {name: summary[name] for name in _OUTCOME}
    else:
        steps = [record["step"] for record in folder.records("train")]
        outcome = {"last_step": max(steps, default=0)}
    stored_config(folder.path)  # It raises an error if the configuration is damaged.
    start = stored_flags(folder.path).get("init_from")
    return {
        "config": folder.read("config.json"),
        "init_from": start and str(start),
        "fingerprint": stored_fingerprint(folder.path),
        "environment": environment,
        "outcome": outcome,
    }


def settings_of(run: dict[str, Any]) -> tuple[Config, str | None]:
    """Returns what runs with several seeds share: the configuration and the run they start from."""
    return from_dict(run["config"]), run.get("init_from")


def markdown(runs: Iterable[dict[str, Any]], shown: Iterable[str] = ()) -> str:
    """Returns a Markdown table with a row for each configuration: means and spreads over seeds.

    Args:
      runs: the runs.
      shown: settings that each row shows, even if their values are the preset's.
    """
    shown = [name.replace("-", "_") for name in shown]
    groups: dict[tuple[Config, str | None], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(settings_of(run), []).append(run["outcome"])
    rows = []
    for (config, start), outcomes in groups.items():
        ended = [outcome["last_step"] for outcome in outcomes if "last_step" in outcome]
        done = [outcome for outcome in outcomes if "last_step" not in outcome]
        results = [f"{spread([o['accuracy'] for o in done]):.2%}"] if done else []
        times = [o["seconds"]["training"] for o in done]
        seconds = _seconds(times) if times and None not in times else ""
        if ended:
            results.append(f"{len(ended)} of {len(outcomes)} ended early, after {_steps(ended)}")
        name = _command(config, shown) + (f" --init-from {shlex.quote(start)}" if start else "")
        rows.append([f"`{name}`", str(len(outcomes)), "; ".join(results), seconds])
    return table(["run", "seeds", "test accuracy", "training time, s"], rows)


def _seconds(values: list[float]) -> str:
    return f"{spread(values):{'.0f' if min(values) >= 10 else '.1f'}}"


def _steps(steps: list[int]) -> str:
    *first, last = map(str, steps)
    return f"steps {', '.join(first)} and {last}" if first else f"step {last}"


def _command(config: Config, shown: Iterable[str]) -> str:
    """Returns the preset of a configuration, and its flags without the seed.

    The flags are those in which the run differs from today's preset. So a setting that the preset
    has changed since is a flag, too.

    Args:
      config: the configuration.
      shown: settings that are shown in any case.
    """
    preset = PRESETS.get(config.name, Config(config.name))
    preset = dataclasses.replace(preset, seed=config.seed)
    default = flat(preset)
    for section, (tag, _) in section_variants().items():
        chosen = {section: {tag: getattr(getattr(config, section), tag)}}
        default = flat(changed(preset, chosen)) | default
    values = flat(config).items()
    flags = [
        as_flag(name, value) for name, value in values if name in shown or value != default[name]
    ]
    return " ".join([config.name, *flags])
