"""The whole airbench94 recipe on CIFAR-10 (Keller Jordan 2024, https://arxiv.org/abs/2404.00498).

Command: python -m experiments.train cifar10
Cost: 2.3 hours on two CPU cores; the preset is made for a GPU.
Test accuracy: 90.5% (1 seed, JPEG copy of CIFAR-10). Jordan reports 94.0% on the original data.
"""

from experiments.config import AugmentConfig, Config, DataConfig, OptimizerConfig
from experiments.models import Airbench
from experiments.norms import BatchNorm

CONFIG = Config(
    name="cifar10",
    data=DataConfig("cifar10"),
    augment=AugmentConfig(flip="alternating", shift=2, pad="reflect"),
    model=Airbench(),
    norm=BatchNorm(decay=0.6, epsilon=1e-12, scale=False, unbiased=True),
    optimizer=OptimizerConfig(
        learning_rate=1.5,
        momentum=0.85,
        weight_decay=0.0153 / 11.5,
        norm_bias_factor=64,
        schedule=((0.0, 0.2), (0.23, 1.0), (1.0, 0.07)),
        lookahead=True,
    ),
    epochs=9.9,
    batch_size=1024,
    eval_batch_size=2000,
    precision="bfloat16",
    label_smoothing=0.2,
    views="mirror_shift",
)
