"""Labels of an `.npz` file, as numbers from 0."""

from pathlib import Path

import numpy as np

from experiments.data.dataset import DataError
from experiments.data.names import check_names

_Arrays = dict[str, np.ndarray]


def number(
    path: Path, labels: _Arrays, names: np.ndarray | None
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Returns labels as int32, and the name of each class.

    Args:
      path: the file, for errors.
      labels: labels by their key, first those of training images: `[n]` integers or strings.
      names: names of the classes in order, if the file has them. By default strings are sorted,
        and integers are their own names.

    Raises:
      DataError: labels are something else, or training images lack a class.
    """
    labels, classes = placed(path, labels, names)
    if classes is None:
        classes = tuple(map(str, range(_count(path, labels))))
    key, train = next(iter(labels.items()))
    missing = sorted(set(range(len(classes))) - set(np.unique(train).tolist()))
    if missing:
        raise DataError(
            f"{path}: {key} lacks class {classes[missing[0]]!r}. Add training images of it, or "
            "remove the class."
        )
    return [found.astype(np.int32) for found in labels.values()], classes


def placed(
    path: Path, labels: _Arrays, names: np.ndarray | None
) -> tuple[_Arrays, tuple[str, ...] | None]:
    """Returns labels as places among the names of classes, and these names.

    Args:
      path: the file, for errors.
      labels: labels by their key: `[n]` integers or strings.
      names: names of the classes in order, if the file has them. By default strings are sorted;
        integers have no names then, and are returned as they are.

    Raises:
      DataError: labels are something else, or outside of `names`.
    """
    kinds = {found.dtype.kind for found in labels.values()}
    if not (kinds <= set("iu") or kinds == {"U"}):
        found = ", ".join(f"{key} is {found.dtype}" for key, found in labels.items())
        raise DataError(f"{path}: {found}. Labels must be integers, or str.")
    classes = None if names is None else _names(path, names)
    if kinds == {"U"}:
        if classes is None:
            classes = tuple(np.unique(np.concatenate(list(labels.values()))).tolist())
        labels = {key: _places(path, key, found, classes) for key, found in labels.items()}
    if classes is None:
        return labels, None
    check_names(path, classes)
    for key, found in labels.items():
        low, high = int(found.min()), int(found.max())
        if low < 0 or high >= len(classes):
            raise DataError(
                f"{path}: {key} holds labels from {low} to {high}, and there are {len(classes)} "
                f"classes. Labels must be from 0 to {len(classes) - 1}."
            )
    return labels, classes


def _names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U" or len(np.unique(names)) < len(names):
        raise DataError(
            f"{path}: classes is {names.dtype} of shape {names.shape}. It must hold a different "
            "string for each class, in order."
        )
    return tuple(names.tolist())


def _places(path: Path, key: str, found: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    places = {name: place for place, name in enumerate(classes)}
    unknown = sorted(set(found.tolist()) - set(classes))
    if unknown:
        raise DataError(f"{path}: {key} holds {unknown[0]!r}, which classes lacks. Add it there.")
    return np.array([places[name] for name in found.tolist()])


def _count(path: Path, labels: dict[str, np.ndarray]) -> int:
    """Returns the number of classes, if they are numbered from 0 without gaps."""
    found = sorted(set[int]().union(*(np.unique(part).tolist() for part in labels.values())))
    if found != list(range(len(found))):
        gap = next(i for i, label in enumerate(found) if i != label)
        raise DataError(
            f"{path}: {' and '.join(labels)} hold labels from {found[0]} to {found[-1]}, without "
            f"{gap}. Number the classes from 0 without gaps."
        )
    return len(found)
