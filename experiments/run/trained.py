"""Reads the network of a run, to use it or to train on from it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from jax.typing import ArrayLike

from experiments.learner import Learner, TrainState, final, init
from experiments.placement import Images
from experiments.run.checkpoints import load_checkpoint
from experiments.run.errors import RunError
from experiments.run.folder import RunFolder
from experiments.run.stored import stored_config


def with_dtypes_of_run(command: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Decorates a function of a command's arguments, of which `run` names a run's folder.

    The function has 64-bit types if the run has.
    """

    @functools.wraps(command)
    def wrapped(arguments):
        with jax.enable_x64(stored_config(arguments.run).precision == "float64"):
            return command(arguments)

    return wrapped


def check_dtypes(run: Path) -> None:
    """Checks that JAX has 64-bit types if the run has.

    Raises:
      RunError: it has not.
    """
    x64: Any = jax.config
    if stored_config(run).precision == "float64" and not x64.jax_enable_x64:
        raise RunError(
            f"{run} was trained in float64. Call jax.config.update('jax_enable_x64', True) first."
        )


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
      learner: the learner of its run.
      classes: name of each label.
      image_shape: height, width and channels of its images.
      variables: `params` and `batch_stats`, as Flax has them, and `pixels`, the `mean` and the
        `std` of each channel.
      state: the state of its run.
    """

    learner: Learner
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    variables: dict[str, Any]
    state: TrainState

    @classmethod
    def open(cls, path: Path, checkpoint: Literal["newest", "best"] = "newest") -> Self:
        """Returns the network in a run's folder.

        Raises:
          RunError: the folder holds no run, or no checkpoint that can be read.
        """
        config = stored_config(path)
        data = RunFolder(path).read("data.json", "train_images", "classes", "mean", "std")
        (num_images, *image_shape), classes = data["train_images"], tuple(data["classes"])
        learner = Learner(config, len(classes), num_images)
        device = SingleDeviceSharding(jax.local_devices()[0])
        like = with_sharding(state_shapes(learner, image_shape), device)
        state = load_checkpoint(path, like, checkpoint)
        params, batch_stats = final(state)
        pixels = {name: jnp.asarray(data[name]) for name in ("mean", "std")}
        variables = {"params": params, "batch_stats": batch_stats, "pixels": pixels}
        return cls(learner, classes, tuple(image_shape), variables, state)

    @property
    def step(self) -> int:
        """Number of training steps."""
        return int(self.state.step)

    @property
    def pixels(self) -> Images:
        """The data set of its run, of which only the statistics of the pixels are known."""
        return _only(self.variables["pixels"])

    def apply(self, variables: dict[str, Any], images: ArrayLike) -> jax.Array:
        """Returns the logits `[n, classes]` of uint8 images `[n, height, width, channels]`.

        Raises:
          ValueError: the images have another shape or dtype.
        """
        images = jnp.asarray(images)
        if images.dtype != jnp.uint8 or images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images must be uint8 of shape (n, {str(self.image_shape)[1:]}, not "
                f"{images.dtype} of shape {images.shape}."
            )
        x = self.learner.normalize(_only(variables["pixels"]), images)
        return self.learner.apply(variables["params"], variables["batch_stats"], x, False)[0]


def with_sharding(shapes: TrainState, sharding: Sharding) -> TrainState:
    """Returns shapes and dtypes whose arrays all have this sharding."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def state_shapes(learner: Learner, image_shape: Sequence[int]) -> TrainState:
    """Returns the shapes and dtypes of a learner's state, as `jax.ShapeDtypeStruct`.

    Args:
      learner: the learner.
      image_shape: height, width and channels of its images.
    """

    def struct(*shape, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    images = struct(learner.num_images, *image_shape, dtype=jnp.uint8)
    labels = struct(learner.num_images, dtype=jnp.int32)
    pixels = struct(image_shape[-1])
    data = Images(images, labels, images, labels, pixels, pixels)
    return jax.eval_shape(partial(init, learner), data, np.int32(0))


def _only(pixels: dict[str, Any]) -> Images:
    nothing: Any = (None,) * 4
    return Images(*nothing, **pixels)


def differing(state: TrainState, trained: Trained) -> list[str]:
    """Returns the names of arrays of a state that a trained network does not have in their shapes.

    Raises:
      RunError: these are more than half.
    """
    arrays, found = _arrays(_network(state)), _arrays(trained.variables)
    missing = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in arrays.items()
        if path not in found or found[path].shape != leaf.shape
    ]
    if 2 * len(missing) > len(arrays):
        raise RunError(
            f"--init-from: of the {len(arrays)} arrays of this network, {len(missing)} are missing "
            "there or have other shapes. Choose a run with this network and norm."
        )
    return missing


def taken_over(state: TrainState, trained: Trained, say: Callable[[str], None]) -> TrainState:
    """Returns the first state of a run that starts from a trained network.

    Arrays of another shape, such as the head for other classes, keep their initial values.

    Args:
      state: state before the first step.
      trained: the network to start from.
      say: function that takes a message on the arrays that are left out.

    Raises:
      RunError: the networks have little in common.
    """
    if missing := differing(state, trained):
        say(f"These keep their initial values, because their shapes differ: {', '.join(missing)}.")
    found = _arrays(trained.variables)

    def take(path, leaf):
        other = found.get(path)
        values = leaf if other is None or other.shape != leaf.shape else other
        # Each call makes an own buffer, because training overwrites those of the state.
        return jax.device_put(np.asarray(values).astype(leaf.dtype), leaf.sharding)

    new, slow = (jax.tree.map_with_path(take, _network(state)) for _ in range(2))
    has_slow = state.slow is not None
    return state._replace(**new, slow=(slow["params"], slow["batch_stats"]) if has_slow else None)


def _arrays(tree: Any) -> dict[Any, Any]:
    return dict(jax.tree.leaves_with_path(tree))


def _network(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}
