"""Compiles the functions of a learner, with the images as arguments."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.augment import normalizer, pixel_statistics
from experiments.config import Config
from experiments.data import Dataset
from experiments.learner import make_learner


class Programs:
    """Compiles each function of a learner when it is first used.

    Args:
      config: configuration of the run.
      dataset: its images. Every device holds all of them.
      mesh: devices on one axis `data`.

    Attributes:
      learner: the learner, for numbers such as `total_steps`.
      seconds: number of seconds spent on compiling so far.
    """

    def __init__(self, config: Config, dataset: Dataset, mesh: Mesh):
        self._images = jax.device_put(dataset[:4], NamedSharding(mesh, PartitionSpec()))
        normalize = normalizer(pixel_statistics(dataset.train_images), config.data.gain)
        self._jit = partial(jit_learner, config, dataset.classes, mesh, normalize)
        placed = Dataset(*self._images, classes=dataset.classes, variant=dataset.variant)
        self.learner = make_learner(config, placed, mesh, normalize)
        self.seconds = 0.0
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def compiled(self, name: str, *arguments: Any, static: tuple[int, ...] = ()) -> Any:
        """Returns the learner's function `name`, compiled for arguments of these shapes."""
        key = (name, *static)
        if key not in self._compiled:
            start = time.perf_counter()
            program = self._jit(name, static).lower(self._images, *arguments).compile()
            self._compiled[key] = partial(program, self._images)
            self.seconds += time.perf_counter() - start
        return self._compiled[key]

    def shapes(self, name: str, *arguments: Any) -> Any:
        """Returns the shapes and shardings of the results of the learner's function `name`."""
        return self._jit(name).eval_shape(self._images, *arguments)


def jit_learner(
    config: Config,
    classes: tuple[str, ...],
    mesh: Mesh,
    normalize: Callable[[jax.Array], jax.Array],
    name: str,
    static: tuple[int, ...] = (),
) -> Any:
    """Returns a function of the learner, jitted, as `function(images, *arguments)`.

    The images are arguments, because arrays that several processes share cannot be constants. Every
    device holds all results.

    Args:
      config: configuration of the run.
      classes: name of each label.
      mesh: devices on one axis `data`.
      normalize: `normalize(images) -> x`, the network's input.
      name: name of the learner's function.
      static: last arguments of the learner's function.
    """

    def function(images, *arguments):
        dataset = Dataset(*images, classes=classes, variant="")
        learner = make_learner(config, dataset, mesh, normalize)
        return getattr(learner, name)(*arguments, *static)

    donated = (1,) if name == "train" else ()
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(function, out_shardings=everywhere, donate_argnums=donated)
