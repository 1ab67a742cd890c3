"""The presets of `python -m experiments.train`, one in each file."""

from experiments.config import Config
from experiments.configs import cifar10, cifar10_small, digits, resnet20

PRESETS: dict[str, Config] = {
    module.CONFIG.name: module.CONFIG for module in (digits, cifar10_small, cifar10, resnet20)
}
