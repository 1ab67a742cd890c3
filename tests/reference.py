"""Batch normalization in float64 NumPy, written from the formulas alone."""

from collections.abc import Sequence

import numpy as np


def moments(x, axis: int | Sequence[int] = -1, mask=None):
    """Returns mean, biased variance and count over the valid positions, by two passes."""
    rows, valid, shape = _rows(x, axis, mask)
    rows = rows[valid]
    if not len(rows):
        return np.zeros(shape), np.zeros(shape), 0
    mean = rows.mean(0)
    return mean.reshape(shape), ((rows - mean) ** 2).mean(0).reshape(shape), len(rows)


def normalize(x, mean, var, scale=None, bias=None, axis=-1, epsilon=1e-5):
    """Returns (x - mean) / sqrt(var + epsilon) * scale + bias."""
    x = np.asarray(x, np.float64)

    def along(vector):
        return np.expand_dims(np.asarray(vector, np.float64), _others(x, axis))

    y = (x - along(mean)) / np.sqrt(along(var) + epsilon)
    return y * (1 if scale is None else along(scale)) + (0 if bias is None else along(bias))


def gradients(x, scale, dy, axis=-1, mask=None, epsilon=1e-5):
    """Returns dx, dscale, dbias of a training step (Ioffe & Szegedy 2015, section 3).

    Masked positions give no gradient, and their y is the bias.
    """
    mean, var, count = moments(x, axis, mask)
    rows, valid, shape = _rows(x, axis, mask)
    drows, _, _ = _rows(dy, axis, mask)
    std = np.sqrt(var.reshape(-1) + epsilon)
    hat = np.where(valid[:, None], (rows - mean.reshape(-1)) / std, 0)
    g = np.where(valid[:, None], drows, 0) * np.asarray(scale, np.float64).reshape(-1)
    drow = (g - g.sum(0) / count - hat * (g * hat).sum(0) / count) / std
    drow = np.where(valid[:, None], drow, 0)
    x = np.asarray(x)
    others = _others(x, axis)
    order = (*others, *(a for a in range(x.ndim) if a not in others))
    dx = drow.reshape([x.shape[a] for a in order]).transpose(np.argsort(order))
    return dx, (drows * hat).sum(0).reshape(shape), drows.sum(0).reshape(shape)


def _others(x, axis):
    axes = {a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)}
    return tuple(a for a in range(x.ndim) if a not in axes)


def _rows(x, axis, mask):
    """Returns x as `[positions, features]`, a mask of positions, and the shape of the features."""
    x = np.asarray(x).astype(np.float64)
    others = _others(x, axis)
    positions = tuple(x.shape[a] for a in others)
    features = tuple(x.shape[a] for a in range(x.ndim) if a not in others)
    moved = np.moveaxis(x, others, range(len(others)))
    valid = np.broadcast_to(True if mask is None else np.asarray(mask), positions).reshape(-1)
    return moved.reshape(len(valid), -1), valid, features
