"""Fixed random orders. They don't depend on the seed of a run."""

import numpy as np

SEED = 0
KEPT = "a fifth of each class kept for tests"


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices of training and test images: a fifth of each class is for testing.

    Both are in random order. A class with one image is for training only.
    """
    shuffled = np.random.default_rng(SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    several = by_class[np.bincount(labels)[labels[by_class]] > 1]
    test = np.zeros(len(labels), bool)
    test[several[2::5]] = True
    return shuffled[~test[shuffled]], shuffled[test[shuffled]]


def mixed(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels, in random order if they come class by class.

    Otherwise the first images, which `train_size` takes, would be of one class.
    """
    if np.count_nonzero(np.diff(labels)) >= len(np.unique(labels)):
        return images, labels
    order = np.random.default_rng(SEED).permutation(len(labels))
    return images[order], labels[order]
