"""Stored training runs of the original airbench94 and ResNet-20, in float64.

`make.py` runs the originals and stores what they computed in `airbench94.npz` and `resnet20.npz`:

- `published`, `used`: the settings that the original has, and those of the stored run, as JSON.
- `images`, `labels`, `test_images`: uint8 images `[n, height, width, channels]` and their labels.
- `mean`, `std`: the constants of each channel that normalize an image in the range from 0 to 1.
- `batches`: `[steps, batch]` indices of the images of each step. They are not augmented.
- `losses`: `[steps]` loss of each step, a sum or a mean over the batch as in the original.
- `rates`: `[steps, groups]` learning rates of the optimizer's groups of parameters.
- `initial/NAME`, `fast/NAME`, `slow/NAME`: PyTorch's arrays before the first step, after the last
  step, and in lookahead's copy after the last step. Of large arrays of ResNet-20, `fast` has every
  47th value.
- `whitening`: airbench94's whitening kernel, computed from the images.
- `logits/VIEWS`: logits of the test images after training, averaged over views.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent
STRIDE = 47
"""Distance of the stored values of a large array. It is prime to all sizes of a kernel."""


class Original(NamedTuple):
    """A stored training run.

    Attributes:
      published: the settings that the original has.
      used: the settings of the stored run.
      arrays: the stored arrays, by name.
    """

    published: dict[str, Any]
    used: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def weights(self, kind: str) -> dict[str, np.ndarray]:
        """Returns PyTorch's float64 arrays of one kind, `initial`, `fast` or `slow`, by name.

        Values that are not stored are NaN.
        """
        found = {}
        for path, stored in self.arrays.items():
            if path.startswith(f"{kind}/"):
                name = path.removeprefix(f"{kind}/")
                whole = np.full(self.arrays[f"initial/{name}"].shape, np.nan)
                whole.reshape(-1)[:: 1 if stored.shape == whole.shape else STRIDE] = stored.ravel()
                found[name] = whole
        return found


def load(name: str) -> Original:
    """Returns a stored run, `airbench94` or `resnet20`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    published, used = (json.loads(str(arrays.pop(key))) for key in ("published", "used"))
    return Original(published, used, arrays)


def save(name: str, original: Original) -> None:
    """Stores a run."""
    settings = {"published": json.dumps(original.published), "used": json.dumps(original.used)}
    content: dict[str, Any] = {**settings, **original.arrays}
    np.savez_compressed(FOLDER / f"{name}.npz", **content)


def sample(array: np.ndarray) -> np.ndarray:
    """Returns every 47th value of a large array, in the order of PyTorch's axes."""
    return array if array.size < 1000 else array.reshape(-1)[::STRIDE]


def airbench_variables(weights: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """Returns parameters and statistics of jbn's network with airbench94's weights."""
    pixels = weights["7.weight"].shape[1] // weights["4.conv2.weight"].shape[0]
    assert pixels == 1  # The order of the pixels in the last layer's input plays no role.
    params: dict[str, Any] = {
        "whiten": {"kernel": _hwio(weights["0.weight"]), "bias": weights["0.bias"]},
        "Dense_0": {"kernel": weights["7.weight"].T},
    }
    stats: dict[str, Any] = {}
    for index in range(6):
        group, place = 2 + index // 2, 1 + index % 2
        norm = f"{group}.norm{place}"
        layer = f"ConvNorm_{index}"
        kernel = _hwio(weights[f"{group}.conv{place}.weight"])
        params[layer] = {"Conv_0": {"kernel": kernel}, "norm": {"bias": weights[f"{norm}.bias"]}}
        stats[layer] = {"norm": _statistics(weights, norm)}
    return params, stats


def resnet_variables(weights: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """Returns parameters and statistics of jbn's network with the weights of ResNet-20."""
    params: dict[str, Any] = {
        "Dense_0": {"kernel": weights["linear.weight"].T, "bias": weights["linear.bias"]}
    }
    stats: dict[str, Any] = {}
    blocks = [f"layer{group}.{block}." for group in (1, 2, 3) for block in range(3)]
    pairs = [("", 1), *((block, place) for block in blocks for place in (1, 2))]
    for index, (block, place) in enumerate(pairs):
        norm = f"{block}bn{place}"
        layer = f"ConvNorm_{index}"
        params[layer] = {
            "Conv_0": {"kernel": _hwio(weights[f"{block}conv{place}.weight"])},
            "norm": {"scale": weights[f"{norm}.weight"], "bias": weights[f"{norm}.bias"]},
        }
        stats[layer] = {"norm": _statistics(weights, norm)}
    return params, stats


def _hwio(kernel: np.ndarray) -> np.ndarray:
    """Converts a kernel [out, in, height, width] to [height, width, in, out]."""
    return kernel.transpose(2, 3, 1, 0)


def _statistics(weights: Mapping[str, np.ndarray], norm: str) -> dict[str, np.ndarray]:
    return {"mean": weights[f"{norm}.running_mean"], "var": weights[f"{norm}.running_var"]}
