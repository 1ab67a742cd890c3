"""Images: scikit-learn's digits, and CIFAR-10 from its official binary archive."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import requests

from experiments.config import DataConfig

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_TRAIN_FILES = [f"data_batch_{i}.bin" for i in range(1, 6)]
_RECORDS = 10_000
_RECORD = 1 + 3 * 32 * 32


class DataError(Exception):
    """The data is missing or damaged. The message says what to do."""


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


def load(config: DataConfig, folder: Path | None = None, variant: str | None = None) -> Dataset:
    """Returns the images.

    Args:
      config: which images to return.
      folder: folder with CIFAR-10's unpacked binary files. By default the official archive is
        downloaded, checked and cached.
      variant: name that reports give to the data in `folder`.

    Raises:
      DataError: the data is missing or damaged.
    """
    dataset = _digits() if config.dataset == "digits" else _cifar10(folder, variant)
    train = _size("train_size", config.train_size, len(dataset.train_labels))
    test = _size("test_size", config.test_size, len(dataset.test_labels))
    dataset = dataset._replace(
        train_images=_shrunk(dataset.train_images[:train], config.shrink),
        train_labels=dataset.train_labels[:train],
        test_images=_shrunk(dataset.test_images[:test], config.shrink),
        test_labels=dataset.test_labels[:test],
    )
    if config.shrink == 1:
        return dataset
    height, width = dataset.train_images.shape[1:3]
    return dataset._replace(variant=f"{dataset.variant}, shrunk to {width}x{height}")


def _size(name: str, size: int | None, available: int) -> int:
    if size is None:
        return available
    if not 0 < size <= available:
        raise DataError(f"data.{name}={size} must be from 1 to {available}, the number of images.")
    return size


def _shrunk(images: np.ndarray, by: int) -> np.ndarray:
    """Returns smaller images, whose pixels are the rounded means of squares of `by` x `by`."""
    number, height, width, channels = images.shape
    if by < 1 or height % by or width % by:
        raise DataError(f"data.shrink={by} must divide the images' {width}x{height} pixels.")
    if by == 1:
        return images
    squares = images.reshape(number, height // by, by, width // by, by, channels)
    return np.round(squares.mean((2, 4))).astype(np.uint8)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, random_state=0, stratify=labels
    )
    return Dataset(
        *(images[train], labels[train], images[test], labels[test]),
        classes=tuple("0123456789"),
        variant="scikit-learn digits",
    )


def _cifar10(folder: Path | None, variant: str | None) -> Dataset:
    if folder is None:
        with tarfile.open(_fetch()) as archive:
            return _read_cifar10(lambda name: _member(archive, name), "CIFAR-10")
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    read = lambda name: _file(folder / name)  # noqa: E731
    return _read_cifar10(read, variant or "data in CIFAR-10's format, not verified")


def _fetch() -> str:
    """Returns the path of the archive in the cache; downloads and checks it if it is missing."""
    try:
        return pooch.retrieve(URL, f"md5:{MD5}", path=pooch.os_cache("jbn"))
    except requests.exceptions.RequestException as error:
        raise DataError(
            f"CIFAR-10 could not be downloaded from {URL} ({type(error).__name__}). Connect to "
            "the internet, or unpack cifar-10-binary.tar.gz yourself and pass its folder as "
            "--data-dir."
        ) from error
    except ValueError as error:
        raise DataError(
            f"The download from {URL} is not the archive with MD5 {MD5}, and was not kept. Try "
            "again, or unpack a good copy yourself and pass its folder as --data-dir."
        ) from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"{FOLDER}/{name}")
    assert file is not None, name
    return file.read()


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}). --data-dir must name the folder {FOLDER}, "
            "or the folder that contains it."
        ) from error


def _read_cifar10(read: Callable[[str], bytes], variant: str) -> Dataset:
    train = [_parse(name, read(name)) for name in _TRAIN_FILES]
    test_images, test_labels = _parse("test_batch.bin", read("test_batch.bin"))
    train_images, train_labels = map(np.concatenate, zip(*train, strict=True))
    return Dataset(train_images, train_labels, test_images, test_labels, CIFAR10_CLASSES, variant)


def _parse(name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads records, each a label and 3072 pixels in planes of red, green and blue."""
    if len(data) != _RECORDS * _RECORD:
        raise DataError(
            f"{name} has {len(data)} bytes instead of {_RECORDS * _RECORD}: it is cut short, or "
            "it is not from CIFAR-10's binary version. Unpack the archive again."
        )
    records = np.frombuffer(data, np.uint8).reshape(_RECORDS, _RECORD)
    if records[:, 0].max() >= len(CIFAR10_CLASSES):
        raise DataError(f"{name} holds a label above 9: it is damaged. Unpack the archive again.")
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int32)
