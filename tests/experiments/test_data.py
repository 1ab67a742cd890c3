"""What all data sets have in common, and digits."""

import numpy as np
import pytest

from experiments import data
from experiments.config import DataConfig
from experiments.data.order import mixed, split


def test_digits_are_split_evenly_by_class():
    dataset = data.load(DataConfig())
    assert dataset.train_images.shape == (1437, 8, 8, 1)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_images.max() == 255
    counts = np.bincount(dataset.test_labels)
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_part_of_the_images_shrunk():
    """Each of the network's pixels is the mean of a square."""
    whole = data.load(DataConfig())
    part = data.load(DataConfig(train_size=20, test_size=10, shrink=4))
    assert part.variant == "scikit-learn digits, shrunk to 2x2"
    for images, labels, of, labels_of in (
        (part.train_images, part.train_labels, whole.train_images[:20], whole.train_labels[:20]),
        (part.test_images, part.test_labels, whole.test_images[:10], whole.test_labels[:10]),
    ):
        assert images.dtype == np.uint8
        for i, j in np.ndindex(2, 2):
            square = of[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(len(of), 16)
            np.testing.assert_array_equal(images[:, i, j, 0], np.round(square.mean(1)))
        np.testing.assert_array_equal(labels, labels_of)


def test_all_test_images_evaluate_a_network():
    tests = data.load_tests(DataConfig(train_size=20, test_size=10, shrink=4))
    whole = data.load(DataConfig(shrink=4))
    np.testing.assert_array_equal(tests.images, whole.test_images)
    np.testing.assert_array_equal(tests.labels, whole.test_labels)
    assert (tests.classes, tests.variant) == (whole.classes, whole.variant)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(train_size=0), "train_size=0 must be from 1 to 1437"),
        (DataConfig(train_size=1438), "train_size=1438 must be from 1 to 1437"),
        (DataConfig(test_size=361), "test_size=361 must be from 1 to 360"),
        (DataConfig(shrink=3), "shrink=3 must divide the images' 8x8 pixels"),
        (DataConfig(shrink=0), "shrink=0 must divide"),
    ],
)
def test_what_images_there_are_not_is_refused(config, message):
    with pytest.raises(data.DataError, match=message):
        data.load(config)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"dataset": "cifar11"}, (), "=cifar11 is no data set.* digits, cifar10, cifar100, or"),
        ({"dataset": "gone.npz"}, (), "=gone.npz is no data set"),
        ({"dataset": "two\nlines"}, (), r"=two\\nlines is no data set"),
        ({"dataset": "~nobody-here/x"}, (), "~nobody-here/x starts with the home folder"),
        ({"dataset": "cifar10"}, ("~nobody-here/x",), "~nobody-here/x starts with the home"),
        ({"dataset": "/dev/null"}, (), "=/dev/null is neither a file nor a folder, but a device"),
        ({"resize": 8}, (), "resize=8 has no effect with data.dataset=digits"),
        ({"dataset": "cifar10", "resize": 8}, (), "resize=8 has no effect"),
        ({"dataset": "empty.npz", "resize": 8}, (), "resize=8 has no effect"),
        ({}, ("somewhere",), "--data-dir somewhere has no effect with data.dataset=digits"),
        ({"dataset": "empty.npz"}, ("somewhere",), "--data-dir somewhere has no effect"),
        ({"dataset": "."}, ("somewhere",), "--data-dir somewhere has no effect"),
        ({}, (None, "mine"), "--data-variant 'mine' has no effect with data.dataset=digits"),
        ({"dataset": "cifar100"}, (None, "mine"), "--data-variant 'mine' has no effect"),
    ],
)
def test_arguments_without_effect_are_refused(config, arguments, message, tmp_path, monkeypatch):
    (tmp_path / "empty.npz").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.DataError, match=message) as error:
        data.load(DataConfig(**config), *arguments)
    assert "\n" not in str(error.value)


def test_a_fingerprint_depends_on_pixels_labels_classes_dtypes_and_shapes_only():
    dataset = data.load(DataConfig(train_size=20, test_size=10))
    other = dataset.train_images.copy()
    other[3, 2, 1, 0] ^= 1
    changed = [
        dataset._replace(train_images=other),
        dataset._replace(test_labels=dataset.test_labels[::-1]),
        dataset._replace(test_labels=dataset.test_labels.view(np.uint32)),
        dataset._replace(train_images=dataset.train_images.reshape(20, 4, 16, 1)),
        dataset._replace(classes=(*dataset.classes[:-1], "nine")),
        dataset._replace(classes=("01", *dataset.classes[2:])),
    ]
    prints = [data.fingerprint(each) for each in (dataset, *changed)]
    assert len(set(prints)) == len(prints)
    same = dataset._replace(variant="other", train_images=np.asfortranarray(dataset.train_images))
    assert data.fingerprint(same) == prints[0]
    assert len(prints[0]) == 64


def test_a_split_keeps_a_fifth_of_each_class():
    labels = np.repeat([0, 1, 2, 3], [50, 25, 1, 10])
    train, test = split(labels)
    assert sorted([*train, *test]) == list(range(86))
    np.testing.assert_array_equal(np.bincount(labels[test], minlength=4), [10, 5, 0, 2])
    for indices in (train, test):
        assert (np.diff(labels[indices]) < 0).any()
    np.testing.assert_array_equal(split(labels)[0], train)


def test_images_are_mixed_only_where_they_come_class_by_class():
    labels = np.repeat([2, 0, 1], 20)
    images = np.arange(60)
    mixed_images, mixed_labels = mixed(images, labels)
    assert len(set(mixed_labels[:20].tolist())) == 3
    np.testing.assert_array_equal(labels[mixed_images], mixed_labels)
    assert mixed(images, mixed_labels)[0] is images
