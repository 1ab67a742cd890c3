"""Trains a network: python -m experiments.train [PRESET] [--flags].

Presets: digits (the default), cifar10_small, cifar10, resnet20.

Several processes can train together, on one or several machines, if all can reach the folder:
python -m experiments.train PRESET --output FOLDER --processes N --process I --coordinator HOST:PORT
"""

import sys
from collections.abc import Sequence
from typing import Any

from experiments.checkpoints import Checkpoints
from experiments.cluster import Signals, connected_processes, make_mesh, resume_hint
from experiments.command import Interrupted, Run, RunError, open_folder, parse
from experiments.config import to_dict
from experiments.data import DataError, load
from experiments.programs import Programs
from experiments.run_folder import environment
from experiments.session import Session


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    try:
        run = parse(sys.argv[1:] if arguments is None else list(arguments))
        summary = carry_out(run)
    except (DataError, RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return interrupted.exit_code
    if run.process == 0:
        accuracy, folder = summary["accuracy"], summary["folder"]
        print(f"The test accuracy is {accuracy:.2%}. The report is in {folder}/report.md.")
    return 0


def carry_out(run: Run) -> dict[str, Any]:
    """Trains, evaluates, saves and reports; returns the summary.

    Raises:
      DataError: the data is missing or damaged.
      RunError: the devices or the folder do not fit the run, or the loss is not finite.
      Interrupted: SIGTERM or SIGINT ended the run.
    """
    # Processes wait for each other when they join. So all check the folder before one writes to it.
    folder = open_folder(run)
    with connected_processes(run):
        mesh = make_mesh(run)
        dataset = load(run.config.data, run.data_dir, run.data_variant)
        programs = Programs(run.config, dataset, mesh)
        folder.write("config.json", to_dict(run.config))
        folder.write("environment.json", environment(dataset.variant))
        with resume_hint(run), Checkpoints(folder.path) as checkpoints, Signals() as signals:
            state = checkpoints.restore(programs.shapes("init"), print) if run.resume else None
            state = programs.compiled("init")() if state is None else state
            folder.forget_after(int(state.step))
            return Session(run, folder, dataset, programs, checkpoints, signals).train(state)


if __name__ == "__main__":
    sys.exit(main())
