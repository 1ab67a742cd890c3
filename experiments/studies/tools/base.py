"""The configuration that the studies start from, its changes, and its description in words."""

from typing import Any

from experiments.config import Config, OptimizerConfig
from experiments.models import Small
from experiments.run.settings import changed
from experiments.studies.tools.definition import Scale
from experiments.studies.tools.phrases import listed
from experiments.studies.tools.records import Records

RATES = (0.02, 0.05, 0.1)
"""Learning rates from which each method gets its best one, if methods are compared. The networks of
`faster` learned fastest at about these rates."""

TEST_IMAGES = 2_000
"""Largest number of test images that most studies use."""
ON_TEST_IMAGES = f"Test accuracy is measured on at most {TEST_IMAGES:,} test images."


def base(scale: Scale, name: str) -> Config:
    """Returns the configuration that a study starts from.

    It is a small CNN on scikit-learn's digits or on a tenth of CIFAR-10, or a larger one on all of
    CIFAR-10. The learning rate falls to 0 on a straight line. There is no weight decay and no
    augmentation.
    """
    optimizer = OptimizerConfig(0.05, weight_decay=0.0)
    config = Config(name, model=Small(width=16), optimizer=optimizer)
    if scale == "smoke":
        return change(config, data={"train_size": 128}, model={"width": 4, "depth": 2}, epochs=1.0)
    if scale == "cifar10":
        subset = {"dataset": "cifar10", "train_size": 5000, "test_size": 1000, "shrink": 2}
        return change(config, data=subset)
    if scale == "full":
        model = Small(width=64, depth=8)
        return change(config, data={"dataset": "cifar10"}, model=model, epochs=20.0, batch_size=128)
    return config


def convolutions(records: Records) -> str:
    """Describes the convolutions of `base`'s network."""
    model = next(m for record in records if isinstance(m := record.full_config.model, Small))
    width, depth = model.width, model.depth
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
    return changed(config, fields)
