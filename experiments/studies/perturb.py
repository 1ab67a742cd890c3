"""Ways in which test images may differ from the training images."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

Perturbation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

PERTURBATIONS: dict[str, tuple[Perturbation, tuple[float, ...], float, str]] = {
    "scale": (
        lambda x, level, _: x * level,
        (0.1, 0.3, 1.0, 3.0, 10.0),
        1.0,
        "factor of all pixels",
    ),
    "brightness": (
        lambda x, level, _: x + 255 * level,
        (-1.0, -0.5, 0.0, 0.5, 1.0),
        0.0,
        "added, of the pixels' range",
    ),
    "contrast": (
        lambda x, level, _: _mean(x) + level * (x - _mean(x)),
        (0.1, 0.25, 0.5, 1.0, 2.0),
        1.0,
        "factor, about the image's mean",
    ),
    "noise": (
        lambda x, level, random: x + 255 * level * random.standard_normal(x.shape),
        (0.0, 0.1, 0.2, 0.3, 0.4),
        0.0,
        "deviation, of the pixels' range",
    ),
    "blur": (
        lambda x, level, _: ndimage.gaussian_filter(x, (0, level, level, 0)),
        (0.0, 0.5, 0.75, 1.0, 1.5),
        0.0,
        "Gaussian's deviation, pixels",
    ),
}
"""What is done to images `[n, height, width, channels]` of 0 to 255, its levels, the one that
changes nothing, and what a level is.

Nothing is clipped, so that a change of scale is just that.
"""


def perturb(images: np.ndarray, name: str, level: float, seed: int = 0) -> np.ndarray:
    """Returns the images, perturbed, as float32."""
    function, *_ = PERTURBATIONS[name]
    return function(images.astype(np.float32), level, np.random.default_rng(seed)).astype(
        np.float32
    )


def _mean(x):
    return x.mean((1, 2, 3), keepdims=True)
