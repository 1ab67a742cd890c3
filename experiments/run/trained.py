"""Reads the network of a run, to use it or to train on from it."""

import dataclasses
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
from experiments.run.processes import local_devices
from experiments.run.stored import read_typed, stored_config


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
        kinds = {
            **{"train_images": tuple[int, int, int, int], "classes": tuple[str, ...]},
            **{"mean": tuple[float, ...], "std": tuple[float, ...]},
        }
        data = read_typed(path, "data.json", kinds, needed=kinds)
        (num_images, *image_shape), classes = data["train_images"], data["classes"]
        if not len(data["mean"]) == len(data["std"]) == image_shape[-1]:
            raise RunError(
                f"{path / 'data.json'} is damaged: mean and std need a number for each channel."
            )
        learner = Learner(config, len(classes), num_images)
        device = SingleDeviceSharding(local_devices()[0])
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


def differing(state: TrainState, trained: Trained, classes: Sequence[str]) -> list[Any]:
    """Returns the paths of arrays of a state that do not fit those of a trained network.

    They are missing there, have another shape, or belong to a head for other classes.

    Raises:
      RunError: more than half of the arrays are missing or have another shape.
    """
    arrays, found = _arrays(_network(state)), _arrays(trained.variables)
    missing = [p for p, leaf in arrays.items() if p not in found or found[p].shape != leaf.shape]
    if 2 * len(missing) > len(arrays):
        raise RunError(
            f"--init-from: of the {len(arrays)} arrays of this network, {len(missing)} are missing "
            "there or have other shapes. Take the settings of that run by --config with its "
            "folder, or choose a run with this network and norm."
        )
    head = _head(trained) if tuple(classes) != trained.classes else []
    return missing + [path for path in head if path not in missing]


def taken_over(
    state: TrainState, trained: Trained, classes: Sequence[str], say: Callable[[str], None]
) -> TrainState:
    """Returns the first state of a run that starts from a trained network.

    Arrays that do not fit, such as the head for other classes, keep their initial values.

    Args:
      state: state before the first step.
      trained: the network to start from.
      classes: names of the classes of the run.
      say: function that takes a message on the arrays that are left out.

    Raises:
      RunError: the networks have little in common.
    """
    if left_out := differing(state, trained, classes):
        names = [jax.tree_util.keystr(p, simple=True, separator="/") for p in left_out]
        reason = "their classes or shapes differ"
        say(f"These arrays start anew, because {reason}: {', '.join(names)}.")
    found = _arrays(trained.variables)

    def take(path, leaf):
        values = leaf if path in left_out else found[path]
        # Each call makes an own buffer, because training overwrites those of the state.
        return jax.device_put(np.asarray(values).astype(leaf.dtype), leaf.sharding)

    new, slow = (jax.tree.map_with_path(take, _network(state)) for _ in range(2))
    has_slow = state.slow is not None
    return state._replace(**new, slow=(slow["params"], slow["batch_stats"]) if has_slow else None)


def _head(trained: Trained) -> list[Any]:
    """Returns the paths of the arrays whose shapes depend on the number of classes."""
    learner = trained.learner
    other = dataclasses.replace(learner, num_classes=learner.num_classes + 1)
    here, there = (
        _arrays(_network(state_shapes(each, trained.image_shape))) for each in (learner, other)
    )
    return [path for path, leaf in here.items() if leaf.shape != there[path].shape]


def _arrays(tree: Any) -> dict[Any, Any]:
    return dict(jax.tree.leaves_with_path(tree))


def _network(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}
