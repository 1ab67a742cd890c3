"""The way from the training command to the gradient stays short."""

import sys
from pathlib import Path

import flax.linen as nn

import experiments
from experiments import train

EXPERIMENTS = Path(experiments.__file__).parent
WAY = ["train", "config", "learner", "augment", "models/layers", "models/airbench"]
"""Files that one reads from the command to the gradient of airbench94's network.

The folder `run` holds what runs a run, and `data` reads the images. `norms` and `optimizers` stand
for the words norm and optimizer of the configuration.
"""


def files_in_use():
    """Returns the files of the experiments, but `run`, whose functions are on the call stack."""
    frame, found = sys._getframe(), set()
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(EXPERIMENTS):
            found.add(path.relative_to(EXPERIMENTS).with_suffix("").as_posix())
        frame = frame.f_back
    return {name for name in found if not name.startswith("run/")}


def test_from_the_command_to_the_gradient_it_takes_six_files_of_700_lines(tmp_path):
    stacks = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, nn.Conv):
            stacks.append(files_in_use())
        return call(*args, **kwargs)

    flags = ["--epochs", "0.05", "--data.test-size", "8", "--eval-batch-size", "8"]
    with nn.intercept_methods(watch):
        train.main([*flags, "--devices", "1", "--output", str(tmp_path / "run")])
    on_the_way = [stack for stack in stacks if {"train", "learner"} <= stack]
    assert on_the_way
    assert set.union(*on_the_way) - {"models/small", "evaluation"} <= set(WAY)
    lines = [(EXPERIMENTS / f"{name}.py").read_text().count("\n") for name in WAY]
    assert len(WAY) <= 6
    assert sum(lines) <= 700
