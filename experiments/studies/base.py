"""The configuration that the studies start from, its changes, and its description in words."""

import dataclasses
from typing import Any

from experiments.config import Config, ModelConfig, OptimizerConfig
from experiments.studies.definition import Scale
from experiments.studies.phrases import listed
from experiments.studies.records import Records

RATES = (0.02, 0.05, 0.1)
"""Learning rates from which each method gets its best one, if methods are compared. The networks of
`faster` learned fastest at about these rates."""


def base(scale: Scale, name: str) -> Config:
    """Returns the configuration that a study starts from.

    It is a small CNN on scikit-learn's digits or on a tenth of CIFAR-10, or a larger one on all of
    CIFAR-10. The learning rate falls to 0 on a straight line. There is no weight decay and no
    augmentation.
    """
    optimizer = OptimizerConfig(0.05, weight_decay=0.0)
    config = Config(name, model=ModelConfig(width=16), optimizer=optimizer)
    if scale == "smoke":
        return change(config, data={"train_size": 128}, model={"width": 4, "depth": 2}, epochs=1.0)
    if scale == "cifar10":
        subset = {"dataset": "cifar10", "train_size": 5000, "test_size": 1000, "shrink": 2}
        return change(config, data=subset)
    if scale == "full":
        model = ModelConfig(width=64, depth=8)
        return change(config, data={"dataset": "cifar10"}, model=model, epochs=20.0, batch_size=128)
    return config


def convolutions(records: Records) -> str:
    """Describes the convolutions of `base`'s network."""
    width, depth = (records[0].value(f"model.{name}") for name in ("width", "depth"))
    channels = [width * (1 if index < depth // 2 else 2) for index in range(depth)]
    return f"{depth} convolutions of {listed(map(str, channels))} channels"


def best_rate(records: Records, each: str) -> str:
    """Describes the learning rates, and the choice among them.

    Args:
      records: all runs of a study.
      each: name of the groups of runs that have their own best rate.
    """
    rates = listed((f"{rate:g}" for rate in records.labels("rate")), "or")
    return (
        f"The learning rate falls to 0 from {rates}. For {each}, we report the rate with the best"
        " test accuracy."
    )


def change(config: Config, **fields: Any) -> Config:
    """Returns the configuration with other values.

    Args:
      config: the configuration.
      **fields: new values; for a section, a dictionary of its fields.
    """
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
