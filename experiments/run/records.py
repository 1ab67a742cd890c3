"""What a line of `metrics.jsonl` holds."""

import math
from typing import Any

_SCORES = ("loss", "accuracy", "accuracy_plain", "accuracy_batch_statistics")
_NOT_NUMBERS = ("kind", "drift", "confusion")


def is_record(value: Any) -> bool:
    """Returns whether a value from JSON is the record of a training step or of an evaluation.

    Both have a `kind`, a `step` and other finite numbers. An evaluation has scores, and may have
    the `drift` of each layer, a dictionary of numbers, which may overflow.
    """
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    scores = {"train": (), "test": _SCORES}.get(str(value.get("kind")))
    layers = value.get("drift", {})
    if scores is None or not value.keys() >= set(scores) or not isinstance(layers, dict):
        return False
    numbers = [number for name, number in value.items() if name not in _NOT_NUMBERS]
    are_finite = all(_is_number(number) and abs(number) < math.inf for number in numbers)
    return are_finite and all(map(_is_layer, layers.values()))


def _is_layer(layer: Any) -> bool:
    return isinstance(layer, dict) and all(map(_is_number, layer.values()))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
