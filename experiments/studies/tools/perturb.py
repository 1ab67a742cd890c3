"""Changes of test images."""

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
        "offset, in units of the pixels' range",
    ),
    "contrast": (
        lambda x, level, _: _mean(x) + level * (x - _mean(x)),
        (0.1, 0.25, 0.5, 1.0, 2.0),
        1.0,
        "factor, around the image's mean",
    ),
    "noise": (
        lambda x, level, random: x + 255 * level * random.standard_normal(x.shape),
        (0.0, 0.1, 0.2, 0.3, 0.4),
        0.0,
        "std, in units of the pixels' range",
    ),
    "blur": (
        lambda x, level, _: ndimage.gaussian_filter(x, (0, level, level, 0)),
        (0.0, 0.5, 0.75, 1.0, 1.5),
        0.0,
        "std of the Gaussian, in pixels",
    ),
}
"""For each kind of change: a function, its levels, the level that changes nothing, and the meaning
of a level in words.

The function takes images `[n, height, width, channels]` with values from 0 to 255. Values are not
clipped, so that a change of scale changes only the scale.
"""


def perturb(images: np.ndarray, name: str, level: float, seed: int = 0) -> np.ndarray:
    """Returns the perturbed images as float32."""
    function, *_ = PERTURBATIONS[name]
    return function(images.astype(np.float32), level, np.random.default_rng(seed)).astype(
        np.float32
    )


def _mean(x):
    return x.mean((1, 2, 3), keepdims=True)
