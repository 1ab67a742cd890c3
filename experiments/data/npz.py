"""A data set in a NumPy file, `.npz`."""

from pathlib import Path

import numpy as np

from experiments.data.dataset import DataError, Dataset, Tests
from experiments.data.listing import listing
from experiments.data.npz_labels import number, placed
from experiments.data.order import KEPT, mixed, split

_PARTS = ("train_images", "train_labels", "test_images", "test_labels")
_TESTS = _PARTS[2:]
_WHOLE = ("images", "labels")


def load(path: Path, variant: str | None) -> Dataset:
    """Returns the data set in a file.

    Args:
      path: file with the arrays train_images, train_labels, test_images and test_labels, or images
        and labels, of which a fifth becomes the test set. The array `classes` may name the labels.
        Images are `[n, height, width]` or `[n, height, width, channels]` uint8. Labels are integers
        from 0, or strings.
      variant: name of the data in reports; by default the file's name.

    Raises:
      DataError: the file is damaged or holds something else.
    """
    images, labels, names = _read(path, _PARTS)
    variant = variant or path.name
    numbers, classes = number(path, labels, names)
    if "images" in images:
        return _split(path, images["images"], numbers[0], classes, f"{variant}, {KEPT}")
    shapes = {key: found.shape[1:] for key, found in images.items()}
    if len(set(shapes.values())) > 1:
        sizes = " and ".join(f"{key} are {_size(shape)}" for key, shape in shapes.items())
        raise DataError(f"{path}: {sizes}. All images must have the same size.")
    train, test = map(mixed, images.values(), numbers)
    return Dataset(*train, *test, classes, variant)


def load_tests(path: Path, variant: str | None) -> Tests:
    """Returns the test images in a file, or all images if it does not divide them.

    Args:
      path: see `load`. Training images may be missing. Integer labels without `classes` are the
        network's own numbers.
      variant: name of the data in reports; by default the file's name.

    Raises:
      DataError: the file is damaged or holds something else.
    """
    images, labels, names = _read(path, _TESTS)
    placed_labels, classes = placed(path, labels, names)
    test = mixed(*images.values(), *placed_labels.values())
    return Tests(*test, classes, variant or path.name)


def _split(
    path: Path, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], variant: str
) -> Dataset:
    train, test = split(labels)
    if not len(test):
        raise DataError(
            f"{path}: {len(labels)} images are too few to keep a fifth of each class for tests. "
            f"Add images, or store {', '.join(_PARTS)}."
        )
    parts = images[train], labels[train], images[test], labels[test]
    return Dataset(*parts, classes, variant)


_Arrays = dict[str, np.ndarray]


def _read(path: Path, divided: tuple[str, ...]) -> tuple[_Arrays, _Arrays, np.ndarray | None]:
    """Returns images and labels by their key, in order, and the names of the classes.

    Args:
      path: the file.
      divided: keys to read. If one is missing, these are `_WHOLE`.
    """
    arrays = _arrays(path, divided)
    names = arrays.pop("classes", None)
    images = {key: _images(path, key, arrays[key]) for key in arrays if key.endswith("images")}
    labels = {key: arrays[key] for key in arrays if key.endswith("labels")}
    _check_lengths(path, images, labels)
    return images, labels, names


def _arrays(path: Path, divided: tuple[str, ...]) -> _Arrays:
    must = f"It must hold {', '.join(divided)}, or {' and '.join(_WHOLE)}"
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array. {must}: write it with numpy.savez.")
            keys = set(file.files)
            wanted = divided if keys.issuperset(divided) else _WHOLE
            if not keys.issuperset(wanted):
                raise DataError(f"{path} holds {listing(sorted(keys))}. {must}.")
            arrays = {key: file[key] for key in (*wanted, "classes") if key in keys}
            for array in arrays.values():
                if isinstance(array, np.ndarray) and array.dtype.kind == "U":
                    array.tolist()  # Damaged strings hold numbers that are no characters.
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{path} holds an array that is too large for the memory, or is damaged. Store fewer "
            "images, or write it anew with numpy.savez."
        ) from error
    except Exception as error:  # Damaged files raise errors of all kinds.
        if "Object arrays" in str(error):
            raise DataError(
                f"{path} holds an array of Python objects, which is not read. Convert it to "
                "numbers or strings, with one length for all images."
            ) from error
        raise DataError(
            f"{path} cannot be read: it is no .npz file, or it is damaged. Write it anew with "
            "numpy.savez."
        ) from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: {key} is not an array. Write the file with numpy.savez.")
    return arrays


def _images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise DataError(
            f"{path}: {key} is {images.dtype} of shape {images.shape}. It must be uint8 (from 0 to "
            "255) of shape [n, height, width, channels] or [n, height, width], and not empty."
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise DataError(
            f"{path}: {key} has shape {images.shape}, so its second axis seems to be that of the "
            f"channels. It must be the last one: store {key}.transpose(0, 2, 3, 1)."
        )
    return np.ascontiguousarray(images if images.ndim == 4 else images[..., np.newaxis])


def _check_lengths(path: Path, images: _Arrays, labels: _Arrays) -> None:
    for (key, found), (images_key, of) in zip(labels.items(), images.items(), strict=True):
        if found.shape != (len(of),):
            raise DataError(
                f"{path}: {key} has shape {found.shape} and {images_key} has {len(of)} images. "
                f"{key} must have shape ({len(of)},)."
            )


def _size(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width}x{height} with {channels} channel{'s' if channels > 1 else ''}"
