"""Part of a data set: fewer and smaller images."""

import numpy as np

from experiments.config import DataConfig
from experiments.data.dataset import DataError, Dataset, Tests


def part(dataset: Dataset, config: DataConfig) -> Dataset:
    """Returns the first images, shrunk.

    Raises:
      DataError: there are not as many images, or their sides are not a multiple of `shrink`.
    """
    train = _size("train_size", config.train_size, len(dataset.train_labels))
    test = _size("test_size", config.test_size, len(dataset.test_labels))
    dataset = dataset._replace(
        train_images=shrink(dataset.train_images[:train], config.shrink),
        train_labels=dataset.train_labels[:train],
        test_images=shrink(dataset.test_images[:test], config.shrink),
        test_labels=dataset.test_labels[:test],
    )
    return dataset._replace(variant=_variant(dataset.variant, dataset.train_images, config.shrink))


def shrunk(tests: Tests, by: int) -> Tests:
    """Returns all images, shrunk.

    Raises:
      DataError: the images' sides are not a multiple of `by`.
    """
    images = shrink(tests.images, by)
    return tests._replace(images=images, variant=_variant(tests.variant, images, by))


def _size(name: str, size: int | None, available: int) -> int:
    if size is None:
        return available
    if not 0 < size <= available:
        raise DataError(f"data.{name}={size} must be from 1 to {available}, the number of images.")
    return size


def shrink(images: np.ndarray, by: int) -> np.ndarray:
    """Returns smaller images, whose pixels are the rounded means of squares of `by` x `by`.

    Args:
      images: `[n, height, width, channels]` uint8.
      by: number that divides the height and the width.

    Raises:
      DataError: it does not divide them.
    """
    number, height, width, channels = images.shape
    if by < 1 or height % by or width % by:
        raise DataError(f"data.shrink={by} must divide the images' {width}x{height} pixels.")
    if by == 1:
        return images
    squares = images.reshape(number, height // by, by, width // by, by, channels)
    return np.round(squares.mean((2, 4))).astype(np.uint8)


def _variant(variant: str, images: np.ndarray, by: int) -> str:
    height, width = images.shape[1:3]
    return variant if by == 1 else f"{variant}, shrunk to {width}x{height}"
