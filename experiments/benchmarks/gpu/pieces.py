"""The pieces by name, the most important first, and the function that measures a part of one."""

from typing import Any, Literal

from experiments.benchmarks.gpu import cifar10, norm, resnet20, resnet50, stacks
from experiments.benchmarks.gpu.piece import Key, Piece, Settings
from experiments.benchmarks.gpu.stored import Stored

Name = Literal["norm", "stacks", "resnet50", "cifar10", "resnet20"]
PIECES: dict[Name, Piece] = {
    "norm": norm.PIECE,
    "stacks": stacks.PIECE,
    "resnet50": resnet50.PIECE,
    "cifar10": cifar10.PIECE,
    "resnet20": resnet20.PIECE,
}


def work(name: Name, keys: list[Key], settings: Settings, environment: dict[str, Any]) -> None:
    """Measures and stores rows in this process until the deadline."""
    stored = Stored(settings.folder, name, environment)
    for row in PIECES[name].measure(keys, settings):
        stored.add(row)
        print(name, row, flush=True)
        if settings.seconds_left < 0:
            return
