"""Reads image files with Pillow."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from experiments.config import DataConfig
from experiments.data.dataset import DataError
from experiments.data.part import shrink
from experiments.data.paths import is_special

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


def read(files: list[Path], resize: int | None) -> np.ndarray:
    """Returns the images `[n, height, width, channels]`, with one channel if all are grey.

    Args:
      files: at least one image.
      resize: width and height that images get. By default they must have the same size.

    Raises:
      DataError: an image cannot be read, or two have different sizes.
    """

    def decoded(file: Path) -> tuple[np.ndarray, bool]:
        image, grey = _decoded(file)
        return image if resize is None else _resized(image, (resize, resize)), grey

    first, _ = decoded(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)

    def fill(place: int) -> bool:
        image, grey = decoded(files[place])
        if image.shape != first.shape:
            raise DataError(
                f"{files[0]} is {_size(first)} and {files[place]} is {_size(image)}. Images must "
                "have the same size: resize them, or train with --data.resize, for example "
                "--data.resize 32."
            )
        images[place] = image
        return grey

    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock.
        grey = all(list(pool.map(fill, range(len(files)))))
    return np.ascontiguousarray(images[..., :1]) if grey else images


def read_one(path: Path, shape: tuple[int, int, int], config: DataConfig) -> np.ndarray:
    """Returns an image as uint8 of a shape (height, width, 1 or 3).

    Args:
      path: the file.
      shape: shape that the image gets.
      config: how training resized and shrank its images to this shape. The image is resized and
        shrunk in the same way. If training did not resize, an image of this shape stays as it is.

    Raises:
      DataError: it cannot be read.
    """
    height, width, channels = shape
    image, _ = _decoded(path)
    if channels == 1:
        image = np.asarray(Image.fromarray(image).convert("L"))[..., np.newaxis]
    if image.shape == shape and config.resize is None:
        return image
    large = _resized(image, (width * config.shrink, height * config.shrink))
    return shrink(large[np.newaxis], config.shrink)[0]


def _decoded(path: Path) -> tuple[np.ndarray, bool]:
    """Returns red, green and blue `[height, width, 3]`, and whether the image is grey."""
    if is_special(path):
        raise DataError(f"{path} is a device or a pipe instead of an image file. Remove it.")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            mode = image.mode
            # Pillow warns of palettes with transparency, unless they pass through RGBA.
            image = (image.convert("RGBA") if mode in ("P", "PA") else image).convert("RGB")
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist. Check its name, and where it leads if it is a link."
        ) from error
    except Exception as error:  # Damaged images raise errors of all kinds.
        raise DataError(
            f"{path} cannot be read as an image ({type(error).__name__}). Replace or remove it."
        ) from error
    if mode.startswith(("I", "F")):
        raise DataError(
            f"{path} has more than 8 bits a channel (Pillow's mode {mode}). Convert it to 8 bits."
        )
    return np.asarray(image), mode in ("1", "L", "LA", "La")


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns an image `[height, width, 1 or 3]` with another width and height."""
    image, channels = image.squeeze(-1) if image.shape[-1] == 1 else image, image.shape[-1]
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return resized.reshape(*resized.shape[:2], channels)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
