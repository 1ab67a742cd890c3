"""The networks, in Flax Linen, one dataclass each, with any norm or without one."""

from experiments.models.airbench import Airbench
from experiments.models.resnet20 import ResNet20
from experiments.models.small import Small
from experiments.models.strided import Strided

ModelConfig = Small | Strided | Airbench | ResNet20
