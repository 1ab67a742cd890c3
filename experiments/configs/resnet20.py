"""ResNet-20 on CIFAR-10 as published (He et al. 2015, https://arxiv.org/abs/1512.03385).

Command: python -m experiments.train resnet20
Cost: 6 minutes an epoch on two CPU cores, for 164 epochs.
Test accuracy: 51.8% after one epoch with Nesterov momentum (1 seed, JPEG copy of CIFAR-10). For the
whole recipe, He et al. report 91.25%, and
https://github.com/akamaster/pytorch_resnet_cifar10 reports 91.73% in 200 epochs.
"""

from experiments.config import AugmentConfig, Config, DataConfig, OptimizerConfig
from experiments.models import ResNet20
from experiments.norms import BatchNorm

_STEPS, _STEPS_PER_EPOCH = 64_000, 50_000 // 128

CONFIG = Config(
    name="resnet20",
    data=DataConfig("cifar10"),
    augment=AugmentConfig(flip="random", shift=4, pad="zero"),
    model=ResNet20(),
    norm=BatchNorm(unbiased=True),
    optimizer=OptimizerConfig(
        nesterov=False,
        # The rate falls at steps 32,000 and 48,000.
        schedule=((0.0, 1.0), (0.5, 1.0), (0.5, 0.1), (0.75, 0.1), (0.75, 0.01), (1.0, 0.01)),
    ),
    epochs=_STEPS / _STEPS_PER_EPOCH,
    batch_size=128,
    eval_batch_size=1000,
)
