"""Data sets in folders of images."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.config import DataConfig
from experiments.data import DataError, load, load_tests
from experiments.data.image_files import read_one

RNG = np.random.default_rng(0)


def write(path, value=None, size=(6, 4), mode="RGB", **options):
    """Writes an image of one value, or of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = RNG.integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise if value is None else np.full_like(noise, value))
    image.convert(mode).save(path, **options)


def classes(folder, number=10, **options):
    """Writes images of three classes, whose pixels are ten times the label."""
    for label, name in enumerate(("ant", "bee", "emu")):
        for i in range(number):
            write(folder / name / f"{i}.png", 10 * label, **options)


def read(folder, *variant, **config):
    return load(DataConfig(str(folder), **config), None, *variant)


def test_a_fifth_of_each_class_becomes_the_test_set(tmp_path):
    folder = tmp_path / "insects"
    classes(folder)
    (folder / "README.md").touch()
    (folder / "ant" / "Thumbs.db").touch()
    (folder / "ant" / "._0.png").write_bytes(b"not an image")
    (folder / ".cache" / "x").mkdir(parents=True)
    (folder / "__MACOSX").mkdir()
    dataset = read(folder)
    assert dataset.train_images.shape == (24, 4, 6, 3)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.classes == ("ant", "bee", "emu")
    assert dataset.variant == "insects, a fifth of each class kept for tests"
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), [2, 2, 2])
    for images, labels in (dataset[:2], dataset[2:4]):
        np.testing.assert_array_equal(images[:, 0, 0, 0], 10 * labels)
    assert set(read(folder, "ours", train_size=8).train_labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_folders_of_training_and_test_images(tmp_path, test):
    classes(tmp_path / "train")
    for i in range(3):
        write(tmp_path / test / "bee" / f"{i}.bmp", i)
    dataset = read(tmp_path, "ours")
    np.testing.assert_array_equal(dataset.test_labels, [1, 1, 1])
    np.testing.assert_array_equal(np.sort(dataset.test_images[:, 0, 0, 0]), [0, 1, 2])
    np.testing.assert_array_equal(dataset.train_images[:, 0, 0, 0], 10 * dataset.train_labels)
    assert len(set(dataset.train_labels[:10].tolist())) == 3
    assert dataset.variant == "ours"


@pytest.mark.parametrize("test", ["", "test"])
def test_images_of_some_classes_evaluate_a_network(tmp_path, test):
    """All are used if they are not divided; otherwise those in the folder of tests."""
    if test:
        classes(tmp_path / "train", 1)
    write(tmp_path / test / "yak" / "0.png", 7)
    write(tmp_path / test / "bee" / "0.png", 5)
    tests = load_tests(DataConfig(str(tmp_path), resize=8, test_size=1))
    assert tests.images.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(np.sort(tests.images[:, 0, 0, 0]), [5, 7])
    np.testing.assert_array_equal(tests.images[:, 0, 0, 0], 5 + 2 * tests.labels)
    assert tests.classes == ("bee", "yak")
    assert tests.variant == f"{tmp_path.name}, resized to 8x8"


def test_a_class_may_be_named_train(tmp_path):
    for name in ("train", "tram"):
        for i in range(5):
            write(tmp_path / name / f"{i}.png")
    assert read(tmp_path).classes == ("train", "tram")


def test_grey_images_have_one_channel_unless_some_are_coloured(tmp_path):
    classes(tmp_path, mode="L")
    write(tmp_path / "ant" / "0.png", 0, mode="LA")
    write(tmp_path / "ant" / "1.png", 0, mode="1")
    dataset = read(tmp_path)
    assert dataset.train_images.shape == (24, 4, 6, 1)
    np.testing.assert_array_equal(dataset.train_images[:, 0, 0, 0], 10 * dataset.train_labels)
    write(tmp_path / "emu" / "3.png", 20)
    dataset = read(tmp_path)
    assert dataset.train_images.shape == (24, 4, 6, 3)
    np.testing.assert_array_equal(dataset.train_images[:, 0, 0, 2], 10 * dataset.train_labels)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("x.JPG", "RGB", {}),
        ("x.jpeg", "CMYK", {}),
        ("x.webp", "RGBA", {}),
        ("x.png", "P", {"transparency": bytes(9)}),
        ("x.gif", "P", {}),
        ("x.tiff", "RGB", {}),
    ],
)
def test_formats(tmp_path, name, mode, options):
    classes(tmp_path, 2)
    write(tmp_path / "ant" / name, 200, mode=mode, **options)
    dataset = read(tmp_path)
    largest = max(dataset.train_images.max(), dataset.test_images.max())
    assert 190 <= largest <= 210


def test_images_of_several_sizes_are_resized(tmp_path):
    classes(tmp_path)
    write(tmp_path / "emu" / "3.png", 20, size=(40, 20))
    dataset = read(tmp_path, resize=8)
    assert dataset.test_images.shape == (6, 8, 8, 3)
    assert dataset.variant.startswith(f"{tmp_path.name}, resized to 8x8, ")
    np.testing.assert_array_equal(dataset.train_images[:, 7, 0, 1], 10 * dataset.train_labels)


def test_photographs_are_turned(tmp_path):
    classes(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: a quarter turn.
    write(tmp_path / "ant" / "x.jpg", size=(4, 6), exif=exif)
    assert read(tmp_path).train_images.shape == (25, 4, 6, 3)


def empty(folder):
    folder.mkdir(parents=True, exist_ok=True)


def flat(folder):
    write(folder / "0.png")


def without_images(folder):
    (folder / "ant").mkdir(parents=True)
    (folder / "ant" / "notes.txt").touch()


def nested(folder):
    classes(folder)
    write(folder / "bee" / "old" / "0.png")


def empty_class(folder):
    classes(folder)
    (folder / "cow").mkdir()


def without_test(folder):
    classes(folder / "train")


def unknown_class(folder):
    classes(folder / "train")
    write(folder / "test" / "cow" / "0.png")


def without_test_images(folder):
    classes(folder / "train")
    (folder / "test").mkdir()


def several_sizes(folder):
    classes(folder)
    write(folder / "emu" / "3.png", size=(5, 5))


def several_sizes_in_parts(folder):
    classes(folder / "train")
    classes(folder / "test", size=(5, 5))


def unreadable(folder):
    classes(folder)
    (folder / "bee" / "3.png").write_bytes(b"not an image")


def cut_short(folder):
    classes(folder)
    path = folder / "bee" / "3.png"
    write(path)
    path.write_bytes(path.read_bytes()[:-40])


def sixteen_bits(folder):
    classes(folder)
    Image.fromarray(np.full((4, 6), 999, np.uint16)).save(folder / "ant" / "3.png")


def pipe(folder):
    classes(folder)
    os.mkfifo(folder / "bee" / "pipe.png")


def dangling(folder):
    classes(folder)
    (folder / "bee" / "3.png").unlink()
    (folder / "bee" / "3.png").symlink_to("nowhere")


def line_break(folder):
    classes(folder)
    (folder / "bee" / "two\nlines.png").touch()


def unreadable_name(folder):
    classes(folder)
    (folder / "bee").rename(folder / "b\nee")


def few(folder):
    write(folder / "ant" / "0.png")


@pytest.mark.parametrize(
    ("make", "config", "words"),
    [
        (empty, {}, ["holds no folder with images", "CLASS/IMAGE", "train/CLASS/IMAGE"]),
        (flat, {}, ["holds no folder with images", "CLASS/IMAGE"]),
        (without_images, {}, ["holds no folder with images"]),
        (nested, {}, ["bee/old is a folder in a folder of images"]),
        (empty_class, {}, ["cow holds no images", "remove"]),
        (without_test, {}, ["holds train/", "no test/"]),
        (unknown_class, {}, ["test/cow", "training images of this class"]),
        (without_test_images, {}, ["test holds no folder with images"]),
        (several_sizes, {}, ["ant/0.png is 6x4", "emu/3.png is 5x5", "--data.resize"]),
        (several_sizes_in_parts, {}, ["train/ant/0.png is 6x4", "test/ant/0.png is 5x5"]),
        (unreadable, {}, ["bee/3.png cannot be read as an image", "remove"]),
        (cut_short, {}, ["bee/3.png cannot be read as an image"]),
        (sixteen_bits, {}, ["ant/3.png has more than 8 bits"]),
        (pipe, {}, ["bee/pipe.png is a device or a pipe", "Remove"]),
        (dangling, {}, ["bee/3.png does not exist", "if it is a link"]),
        (line_break, {}, [r"bee/two\nlines.png cannot be read as an image"]),
        (unreadable_name, {}, [r"class 'b\nee' has an unreadable name", "Rename"]),
        (few, {}, ["1 images are too few"]),
        (classes, {"resize": 0}, ["data.resize=0 must be at least 1"]),
    ],
)
def test_other_folders_are_refused_in_one_line(tmp_path, make, config, words):
    folder = tmp_path / "mine"
    make(folder)
    with pytest.raises(DataError) as error:
        read(folder, **config)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_image_that_is_not_there():
    with pytest.raises(DataError, match=r"nowhere.png does not exist"):
        read_one(Path("nowhere.png"), (4, 6, 3), DataConfig())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("large", [True, False])
def test_one_image_is_shrunk_as_those_of_a_folder(tmp_path, channels, large):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, channels), np.uint8)
    paths = [tmp_path / name / f"{number}.png" for name in ("ant", "bee") for number in range(5)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(path)
    expected = read(tmp_path, shrink=3 if large else 1).train_images[0]
    image = read_one(paths[0], expected.shape, DataConfig("", shrink=3))
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (5, 9)])
def test_one_image_is_resized_and_shrunk_as_those_of_a_folder(tmp_path, size):
    for path in (tmp_path / name / f"{i}.png" for name in ("ant", "bee") for i in range(5)):
        write(path, size=size)
    config = DataConfig(str(tmp_path), resize=8, shrink=2)
    dataset = load(config)
    images = {read_one(path, (4, 4, 3), config).tobytes() for path in tmp_path.rglob("*.png")}
    assert {image.tobytes() for image in (*dataset.train_images, *dataset.test_images)} == images
