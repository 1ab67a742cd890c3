"""The presets of `python -m experiments.train`, one in each file."""

from experiments.config import Config
from experiments.configs import cifar10, cifar10_small, digits, resnet20

_MODULES = (digits, cifar10_small, cifar10, resnet20)

PRESETS: dict[str, Config] = {module.CONFIG.name: module.CONFIG for module in _MODULES}


def _description(module) -> str:
    first, _, rest = (module.__doc__ or "").partition("\n")  # python -OO removes docstrings.
    cost = rest.partition("Cost: ")[2].partition("\nTest accuracy")[0]
    return f"{module.CONFIG.name}: {first.rstrip('.')}. Cost: {' '.join(cost.split())}"


DESCRIPTIONS = "\n\n".join(map(_description, _MODULES))
"""A paragraph on each preset: what it is and what it costs."""
