"""Permutation and augmentation of images, on the device."""

import jax
import jax.numpy as jnp

from experiments.config import AugmentConfig

_FLIP, _PERMUTE, _SHIFT, _GATHER = range(4)
"""The purposes of the random keys that are derived from the seed."""


def permutation(seed: jax.Array | int, epoch: jax.Array, size: int) -> jax.Array:
    """Returns the order `[size]` of the training images in an epoch."""
    return jax.random.permutation(_key(seed, _PERMUTE, epoch), size)


def gather_classes(
    order: jax.Array, labels: jax.Array, piece: int, seed: jax.Array | int, epoch: jax.Array
) -> jax.Array:
    """Sorts the images into pieces of one label each, and puts the pieces in a random order.

    A batch of k pieces then holds about k classes. It holds fewer if two pieces have the same
    class, and more if one class ends and the next begins within a piece.

    Args:
      order: `[size]` indices of the images in the training set, in a random order.
      labels: `[size]` labels of all training images.
      piece: number of images in a piece. Images that do not fill a piece stay at the end.
      seed: seed of the run.
      epoch: `[]` int32.
    """
    order = order[jnp.argsort(labels[order], stable=True)]
    whole = len(order) // piece * piece
    pieces = order[:whole].reshape(-1, piece)
    pieces = jax.random.permutation(_key(seed, _GATHER, epoch), pieces)
    return jnp.concatenate([pieces.reshape(-1), order[whole:]])


def augment(
    images: jax.Array,
    index: jax.Array,
    seed: jax.Array | int,
    epoch: jax.Array,
    config: AugmentConfig,
) -> jax.Array:
    """Mirrors and shifts the images of one batch.

    The changes to an image depend only on the seed, the epoch and the image's index.

    Args:
      images: `[batch, height, width, channels]`.
      index: `[batch]` indices of the images in the training set.
      seed: seed of the run.
      epoch: `[]` int32.
      config: which changes to make.
    """

    def bits(use, epoch, bound, shape=()):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(_key(seed, use, epoch), index)
        return jax.vmap(lambda key: jax.random.randint(key, shape, 0, bound))(keys)

    if config.flip != "none":
        alternating = config.flip == "alternating"
        flip = bits(_FLIP, jnp.zeros_like(epoch) if alternating else epoch, 2)
        if alternating:
            flip = (flip + epoch) % 2
        images = jnp.where(flip[:, None, None, None] == 1, images[:, :, ::-1], images)
    if config.shift:
        corner = bits(_SHIFT, epoch, 2 * config.shift + 1, (2,))
        images = shift(images, corner - config.shift, config.shift, config.pad)
    return images


def shift(images: jax.Array, offsets: jax.Array, largest: int, pad: str) -> jax.Array:
    """Shifts each image up and left by its offsets.

    Args:
      images: `[batch, height, width, channels]`.
      offsets: `[batch, 2]` int32, from -`largest` to `largest`.
      largest: number of pixels of padding on each side.
      pad: `zero` or `reflect`.
    """
    widths = ((0, 0), (largest, largest), (largest, largest), (0, 0))
    padded = jnp.pad(images, widths, mode="reflect" if pad == "reflect" else "constant")

    def crop(image, offset):
        row, column = offset + largest
        return jax.lax.dynamic_slice(image, (row, column, jnp.zeros_like(row)), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def _key(seed, use, epoch):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), epoch)
