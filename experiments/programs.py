"""A learner's functions as compiled programs, with the images as arguments."""

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
    """Compiles a learner's functions when they are first asked for.

    Args:
      config: of the run.
      dataset: its images; they are held by every device.
      mesh: devices, on one axis `data`.

    Attributes:
      learner: the learner, for its numbers.
      seconds: spent on compiling so far.
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
        """Returns the learner's function `name` for arguments such as these."""
        key = (name, *static)
        if key not in self._compiled:
            start = time.perf_counter()
            program = self._jit(name, static).lower(self._images, *arguments).compile()
            self._compiled[key] = partial(program, self._images)
            self.seconds += time.perf_counter() - start
        return self._compiled[key]

    def shapes(self, name: str, *arguments: Any) -> Any:
        """Returns shapes and shardings of what the learner's function `name` returns."""
        return self._jit(name).eval_shape(self._images, *arguments)


def jit_learner(
    config: Config,
    classes: tuple[str, ...],
    mesh: Mesh,
    normalize: Callable[[jax.Array], jax.Array],
    name: str,
    static: tuple[int, ...] = (),
) -> Any:
    """Returns `function(images, *arguments)`, jitted; all that it returns is on every device.

    The images must be arguments: arrays shared by several processes cannot be constants.

    Args:
      config: of the run.
      classes: name of each label.
      mesh: devices, on one axis `data`.
      normalize: `normalize(images) -> x`, the network's input.
      name: which of the learner's functions.
      static: its last arguments.
    """

    def function(images, *arguments):
        dataset = Dataset(*images, classes=classes, variant="")
        learner = make_learner(config, dataset, mesh, normalize)
        return getattr(learner, name)(*arguments, *static)

    donated = (1,) if name == "train" else ()
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(function, out_shardings=everywhere, donate_argnums=donated)
