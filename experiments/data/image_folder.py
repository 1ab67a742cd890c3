"""A data set in a folder with a folder of images for each class."""

from pathlib import Path

import numpy as np

from experiments.data.dataset import DataError, Dataset, Tests
from experiments.data.image_files import SUFFIXES, read
from experiments.data.names import check_names
from experiments.data.order import KEPT, mixed, split

_TESTS = ("test", "val", "validation")
_LAYOUT = (
    "It must hold CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE (or val, or validation), "
    "where IMAGE is a png, jpg, webp, bmp, gif, tiff, pgm or ppm file."
)


def load(path: Path, resize: int | None, variant: str | None) -> Dataset:
    """Returns the images in a folder.

    The folder holds a folder of images for each class, of which a fifth becomes the test set. Or it
    holds `train` and `test` with such folders; without `test`, `val` or `validation` is the test
    set. Transparency is left out, and photographs are turned as their cameras say.

    Args:
      path: the folder.
      resize: width and height that images get. By default all have the same size.
      variant: name of the data in reports; by default the folder's name.

    Raises:
      DataError: images are missing, damaged or of several sizes.
    """
    variant = _variant(path, resize, variant)
    train, test = _parts(path)
    classes = tuple(sorted(train))
    files, labels = _labelled(classes, train)
    if test is None:
        images = read(files, resize)
        first, second = split(labels)
        if not len(second):
            raise DataError(
                f"{path}: {len(files)} images are too few to keep a fifth of each class for tests. "
                "Add images, or folders train and test."
            )
        return Dataset(
            *(images[first], labels[first], images[second], labels[second]),
            classes=classes,
            variant=f"{variant}, {KEPT}",
        )
    test_files, test_labels = _labelled(classes, test)
    # All are read together, because colour in either part makes all images colour.
    images = read(files + test_files, resize)
    return Dataset(
        *mixed(images[: len(files)], labels),
        *mixed(images[len(files) :], test_labels),
        classes=classes,
        variant=variant,
    )


def load_tests(path: Path, resize: int | None, variant: str | None) -> Tests:
    """Returns the images in the folder `test`, or all images in a folder without `train`.

    Args:
      path: see `load`.
      resize: see `load`.
      variant: see `load`.

    Raises:
      DataError: images are missing, damaged or of several sizes.
    """
    variant = _variant(path, resize, variant)
    divided = _divided(path)
    found = _files(divided[1] if divided else path)
    classes = tuple(sorted(found))
    files, labels = _labelled(classes, found)
    return Tests(*mixed(read(files, resize), labels), classes, variant)


def _variant(path: Path, resize: int | None, variant: str | None) -> str:
    variant = variant or path.resolve().name
    if resize is None:
        return variant
    if resize < 1:
        raise DataError(f"data.resize={resize} must be at least 1.")
    return f"{variant}, resized to {resize}x{resize}"


_Files = dict[str, list[Path]]  # The images of each class.


def _parts(path: Path) -> tuple[_Files, _Files | None]:
    """Returns training images, and test images if they have a folder of their own."""
    divided = _divided(path)
    if divided is None:
        return _files(path), None
    train, test = map(_files, divided)
    unknown = sorted(set(test) - set(train))
    if unknown:
        raise DataError(
            f"{divided[1] / unknown[0]} has no folder of this name in {divided[0]}. Add training "
            "images of this class, or remove it."
        )
    return train, test


def _divided(path: Path) -> tuple[Path, Path] | None:
    """Returns the folders of training and of test images, if there are such folders."""
    folders = _folders(path)
    # Without folders in it, `train` is a class.
    if "train" not in folders or not _folders(folders["train"]):
        return None
    name = next((name for name in _TESTS if name in folders), None)
    if name is None:
        raise DataError(
            f"{path} holds train/ with folders in it, but no test/, val/ or validation/. Add test "
            "images, or pass the folder train itself, of which training keeps a fifth for tests."
        )
    return folders["train"], folders[name]


def _files(path: Path) -> _Files:
    """Returns the images in each class, sorted by name."""
    folders = _folders(path)
    files = {
        name: [file for file in _visible(folder) if file.suffix.lower() in SUFFIXES]
        for name, folder in folders.items()
    }
    if not any(files.values()):
        raise DataError(f"{path} holds no folder with images. {_LAYOUT}")
    for name, folder in folders.items():
        inner = sorted(_folders(folder))
        if inner:
            raise DataError(
                f"{folder / inner[0]} is a folder in a folder of images. Move its images up, or "
                "remove it."
            )
        if not files[name]:
            raise DataError(f"{folder} holds no images. Add images of this class, or remove it.")
    check_names(path, files)
    return files


def _folders(path: Path) -> dict[str, Path]:
    return {entry.name: entry for entry in _visible(path) if entry.is_dir()}


def _visible(path: Path) -> list[Path]:
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}). Check that you may read this folder."
        ) from error
    return [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]


def _labelled(classes: tuple[str, ...], files: _Files) -> tuple[list[Path], np.ndarray]:
    """Returns the images of all classes, and their labels."""
    labels = [label for label, name in enumerate(classes) for _ in files.get(name, ())]
    return [file for name in classes for file in files.get(name, ())], np.array(labels, np.int32)
