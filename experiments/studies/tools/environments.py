"""The environments of runs in words: their data, versions and hardware."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from experiments.studies.tools.phrases import listed

Environment = dict[str, Any]

_KEYS = (
    *("data", "versions", "device", "devices", "cpus", "processor"),
    *("commit", "uncommitted_changes"),
)


def of_run(environment: Environment) -> Environment:
    """Returns the entries of an environment that a run stores."""
    return {key: environment.get(key) for key in _KEYS}


def data(environments: Iterable[Environment]) -> str:
    """Returns the names of the data."""
    return _counted(each["data"] for each in environments)


def machines(environments: Iterable[Environment]) -> str:
    """Returns the devices and the processors."""
    return _counted(map(_machine, environments))


def versions(environments: Iterable[Environment]) -> str:
    """Returns the versions of the packages: "jbn 0.1.0 and jax 0.10.2"."""
    each = [environment["versions"] for environment in environments]
    names = dict.fromkeys(name for versions in each for name in versions)
    return listed(f"{name} {_counted(v.get(name, 'unknown') for v in each)}" for name in names)


def _machine(environment: Environment) -> str:
    text = f"{environment['devices']} x {environment['device']}"
    text += f" with {environment['cpus']} CPU cores"
    return f"{text} ({environment['processor']})" if environment["processor"] else text


def _counted(values: Iterable[str]) -> str:
    """Returns the different values, with the number of runs of each if there are several."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return listed(f"{value} ({n} run{'s' * (n != 1)})" for value, n in counts.items())
