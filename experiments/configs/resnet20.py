"""ResNet-20 on CIFAR-10 by the classic recipe (He et al. 2015, https://arxiv.org/abs/1512.03385).

Command: python -m experiments.train resnet20
Cost: 6 minutes an epoch on two CPU cores.
Test accuracy: 51.8% after one epoch (1 seed, JPEG copy of CIFAR-10); 92.2% is published for the
whole recipe.
"""

from experiments.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimizerConfig

CONFIG = Config(
    name="resnet20",
    data=DataConfig("cifar10"),
    augment=AugmentConfig(flip="random", shift=4, pad="zero"),
    model=ModelConfig("resnet20"),
    optimizer=OptimizerConfig(
        schedule=((0.0, 1.0), (0.5, 1.0), (0.5, 0.1), (0.75, 0.1), (0.75, 0.01), (1.0, 0.01)),
    ),
    epochs=200,
    batch_size=128,
    eval_batch_size=1000,
)
