"""Data sets in `.npz` files."""

import io
import zipfile

import numpy as np
import pytest

from experiments.config import DataConfig
from experiments.data import DataError, load, load_tests

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 4, 6, 3), np.uint8)
LABELS = RNG.permutation(np.arange(30) % 3)
PARTS = {
    "train_images": IMAGES[:20],
    "train_labels": LABELS[:20],
    "test_images": IMAGES[20:],
    "test_labels": LABELS[20:],
}
WHOLE = {"images": IMAGES, "labels": LABELS}


@pytest.fixture
def read(tmp_path):
    def read(arrays, *variant, load=load, **config):
        path = tmp_path / "mine.npz"
        path.write_bytes(arrays) if isinstance(arrays, bytes) else np.savez(path, **arrays)
        return load(DataConfig(str(path), **config), None, *variant)

    return read


def test_training_and_test_images_keep_their_order(read):
    dataset = read(PARTS)
    for found, array in zip(dataset, PARTS.values(), strict=False):
        np.testing.assert_array_equal(found, array)
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.classes == ("0", "1", "2")
    assert dataset.variant == "mine.npz"
    assert read(PARTS, "ours").variant == "ours"
    part = read(PARTS, train_size=7, test_size=1, shrink=2)
    assert part.train_images.shape == (7, 2, 3, 3)
    assert part.variant == "mine.npz, shrunk to 3x2"


def test_a_fifth_of_images_becomes_the_test_set(read):
    dataset = read(WHOLE | {"classes": np.array(["cat", "dog", "axolotl"])})
    assert dataset.classes == ("cat", "dog", "axolotl")
    assert dataset.variant == "mine.npz, a fifth of each class kept for tests"
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), [2, 2, 2])
    places = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    found = {}
    for images, labels in (dataset[:2], dataset[2:4]):
        found |= {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert found == places


def test_grey_images_get_a_channel_and_sorted_ones_are_mixed(read):
    labels = np.sort(LABELS).astype(np.uint64)
    images = np.tile(labels.astype(np.uint8)[:, None, None], (1, 5, 5))
    parts = {"train_images": images, "train_labels": labels}
    dataset = read(parts | {"test_images": images, "test_labels": labels})
    assert dataset.train_images.shape == (30, 5, 5, 1)
    for found, numbers in (dataset[:2], dataset[2:4]):
        assert len(set(numbers[:10].tolist())) == 3
        np.testing.assert_array_equal(found[:, 0, 0, 0], numbers)


def test_strings_are_numbered_by_name_or_by_classes(read):
    names = np.array(["emu", "bee", "ant"])
    dataset = read(PARTS | {key: names[PARTS[key]] for key in ("train_labels", "test_labels")})
    assert dataset.classes == ("ant", "bee", "emu")
    np.testing.assert_array_equal(dataset.train_labels, 2 - LABELS[:20])
    dataset = read(WHOLE | {"labels": names[LABELS], "classes": names})
    assert dataset.classes == ("emu", "bee", "ant")
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), [8, 8, 8])


@pytest.mark.parametrize(
    ("arrays", "labels", "classes"),
    [
        ({"labels": 2 * LABELS + 1}, 2 * LABELS + 1, None),
        ({"labels": LABELS // 2, "classes": np.array(list("abc"))}, LABELS // 2, tuple("abc")),
        ({"labels": np.array(["b", "a", "c"])[LABELS]}, np.array([1, 0, 2])[LABELS], tuple("abc")),
        ({"images": IMAGES[:1], "labels": LABELS[:1] - 7}, LABELS[:1] - 7, None),
        (PARTS | {"test_labels": LABELS[20:] + 9}, LABELS[20:] + 9, None),
        ({"test_images": IMAGES[:3], "test_labels": LABELS[:3]}, LABELS[:3], None),
    ],
)
def test_images_of_some_classes_evaluate_a_network(read, arrays, labels, classes):
    arrays = {"images": IMAGES} | arrays
    tests = read(arrays, load=load_tests, test_size=1)
    np.testing.assert_array_equal(tests.images, arrays.get("test_images", arrays["images"]))
    np.testing.assert_array_equal(tests.labels, labels)
    assert tests.classes == classes
    assert tests.variant == "mine.npz"
    assert read(arrays, "ours", load=load_tests, shrink=2).variant == "ours, shrunk to 3x2"


def test_what_holds_no_test_images_does_not_evaluate_a_network(read):
    with pytest.raises(DataError, match="It must hold test_images, test_labels, or images"):
        read({"x": IMAGES}, load=load_tests)
    with pytest.raises(DataError, match="from 0 to 2, and there are 1 classes"):
        read(WHOLE | {"classes": np.array(["a"])}, load=load_tests)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(images, compression):
    """Returns a file with these bytes as its images."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("images.npy", images)
        file.writestr("labels.npy", npy(LABELS))
    return buffer.getvalue()


def claiming(shape):
    """Returns a file whose images have another shape in their header."""
    content = npy(IMAGES)
    header = content[10:128].replace(b"(30, 4, 6, 3)", shape)
    length = len(header).to_bytes(2, "little")
    return zipped(content[:8] + length + header + content[128:], zipfile.ZIP_STORED)


def damaged(compression):
    content = bytearray(zipped(npy(IMAGES), compression))
    content[200:220] = bytes(20)
    return bytes(content)


def no_characters():
    """Returns strings of numbers that are no characters."""
    return np.full((len(LABELS), 1), 2**31 - 1, np.uint32).view("<U1")[:, 0]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (b"", ["no .npz file"]),
        (b"some text", ["no .npz file", "numpy.savez"]),
        (npz(**WHOLE)[:-30], ["damaged"]),
        (npz(**WHOLE)[:300].ljust(9000, b"x"), ["damaged"]),
        (damaged(zipfile.ZIP_DEFLATED), ["damaged"]),
        (damaged(zipfile.ZIP_BZIP2), ["damaged"]),
        (damaged(zipfile.ZIP_LZMA), ["damaged"]),
        (claiming(b"(1000000000000, 8, 8)"), ["too large for the memory", "or is damaged"]),
        (claiming(b"(1" + b"0" * 400 + b", 8, 8)"), ["damaged"]),
        (claiming(b"(30, 4, 6"), ["damaged"]),
        (WHOLE | {"labels": no_characters()}, ["damaged"]),
        (WHOLE | {"labels": np.array(["a", "b", "\ud800"])[LABELS]}, [r"class '\ud800'", "Rename"]),
        (WHOLE | {"classes": np.array(["a", "b", "\x1b[1m"])}, [r"class '\x1b[1m'", "Rename"]),
        (npy(IMAGES), ["a single array"]),
        ({"x": IMAGES, "y": LABELS}, ["holds x, y", "train_images", "images and labels"]),
        ({key: PARTS[key] for key in list(PARTS)[:3]}, ["holds test_images, train_images"]),
        ({}, ["holds nothing"]),
        ({"two\nlines": LABELS}, ["holds 'two\\nlines'. It must"]),
        (WHOLE | {"images": IMAGES / 255}, ["images is float64", "must be uint8"]),
        (WHOLE | {"images": IMAGES.astype(int)}, ["images is int64"]),
        (WHOLE | {"images": IMAGES[0]}, ["labels has shape (30,)", "images has 4 images"]),
        (WHOLE | {"images": IMAGES[None]}, ["of shape (1, 30, 4, 6, 3)"]),
        (PARTS | {"test_images": IMAGES[:0]}, ["test_images", "(0, 4, 6, 3)", "not empty"]),
        (PARTS | {"test_images": IMAGES[20:, :2]}, ["train_images are 6x4 with 3", "are 6x2"]),
        (PARTS | {"test_labels": LABELS}, ["test_labels has shape (30,)", "has 10 images"]),
        (WHOLE | {"labels": LABELS[:, None]}, ["labels has shape (30, 1)", "(30,)"]),
        (WHOLE | {"labels": LABELS / 1}, ["labels is float64", "integers"]),
        (WHOLE | {"labels": LABELS > 0}, ["labels is bool"]),
        (WHOLE | {"labels": LABELS - 1}, ["from -1 to 1", "from 0 without gaps"]),
        (WHOLE | {"labels": LABELS + 1}, ["from 1 to 3", "from 0 without gaps"]),
        (WHOLE | {"labels": LABELS * 10**12}, ["to 2000000000000, without 1"]),
        (PARTS | {"test_labels": LABELS[20:] + 1}, ["train_labels lacks class '3'"]),
        (PARTS | {"test_labels": LABELS[20:].astype(str)}, ["test_labels is <U", "or str"]),
        (PARTS | {"train_labels": LABELS[:20] % 2}, ["train_labels lacks class '2'"]),
        (WHOLE | {"classes": np.array(["a", "b"])}, ["from 0 to 2", "there are 2 classes"]),
        (WHOLE | {"classes": np.array(list("abcd"))}, ["labels lacks class 'd'"]),
        (WHOLE | {"classes": np.array(list("aba"))}, ["classes", "a different string"]),
        (WHOLE | {"classes": np.arange(3)}, ["classes is int64"]),
        (
            WHOLE | {"labels": LABELS.astype(str), "classes": np.array(["0", "1"])},
            ["labels holds '2'", "classes lacks"],
        ),
        (WHOLE | {"labels": LABELS.astype(object)}, ["Python objects"]),
        ({"images": IMAGES[:2], "labels": LABELS[:2] * 0}, ["2 images are too few"]),
    ],
)
def test_other_contents_are_refused_in_one_line(read, arrays, words):
    with pytest.raises(DataError) as error:
        read(arrays)
    message = str(error.value)
    assert "mine.npz" in message
    assert "\n" not in message
    for word in words:
        assert word in message
