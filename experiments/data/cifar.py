"""CIFAR-10 and CIFAR-100, from their official archives or from what was unpacked from them."""

from pathlib import Path

import numpy as np

from experiments.data import cifar_pickle
from experiments.data.cifar_files import Files, download, find
from experiments.data.cifar_kinds import CIFAR10_CLASSES, KINDS, PIXELS, Kind
from experiments.data.dataset import DataError, Dataset
from experiments.data.names import check_names


def load(name: str, data_dir: Path | None, variant: str | None) -> Dataset:
    """Returns the images.

    Args:
      name: cifar10 or cifar100.
      data_dir: see `cifar_files.find`. By default the official archive is downloaded.
      variant: name that reports give to the data in `data_dir`.

    Raises:
      DataError: the files are missing or damaged.
    """
    kind = KINDS[name]
    files = download(kind) if data_dir is None else find(kind, data_dir)
    train = [_read(kind, files, file, kind.train_records) for file in files.version.train]
    train_images, train_labels = map(np.concatenate, zip(*train, strict=True))
    test_images, test_labels = _read(kind, files, files.version.test, kind.test_records)
    default = kind.name if files.official else f"data in {kind.name}'s format, not verified"
    return Dataset(
        *(train_images, train_labels, test_images, test_labels),
        classes=_classes(kind, files),
        variant=variant or default,
    )


def _read(kind: Kind, files: Files, name: str, records: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of a file."""
    place, content = f"{files.place}/{name}", files.read(name)
    if content is None:
        raise DataError(f"{place} is missing, though other files are there. Unpack all files.")
    parse = _binary if files.version == kind.binary else _pickled
    pixels, labels = parse(kind, place, content, records)
    if labels.max() >= kind.classes or labels.min() < 0:
        raise DataError(
            f"{place} holds a label outside of 0 to {kind.classes - 1}: it is damaged. Unpack the "
            "archive again."
        )
    # Pixels come in planes of red, green and blue.
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)


def _binary(kind: Kind, place: str, content: bytes, number: int) -> tuple[np.ndarray, np.ndarray]:
    size = number * (kind.labels + PIXELS)
    if len(content) != size:
        raise DataError(
            f"{place} has {len(content)} bytes instead of {size}: it is cut short, or it is not "
            f"from {kind.name}'s binary version. Unpack the archive again."
        )
    records = np.frombuffer(content, np.uint8).reshape(number, -1)
    return records[:, kind.labels :], records[:, kind.labels - 1]


def _pickled(kind: Kind, place: str, content: bytes, number: int) -> tuple[np.ndarray, np.ndarray]:
    found = cifar_pickle.read(place, content)
    pixels = cifar_pickle.array(found.get(b"data"), (number, PIXELS))
    labels = found.get(kind.labels_key)
    if pixels is None:
        raise DataError(
            f"{place} holds no array `data` of shape {number} x {PIXELS} and dtype uint8: it is "
            f"not from {kind.name}'s Python version. Unpack the archive again."
        )
    if (
        not isinstance(labels, list)
        or len(labels) != number
        or any(type(label) is not int for label in labels)
    ):
        raise DataError(
            f"{place} holds no list `{kind.labels_key.decode()}` of {number} integers: it is not "
            f"from {kind.name}'s Python version. Unpack the archive again."
        )
    # An integer in a pickle has any size, and large ones would not fit in an array.
    return pixels, np.array([label if 0 <= label < kind.classes else -1 for label in labels])


def _classes(kind: Kind, files: Files) -> tuple[str, ...]:
    if kind.classes == len(CIFAR10_CLASSES):
        return CIFAR10_CLASSES
    name = files.version.names
    place, content = f"{files.place}/{name}", files.read(name)
    if content is None:
        # Only reports need names, so data that was copied without them is still of use.
        return tuple(map(str, range(kind.classes)))
    if files.version == kind.binary:
        names = content.decode(errors="replace").split()
    else:
        found = cifar_pickle.read(place, content).get(kind.names_key)
        names = [
            name.decode(errors="replace") if isinstance(name, bytes) else name
            for name in (found if isinstance(found, list) else [])
            if isinstance(name, str | bytes)
        ]
    if len(set(names)) != kind.classes or len(names) != kind.classes:
        raise DataError(
            f"{place} holds {len(set(names))} names of classes instead of {kind.classes}: it is "
            "damaged. Unpack the archive again, or delete this file."
        )
    check_names(place, names)
    return tuple(names)
