"""Images and labels: digits, CIFAR-10, CIFAR-100, `.npz` files and folders of images."""

from pathlib import Path

from experiments.config import DataConfig
from experiments.data import cifar, digits, image_folder, npz
from experiments.data.cifar_kinds import CIFAR10_CLASSES
from experiments.data.dataset import DataError, Dataset, Tests, fingerprint
from experiments.data.part import part, shrunk
from experiments.data.paths import expanded, is_special

NAMES = ("digits", "cifar10", "cifar100")
"""Data sets that have a name. Others are paths."""

__all__ = [
    "CIFAR10_CLASSES",
    "NAMES",
    "DataError",
    "Dataset",
    "Tests",
    "expanded",
    "fingerprint",
    "load",
    "load_tests",
]


def load(config: DataConfig, data_dir: Path | None = None, variant: str | None = None) -> Dataset:
    """Returns the images to train on, and to test with.

    Args:
      config: which images to return.
      data_dir: folder or archive with the files of CIFAR-10 or CIFAR-100. By default the official
        archive is downloaded, checked and cached.
      variant: name that reports give to the data in `data_dir`, in an `.npz` file or in a folder.

    Raises:
      DataError: the data is missing or damaged, or an argument has no effect on it.
    """
    path = _path(config, data_dir, variant)
    if path is None:
        dataset = _named(config.dataset, data_dir, variant)
    elif path.is_dir():
        dataset = image_folder.load(path, config.resize, variant)
    else:
        dataset = npz.load(path, variant)
    return part(dataset, config)


def load_tests(
    config: DataConfig, data_dir: Path | None = None, variant: str | None = None
) -> Tests:
    """Returns the images to evaluate a trained network on.

    These are all test images, or all images if a file or folder does not divide them. Unlike for
    training, classes may be missing.

    Args:
      config: which images to return. Its `train_size` and `test_size` have no effect.
      data_dir: see `load`.
      variant: see `load`.

    Raises:
      DataError: the data is missing or damaged, or an argument has no effect on it.
    """
    path = _path(config, data_dir, variant)
    if path is None:
        named = _named(config.dataset, data_dir, variant)
        tests = Tests(named.test_images, named.test_labels, named.classes, named.variant)
    elif path.is_dir():
        tests = image_folder.load_tests(path, config.resize, variant)
    else:
        tests = npz.load_tests(path, variant)
    return shrunk(tests, config.shrink)


def _named(name: str, data_dir: Path | None, variant: str | None) -> Dataset:
    return digits.load() if name == "digits" else cifar.load(name, data_dir, variant)


def _path(config: DataConfig, data_dir: Path | None, variant: str | None) -> Path | None:
    """Returns the path of a file or folder with the images, or None for data that has a name."""
    name = config.dataset
    path = None if name in NAMES else _checked_path(name)
    is_cifar = name in ("cifar10", "cifar100")
    if data_dir is not None and not is_cifar:
        raise DataError(
            f"--data-dir {data_dir} has no effect with data.dataset={name}: it names the files of "
            "cifar10 or cifar100. Leave it out."
        )
    if config.resize is not None and not (path and path.is_dir()):
        raise DataError(
            f"data.resize={config.resize} has no effect with data.dataset={name}: it is for a "
            "folder of images. Leave it out."
        )
    if variant is not None and data_dir is None and path is None:
        raise DataError(
            f"--data-variant {variant!r} has no effect with data.dataset={name} without "
            "--data-dir: this data has a name. Leave it out."
        )
    return path


def _checked_path(name: str) -> Path:
    path = expanded(name)
    if path.is_file() or path.is_dir():
        return path
    is_what = (
        "is neither a file nor a folder, but a device or a pipe"
        if is_special(path)
        else "is no data set, and no file or folder has this path"
    )
    raise DataError(
        f"data.dataset={name} {is_what}. It must be digits, cifar10, cifar100, or the path of an "
        ".npz file or of a folder of images."
    )
