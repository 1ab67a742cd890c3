"""Augmentation, compared with NumPy on single images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.augment import augment, permutation, shift
from experiments.config import AugmentConfig

IMAGES = jnp.arange(6 * 5 * 7 * 2, dtype=jnp.float32).reshape(6, 5, 7, 2)
INDEX = jnp.array([3, 1, 4, 11, 5, 9])


def varied(config, epoch, images=IMAGES, index=INDEX, seed=0):
    return np.asarray(augment(images, index, seed, jnp.int32(epoch), config))


def is_flipped(config, epoch, index):
    images = jnp.broadcast_to(IMAGES[0], (len(index), 5, 7, 2))
    out = varied(config, epoch, images, index)
    flipped = (out == np.asarray(IMAGES[0, :, ::-1])).all((1, 2, 3))
    assert (flipped | (out == np.asarray(IMAGES[0])).all((1, 2, 3))).all()
    return flipped


def test_permutation_depends_on_seed_and_epoch():
    orders = [np.asarray(permutation(s, jnp.int32(e), 50)) for s in (0, 1) for e in (0, 1)]
    for i, order in enumerate(orders):
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
        assert all((order != other).any() for other in orders[:i])


def test_random_flips_are_fair_and_differ_between_epochs():
    index = jnp.arange(2000)
    first, second = (is_flipped(AugmentConfig("random"), epoch, index) for epoch in (0, 1))
    # The bound is four standard deviations of a fair coin.
    for share in (first.mean(), second.mean(), (first == second).mean()):
        assert abs(share - 0.5) < 4 * 0.5 / 2000**0.5


def test_alternating_flips_alternate():
    index = jnp.arange(2000)
    epochs = [is_flipped(AugmentConfig("alternating"), epoch, index) for epoch in range(3)]
    assert abs(epochs[0].mean() - 0.5) < 4 * 0.5 / 2000**0.5
    np.testing.assert_array_equal(epochs[1], ~epochs[0])
    np.testing.assert_array_equal(epochs[2], epochs[0])


@pytest.mark.parametrize(("pad", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_shift_equals_padding_and_cropping(pad, mode):
    offsets = [(-2, 2), (0, 0), (1, -1), (2, 2), (-1, 0), (0, 1)]
    out = shift(IMAGES, jnp.array(offsets), 2, pad)
    padded = np.pad(np.asarray(IMAGES), ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
    for i, (row, column) in enumerate(offsets):
        expected = padded[i, 2 + row : 7 + row, 2 + column : 9 + column]
        np.testing.assert_array_equal(out[i], expected)


def test_an_image_is_varied_alike_whatever_its_batch():
    config = AugmentConfig("random", 2, "reflect")
    whole = varied(config, 3)
    parts = [varied(config, 3, IMAGES[i : i + 2], INDEX[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (varied(config, 4) != whole).any()
    assert (varied(config, 3, seed=1) != whole).any()


def test_no_augmentation_is_the_identity():
    np.testing.assert_array_equal(varied(AugmentConfig(), 2), IMAGES)


def test_under_jit():
    config = AugmentConfig("random", 2)
    jitted = jax.jit(augment, static_argnums=(2, 4))(IMAGES, INDEX, 0, jnp.int32(1), config)
    np.testing.assert_array_equal(jitted, varied(config, 1))
