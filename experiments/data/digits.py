"""scikit-learn's digits."""

import numpy as np

from experiments.data.dataset import Dataset


def load() -> Dataset:
    """Returns 1437 training images and 360 test images of 8x8 pixels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, random_state=0, stratify=labels
    )
    return Dataset(
        *(images[train], labels[train], images[test], labels[test]),
        classes=tuple("0123456789"),
        variant="scikit-learn digits",
    )
