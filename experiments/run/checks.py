"""Checks a run's settings before anything is written."""

import math
from typing import Any

from experiments.run.errors import RunError
from experiments.run.flags import Run
from experiments.run.settings import flat

_AT_LEAST = {
    **dict.fromkeys(("batch_size", "eval_batch_size", "classes_per_batch"), 1),
    **dict.fromkeys(("data.train_size", "data.test_size", "data.shrink", "data.resize"), 1),
    **dict.fromkeys(("model.width", "model.depth", "model.widths"), 1),
    **dict.fromkeys(("norm.group_size", "norm.channels_per_group", "norm.r_max"), 1),
    **dict.fromkeys(("norm.d_max", "norm.widening_steps", "model.whiten_epochs"), 0),
    **dict.fromkeys(("augment.shift", "optimizer.weight_decay", "seed"), 0),
    **dict.fromkeys(("chunk", "devices", "processes", "seeds"), 1),
    "process": 0,
}
"""The smallest values of settings."""

_ABOVE_ZERO = (
    *("epochs", "data.gain", "norm.epsilon", "optimizer.learning_rate"),
    *("optimizer.norm_bias_factor", "eval_every", "wait"),
)

_SHARES = ("norm.decay", "optimizer.momentum", "label_smoothing")
"""Settings from 0 to 1, without 1."""

_LARGEST_INT, _LARGEST_FLOAT = 2**31 - 1, 3e38
"""What int32 and float32 hold."""

_LONGEST_WAIT = 1e6

_FLAGS = ("chunk", "devices", "processes", "process", "seeds", "eval_every", "wait")


def check(run: Run) -> None:
    """Checks the values of all settings and flags, and whether they contradict each other.

    Raises:
      RunError: a value is not possible or has no effect.
    """
    values = flat(run.config) | {name: getattr(run, name) for name in _FLAGS}
    for name, value in values.items():
        for number in _numbers(value):
            _check_number(name, number)
    _check_schedule(run.config.optimizer.schedule)
    _check_batch(run)
    _check_processes(run)
    if run.config.norm.activates and values.get("model.activation", "relu") != "relu":
        raise RunError(
            f"--model.activation {values['model.activation']} has no effect with --norm.method "
            f"{run.config.norm.method}, which includes its own activation. Leave one out."
        )
    _check_sweep(run.sweep)
    if run.config.seed + run.seeds - 1 > _LARGEST_INT:
        raise RunError(
            f"--seeds {run.seeds}: the seeds from {run.config.seed} on must be less than 2^31."
        )
    if run.resume and run.output:
        raise RunError("--output has no effect with --resume, which continues a run. Leave it out.")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _check_number(name: str, value: float) -> None:
    flag = f"--{name.replace('_', '-')} {value}"
    if isinstance(value, int) and value > _LARGEST_INT:
        raise RunError(f"{flag:.60} must be less than 2^31.")
    if not math.isfinite(value):
        raise RunError(f"{flag} must be finite.")
    if value > _LARGEST_FLOAT:
        raise RunError(f"{flag} must be at most {_LARGEST_FLOAT:g}.")
    if value < _AT_LEAST.get(name, -math.inf):
        raise RunError(f"{flag} must be at least {_AT_LEAST[name]}.")
    if name in _ABOVE_ZERO and value <= 0:
        raise RunError(f"{flag} must be more than 0.")
    if name in _SHARES and not 0 <= value < 1:
        raise RunError(f"{flag} must be at least 0 and less than 1.")
    if name == "wait" and value > _LONGEST_WAIT:
        raise RunError(f"{flag} must be at most {_LONGEST_WAIT:g} seconds.")


def _check_sweep(sweep: tuple[str, ...]) -> None:
    if not sweep:
        return
    name, *values = sweep
    if not values or len(set(values)) < len(values):
        raise RunError(
            f"--sweep {' '.join(sweep)}: give the name of a setting and different values, such as "
            "--sweep norm.decay 0.9 0.99."
        )
    if name in ("seed", "name"):
        raise RunError(f"--sweep {name}: runs with several seeds come from --seeds.")


def _check_schedule(schedule: tuple[tuple[float, float], ...]) -> None:
    shares = [share for share, _ in schedule]
    if not shares or shares != sorted(shares) or shares[0] < 0 or shares[-1] > 1:
        raise RunError(
            f"--optimizer.schedule has the shares {shares}; they must rise from 0 to 1 at most."
        )
    if any(factor < 0 for _, factor in schedule):
        raise RunError("--optimizer.schedule has a negative factor; factors must be at least 0.")
    if all(factor == 0 for _, factor in schedule):
        raise RunError("--optimizer.schedule has no factor above 0, so nothing would be learned.")


def _check_batch(run: Run) -> None:
    config = run.config
    group = getattr(config.norm, "group_size", None)
    if group and config.batch_size % group:
        raise RunError(
            f"--norm.group-size {group} does not divide --batch-size {config.batch_size}."
        )
    if config.classes_per_batch and config.batch_size % config.classes_per_batch:
        raise RunError(
            f"--classes-per-batch {config.classes_per_batch} does not divide --batch-size "
            f"{config.batch_size}."
        )


def _check_processes(run: Run) -> None:
    if run.distributed and (run.processes > 1 or run.process or run.coordinator):
        raise RunError(
            "--distributed finds out the processes itself. Leave out --processes, --process and "
            "--coordinator."
        )
    if not 0 <= run.process < run.processes:
        raise RunError(
            f"--process {run.process} must be a number from 0 to {run.processes - 1}, because "
            f"--processes is {run.processes}."
        )
    if run.is_distributed and not (run.output or run.resume):
        flag = "--distributed" if run.distributed else f"--processes {run.processes}"
        raise RunError(f"{flag}: choose one folder for all with --output.")
    if run.processes == 1:
        if run.coordinator:
            raise RunError(
                f"--coordinator {run.coordinator} has no effect with one process. Add --processes."
            )
        return
    if not run.coordinator:
        raise RunError(
            f"--processes {run.processes}: add --coordinator HOST:PORT, the address of process 0."
        )
    host, _, port = run.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise RunError(f"--coordinator {run.coordinator} must be HOST:PORT.")
