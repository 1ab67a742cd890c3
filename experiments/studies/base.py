"""The configuration that the studies start from, and how they change it."""

import dataclasses
from typing import Any

from experiments.config import Config, ModelConfig, OptimizerConfig
from experiments.studies.study import Scale

RATES = (0.02, 0.05, 0.1)
"""Learning rates of which each arm gets its best, where arms are compared; around those at which
`faster`'s nets learned fastest."""


def base(scale: Scale, name: str) -> Config:
    """Returns a small CNN on scikit-learn's digits; in full, a larger one on CIFAR-10.

    The learning rate falls to 0 on a straight line; no weight decay, no augmentation.
    """
    optimizer = OptimizerConfig(0.05, weight_decay=0.0)
    config = Config(name, model=ModelConfig(width=16), optimizer=optimizer)
    if scale == "smoke":
        return change(config, data={"train_size": 128}, model={"width": 4, "depth": 2}, epochs=1.0)
    if scale == "full":
        model = ModelConfig(width=64, depth=8)
        return change(config, data={"dataset": "cifar10"}, model=model, epochs=20.0, batch_size=128)
    return config


def change(config: Config, **fields: Any) -> Config:
    """Returns the configuration with other values; a section's as a dictionary of its fields."""
    return dataclasses.replace(
        config,
        **{
            name: (
                dataclasses.replace(getattr(config, name), **value)
                if isinstance(value, dict)
                else value
            )
            for name, value in fields.items()
        },
    )
