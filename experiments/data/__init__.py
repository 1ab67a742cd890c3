"""Images and labels: digits, CIFAR-10, CIFAR-100, `.npz` files and folders of images."""

from pathlib import Path

from experiments.config import DataConfig
from experiments.data import cifar, digits, image_folder, npz
from experiments.data.cifar_kinds import CIFAR10_CLASSES
from experiments.data.dataset import DataError, Dataset, fingerprint
from experiments.data.order import all_for_tests
from experiments.data.part import part

NAMES = ("digits", "cifar10", "cifar100")
"""Data sets that have a name. Others are paths."""

__all__ = [
    "CIFAR10_CLASSES",
    "NAMES",
    "DataError",
    "Dataset",
    "all_for_tests",
    "fingerprint",
    "load",
]


def load(config: DataConfig, data_dir: Path | None = None, variant: str | None = None) -> Dataset:
    """Returns the images.

    Args:
      config: which images to return.
      data_dir: folder or archive with the files of CIFAR-10 or CIFAR-100. By default the official
        archive is downloaded, checked and cached.
      variant: name that reports give to the data in `data_dir`, in an `.npz` file or in a folder.

    Raises:
      DataError: the data is missing or damaged, or an argument has no effect on it.
    """
    return part(_whole(config, data_dir, variant), config)


def _whole(config: DataConfig, data_dir: Path | None, variant: str | None) -> Dataset:
    name, path = config.dataset, Path(config.dataset).expanduser()
    is_cifar = name in ("cifar10", "cifar100")
    is_folder = not is_cifar and name != "digits" and path.is_dir()
    if not (is_cifar or is_folder or name == "digits" or path.is_file()):
        raise DataError(
            f"data.dataset={name} is no data set, and no file or folder has this path. It must be "
            "digits, cifar10, cifar100, or the path of an .npz file or of a folder of images."
        )
    if data_dir is not None and not is_cifar:
        raise DataError(
            f"--data-dir {data_dir} has no effect with data.dataset={name}: it names the files of "
            "cifar10 or cifar100. Leave it out."
        )
    if config.resize is not None and not is_folder:
        raise DataError(
            f"data.resize={config.resize} has no effect with data.dataset={name}: it is for a "
            "folder of images. Leave it out."
        )
    if variant is not None and data_dir is None and (is_cifar or name == "digits"):
        raise DataError(
            f"--data-variant {variant!r} has no effect with data.dataset={name} without "
            "--data-dir: this data has a name. Leave it out."
        )
    if is_cifar:
        return cifar.load(name, data_dir, variant)
    if name == "digits":
        return digits.load()
    if is_folder:
        return image_folder.load(path, config.resize, variant)
    return npz.load(path, variant)
