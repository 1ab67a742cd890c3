"""Where arrays are: images on all devices, batches spread over them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from experiments.data import Dataset


class Images(NamedTuple):
    """The images and labels of a data set on the device.

    Attributes:
      train_images: `[n, height, width, channels]` uint8.
      train_labels: `[n]` int32.
      test_images: `[m, height, width, channels]` uint8.
      test_labels: `[m]` int32.
      mean: `[channels]` mean of the training images' pixels, from 0 to 1.
      std: `[channels]` standard deviation of the training images' pixels.
    """

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array
    mean: jax.Array
    std: jax.Array


def place(dataset: Dataset, mesh: Mesh | None = None) -> Images:
    """Puts the images on the device; on all devices of a mesh, if one is given."""
    arrays: Any = dataset[:4]
    mean, std = pixel_statistics(dataset.train_images)
    images = Images(*arrays, mean=mean, std=std)
    return jax.device_put(images, NamedSharding(mesh, PartitionSpec()) if mesh else None)


def pixel_statistics(images: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the standard deviation of each channel.

    The standard deviation of a channel whose pixels are all equal is given as 1.

    Args:
      images: `[n, height, width, channels]` uint8.
    """
    images, axes = jnp.asarray(images), (0, 1, 2)
    pixels = images.astype(jnp.float32) / 255
    varies = images.min(axes) < images.max(axes)
    return pixels.mean(axes), jnp.where(varies, pixels.std(axes), 1)


def spread(batch: Any) -> Any:
    """Spreads a batch over the devices of the mesh of `jax.set_mesh`, if there is one."""
    return _constrained(batch, PartitionSpec("data"))


def everywhere(tree: Any) -> Any:
    """Puts arrays on all devices of the mesh of `jax.set_mesh`, if there is one."""
    return _constrained(tree, PartitionSpec())


def _constrained(tree, spec):
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, spec)
