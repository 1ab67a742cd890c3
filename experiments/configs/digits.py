"""A small CNN on scikit-learn's 8x8 digits; needs no download.

Command: python -m experiments.train
Cost: under a minute on two CPU cores, with compilation.
Test accuracy: 99.4% (1 seed).
"""

from experiments.config import AugmentConfig, Config, OptimizerConfig

CONFIG = Config(
    name="digits",
    augment=AugmentConfig(shift=1),
    optimizer=OptimizerConfig(
        learning_rate=0.1, weight_decay=5e-4, schedule=((0.0, 0.2), (0.2, 1.0), (1.0, 0.0))
    ),
    epochs=12,
    batch_size=64,
    eval_batch_size=360,
)
