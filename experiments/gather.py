"""Gathers the results of training runs in one small JSON file, and prints a table of them.

Command: python -m experiments.gather FILE FOLDER...
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.config import differences, from_dict, to_dict
from experiments.configs import PRESETS
from experiments.run_folder import RunFolder
from experiments.studies.phrases import spread, table

_OUTCOME = ("accuracy", "accuracy_plain", "loss", "steps", "seconds", "images_per_second")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    file, *folders = map(Path, arguments)
    runs = [gather(RunFolder(folder)) for folder in folders]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(runs, indent=1) + "\n")
    os.replace(partial, file)
    print(markdown(runs))
    return 0


def gather(folder: RunFolder) -> dict[str, Any]:
    """Returns the configuration, the environment and the outcome of a run.

    The outcome of a run that ended early is its last step.
    """
    environment = folder.read("environment.json")
    del environment["command"]  # It names local folders. Its flags are in the configuration.
    try:
        summary = folder.read("summary.json")
        outcome = {name: summary[name] for name in _OUTCOME}
    except FileNotFoundError:
        outcome = {"last_step": max(record["step"] for record in folder.records("train"))}
    return {"config": folder.read("config.json"), "environment": environment, "outcome": outcome}


def markdown(runs: Iterable[dict[str, Any]]) -> str:
    """Returns a Markdown table with a row for each configuration: means and spreads over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(command(run["config"]), []).append(run["outcome"])
    rows = []
    for name, outcomes in groups.items():
        ended = [o["last_step"] for o in outcomes if "last_step" in o]
        done = [o for o in outcomes if "last_step" not in o]
        results = [f"{spread([o['accuracy'] for o in done]):.2%}"] if done else []
        seconds = f"{spread([o['seconds']['training'] for o in done]):.0f}" if done else ""
        if ended:
            steps = ", ".join(map(str, ended))
            results.append(f"{len(ended)} of {len(outcomes)} ended early, after step {steps}")
        rows.append([f"`{name}`", str(len(outcomes)), "; ".join(results), seconds])
    return table(["run", "seeds", "test accuracy", "training, s"], rows)


def command(config: dict[str, Any]) -> str:
    """Returns the preset and the flags of a configuration, without its seed."""
    preset = to_dict(PRESETS[config["name"]]) | {"seed": config["seed"]}
    flags = []
    for line in differences(preset, to_dict(from_dict(config))):
        name, change = line.split(": ")
        flags.append(f"--{name.replace('_', '-')} {change.split(' -> ')[1]}")
    return " ".join([config["name"], *flags])


if __name__ == "__main__":
    sys.exit(main())
