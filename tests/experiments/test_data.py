"""Data sets. The files in CIFAR-10's format are made here."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests

from experiments import data
from experiments.config import DataConfig

NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
CIFAR10 = DataConfig("cifar10")


def write_cifar10(folder):
    """Writes random files; returns their bytes, `[file, record, byte]`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = rng.integers(0, 256, (6, 10_000, 3073), np.uint8)
    files[:, :, 0] %= 10
    for name, records in zip(NAMES, files, strict=True):
        (folder / name).write_bytes(records.tobytes())
    return files


def test_cifar10_reads_planes_and_labels(tmp_path):
    files = write_cifar10(tmp_path / data.FOLDER)
    dataset = data.load(CIFAR10, tmp_path, "random")
    assert dataset.train_images.shape == (50_000, 32, 32, 3)
    assert dataset.test_images.shape == (10_000, 32, 32, 3)
    assert dataset.variant == "random"
    image, place = 23_456, (2, 3_456)
    assert dataset.train_labels[image] == files[place][0]
    for row, column, channel in [(0, 0, 0), (5, 7, 1), (31, 30, 2)]:
        byte = files[place][1 + 1024 * channel + 32 * row + column]
        assert dataset.train_images[image, row, column, channel] == byte
    inner = data.load(CIFAR10, tmp_path / data.FOLDER)
    np.testing.assert_array_equal(inner.test_images, dataset.test_images)
    assert "not verified" in inner.variant


def test_damaged_files_are_named(tmp_path):
    write_cifar10(tmp_path / "unpacked")
    path = tmp_path / "unpacked" / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(data.DataError, match=r"data_batch_3.bin has 30729999 bytes"):
        data.load(CIFAR10, tmp_path / "unpacked")
    path.write_bytes(b"\xff" + whole[1:])
    with pytest.raises(data.DataError, match=r"data_batch_3.bin holds a label above 9"):
        data.load(CIFAR10, tmp_path / "unpacked")
    path.unlink()
    with pytest.raises(data.DataError, match=r"data_batch_3.bin cannot be read"):
        data.load(CIFAR10, tmp_path / "unpacked")


class Server:
    """Stands for the network. It sends `content`, or raises it."""

    def __init__(self, content: bytes | Exception):
        self.content = content

    def __call__(self, url, output_file, pooch):
        if isinstance(self.content, Exception):
            raise self.content
        Path(output_file).write_bytes(self.content)


@pytest.fixture
def serve(monkeypatch, tmp_path):
    def serve(content):
        monkeypatch.setattr(pooch.core, "choose_downloader", lambda *_, **__: Server(content))
        monkeypatch.setattr(pooch, "os_cache", lambda _: tmp_path / "cache")
        return tmp_path / "cache"

    return serve


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (requests.exceptions.ConnectionError("down"), "could not be downloaded"),
        (b"half an arch", "is not the archive with MD5"),
    ],
)
def test_a_failed_download_says_how_to_go_on_and_leaves_no_cache(serve, content, words):
    cache = serve(content)
    with pytest.raises(data.DataError, match=words) as error:
        data.load(CIFAR10)
    assert "--data-dir" in str(error.value)
    assert not cache.exists() or not any(cache.iterdir())


@pytest.mark.slow
def test_the_archive_is_fetched_once_and_read(serve, monkeypatch, tmp_path):
    files = write_cifar10(tmp_path / data.FOLDER)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as archive:
        archive.add(tmp_path / data.FOLDER, data.FOLDER)
    content = buffer.getvalue()
    import hashlib

    monkeypatch.setattr(data, "MD5", hashlib.md5(content).hexdigest())
    serve(content)
    dataset = data.load(CIFAR10)
    np.testing.assert_array_equal(dataset.test_labels, files[5, :, 0])
    serve(requests.exceptions.ConnectionError("down"))
    assert data.load(CIFAR10).variant == "CIFAR-10"


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
