"""A data set in memory."""

import hashlib
import json
from typing import NamedTuple

import numpy as np


class DataError(Exception):
    """The data is missing or damaged. The message says what to do.

    Args:
      message: the message. Its control characters are escaped.
    """

    def __init__(self, message: str):
        super().__init__(in_one_line(message))


def in_one_line(message: str) -> str:
    """Returns the message of an error with its control characters escaped.

    Names of files may hold line breaks, and an error has one line.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)


class Dataset(NamedTuple):
    """Images and labels.

    Attributes:
      train_images: `[n, height, width, channels]` uint8.
      train_labels: `[n]` int32.
      test_images: `[m, height, width, channels]` uint8.
      test_labels: `[m]` int32.
      classes: name of each label.
      variant: name of the data in reports.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    variant: str


class Tests(NamedTuple):
    """Images to evaluate a trained network on.

    Attributes:
      images: `[n, height, width, channels]` uint8.
      labels: `[n]` integers: places in `classes`.
      classes: name of each label, of which some may have no image. None if the labels have no
        names: then they are the network's own numbers, and may be out of its range.
      variant: name of the data in reports.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] | None
    variant: str


def fingerprint(dataset: Dataset) -> str:
    """Returns the SHA-256 digest of the arrays and the classes, in hexadecimal."""
    digest = hashlib.sha256()
    for array in dataset[:4]:
        # The header says where an array ends, so no two data sets give the same bytes.
        digest.update(json.dumps([array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    digest.update(json.dumps(dataset.classes).encode())
    return digest.hexdigest()
