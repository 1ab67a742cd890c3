"""CIFAR-10 and CIFAR-100. The files are small and made here."""

import dataclasses
import hashlib
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests

from experiments import data
from experiments.config import DataConfig
from experiments.data import cifar_pickle
from experiments.data.cifar_kinds import KINDS

NAMES = [f"class_{i}" for i in range(100)]
TRAIN, TEST = 6, 4
BOTH = pytest.mark.parametrize("name", ["cifar10", "cifar100"])
VERSIONS = pytest.mark.parametrize("version", ["binary", "python"])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Makes the data sets small."""
    for name, kind in KINDS.items():
        kind = dataclasses.replace(kind, train_records=TRAIN, test_records=TEST)
        monkeypatch.setitem(KINDS, name, kind)


def images_of(name):
    """Returns pixels `[n, channel, row, column]` and labels of each file."""
    rng = np.random.default_rng(0)
    for records in [TRAIN] * len(KINDS[name].binary.train) + [TEST]:
        pixels = rng.integers(0, 256, (records, 3, 32, 32), np.uint8)
        yield pixels, rng.integers(0, KINDS[name].classes, records)


def string(content):
    """Returns a string in a pickle of Python 2."""
    return b"T" + len(content).to_bytes(4, "little") + content


def python2(pixels, rest):
    """Returns a pickle with the opcodes that Python 2 and NumPy 1 write, as in official files."""
    ((key, labels),) = rest.items()
    minus = b"J\xff\xff\xff\xff"
    return b"".join(
        (
            *(b"\x80\x02}(", string(b"batch_label"), string(b"some batch"), string(b"data")),
            *(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n", b"K\x00\x85"),
            *(string(b"b"), b"\x87R(K\x01K", bytes([len(pixels)]), b"M\x00\x0c\x86"),
            *(b"cnumpy\ndtype\n", string(b"u1"), b"K\x00K\x01\x87R(K\x03", string(b"|")),
            *(b"NNN", minus, minus, b"K\x00tb\x89", string(pixels.tobytes()), b"tb"),
            *(string(key), b"](", *(bytes([75, label]) for label in labels), b"eu."),
        )
    )


def write(folder, name, version, dump=python2):
    """Writes the files of a data set to `folder`."""
    kind = KINDS[name]
    files = getattr(kind, version)
    folder.mkdir(parents=True)
    for file, (pixels, labels) in zip(files.images, images_of(name), strict=True):
        if version == "binary":
            coarse = [np.full(len(labels), 255)] * (kind.labels - 1)
            columns = [*coarse, labels, pixels.reshape(len(labels), -1)]
            (folder / file).write_bytes(np.column_stack(columns).astype(np.uint8).tobytes())
        else:
            (folder / file).write_bytes(dump(pixels, {kind.labels_key: labels.tolist()}))
    if version == "binary":
        (folder / files.names).write_text("\n".join(NAMES[: kind.classes]) + "\n\n")
    else:
        names = [each.encode() for each in NAMES[: kind.classes]]
        (folder / files.names).write_bytes(pickle.dumps({kind.names_key: names}, 2))
    return folder


def packed(folder, path):
    """Packs a folder into an archive at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def load(name, *arguments):
    return data.load(DataConfig(name), *arguments)


def check(dataset, name):
    *train, test = images_of(name)
    pixels, labels = map(np.concatenate, zip(*train, strict=True))
    np.testing.assert_array_equal(dataset.train_images, pixels.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(dataset.train_labels, labels)
    np.testing.assert_array_equal(dataset.test_images, test[0].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(dataset.test_labels, test[1])
    assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.train_images.flags.c_contiguous
    assert dataset.classes == (data.CIFAR10_CLASSES if name == "cifar10" else tuple(NAMES))


@BOTH
@VERSIONS
def test_files_are_found_in_folders_and_archives(tmp_path, name, version):
    files = getattr(KINDS[name], version)
    folder = write(tmp_path / "unpacked" / files.folder, name, version)
    archive = packed(folder, tmp_path / "archives" / files.archive)
    renamed = packed(folder, tmp_path / "renamed.tgz")
    for path in (folder, folder.parent, archive, archive.parent, renamed):
        dataset = load(name, path)
        check(dataset, name)
        assert dataset.variant == f"data in {KINDS[name].name}'s format, not verified"
        assert load(name, path, "ours").variant == "ours"


@VERSIONS
def test_the_official_archive_is_known_by_its_md5(tmp_path, monkeypatch, version):
    folder = write(tmp_path / "unpacked", "cifar100", version)
    archive = packed(folder, tmp_path / "any.tar.gz")
    official(monkeypatch, "cifar100", version, archive.read_bytes())
    assert load("cifar100", archive).variant == "CIFAR-100"
    assert load("cifar100", archive, "ours").variant == "ours"
    assert "not verified" in load("cifar100", folder).variant


def official(monkeypatch, name, version, content):
    files = getattr(KINDS[name], version)
    files = dataclasses.replace(files, md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(KINDS, name, dataclasses.replace(KINDS[name], **{version: files}))


def python3(pixels, rest):
    """Returns a pickle as of Python 3, whose keys are str."""
    rest = {key.decode(): value for key, value in rest.items()}
    return pickle.dumps({"data": pixels.reshape(len(pixels), -1), **rest}, 4)


def column_major(pixels, rest):
    return pickle.dumps({b"data": np.asfortranarray(pixels.reshape(len(pixels), -1)), **rest}, 3)


def ascii_strings(pixels, rest):
    """Returns a pickle whose bytes are text and a call that encodes it."""
    rest = {key.decode(): value for key, value in rest.items()}
    return pickle.dumps({"data": pixels.reshape(len(pixels), -1), **rest}, 2)


@pytest.mark.parametrize("dump", [python3, column_major, ascii_strings])
def test_pickles_of_other_versions(tmp_path, dump):
    check(load("cifar10", write(tmp_path / "unpacked", "cifar10", "python", dump)), "cifar10")


class Call:
    """Its pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_does_not_run(tmp_path, protocol):
    folder = write(tmp_path / "unpacked", "cifar10", "python")
    trace = tmp_path / "trace"
    content = pickle.dumps({b"data": Call(os.system, f"touch {trace}")}, protocol)
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(data.DataError, match=r"data_batch_2 is .*system, which"):
        load("cifar10", folder)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()


@pytest.mark.parametrize(
    "call",
    [
        Call(eval, "1 + 1"),
        Call(getattr, "", "join"),
        Call(np.load, "x"),
        Call(np.frombuffer, b"xx", "u1"),
        Call(np.zeros, 3),
    ],
)
def test_only_what_arrays_need_is_named(call):
    with pytest.raises(data.DataError, match="images do not need"):
        cifar_pickle.read("file", pickle.dumps({b"data": call}))


def test_a_pickle_cannot_change_its_reader():
    """A pickle may set the state of what it names; here it names a class itself."""
    target = b"cnumpy\ndtype\n"
    content = b"\x80\x02" + target + b"}X\x04\x00\x00\x00evilK\x01sb."
    with pytest.raises(data.DataError, match="damaged"):
        cifar_pickle.read("file", content)
    # Its objects can also be made without __init__.
    found = cifar_pickle.read("file", b"\x80\x02}U\x01x" + target + b")\x81s.")
    assert found[b"x"].state is None
    state = b"\x80\x02" + target + b"N}X\x08\x00\x00\x00__init__K\x01s\x86b."
    with pytest.raises(data.DataError, match="damaged"):
        cifar_pickle.read("file", state)


def replaced(**changes):
    """Returns what writes a file of the Python version with other entries."""
    pixels, labels = next(images_of("cifar10"))
    entries = {"data": pixels.reshape(TRAIN, -1), "labels": labels.tolist()} | changes
    entries = {key.encode(): value for key, value in entries.items() if value is not None}
    return lambda path: path.write_bytes(pickle.dumps(entries, 3))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def text(path):
    path.write_text("some text")


def longer(path):
    path.write_bytes(path.read_bytes() + b"x")


def label(path):
    path.write_bytes(b"\xff" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("version", "change", "words"),
    [
        ("binary", cut, ["data_batch_3.bin has 18437 bytes instead of 18438", "cut short"]),
        ("binary", longer, ["data_batch_3.bin has 18439 bytes"]),
        ("binary", label, ["data_batch_3.bin holds a label outside of 0 to 9"]),
        ("binary", Path.unlink, ["data_batch_3.bin is missing"]),
        ("python", Path.unlink, ["data_batch_3 is missing"]),
        ("python", cut, ["data_batch_3 is not a pickle, or is damaged"]),
        ("python", text, ["data_batch_3 is not a pickle"]),
        ("python", lambda path: path.write_bytes(b""), ["data_batch_3 is not a pickle"]),
        ("python", lambda path: path.write_bytes(pickle.dumps([1])), ["holds a list instead"]),
        ("python", replaced(data=None), ["no array `data` of shape 6 x 3072"]),
        ("python", replaced(data=b"x" * 6 * 3072), ["no array `data`"]),
        ("python", replaced(data=np.zeros((5, 3072), np.uint8)), ["no array `data`"]),
        ("python", replaced(data=np.zeros((6, 3072), np.int8)), ["no array `data`"]),
        ("python", replaced(data=np.zeros((6, 3072), object)), ["no array `data`"]),
        ("python", replaced(data=np.zeros((6, 3072), "u1,u1")), ["no array `data`"]),
        ("python", replaced(labels=None), ["no list `labels` of 6 integers"]),
        ("python", replaced(labels=[1] * 5), ["no list `labels`"]),
        ("python", replaced(labels=["1"] * 6), ["no list `labels`"]),
        ("python", replaced(labels=np.zeros(6, np.int64)), ["no list `labels`"]),
        ("python", replaced(labels=[0] * 5 + [10]), ["label outside of 0 to 9"]),
        ("python", replaced(labels=[0] * 5 + [-1]), ["label outside of 0 to 9"]),
        ("python", replaced(labels=[0] * 5 + [10**30]), ["label outside of 0 to 9"]),
    ],
)
def test_damaged_files_are_named(tmp_path, version, change, words):
    folder = write(tmp_path / "unpacked", "cifar10", version)
    change(folder / getattr(KINDS["cifar10"], version).train[2])
    archive = packed(folder, tmp_path / "any.tar.gz")
    for path in (folder, archive):
        with pytest.raises(data.DataError) as error:
            load("cifar10", path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        for word in words:
            assert word in str(error.value)


@VERSIONS
def test_classes_of_cifar100_are_numbers_without_their_file(tmp_path, version):
    folder = write(tmp_path / "unpacked", "cifar100", version)
    names = folder / getattr(KINDS["cifar100"], version).names
    if version == "binary":
        names.write_text("apple\nbear\n")
    else:
        names.write_bytes(pickle.dumps({b"fine_label_names": [b"apple", b"bear"]}))
    with pytest.raises(data.DataError, match=f"{names.name} holds 2 names .* instead of 100"):
        load("cifar100", folder)
    unreadable = [b"\x1b[1m", *(name.encode() for name in NAMES[1:])]
    if version == "binary":
        names.write_bytes(b"\n".join(unreadable))
    else:
        names.write_bytes(pickle.dumps({b"fine_label_names": unreadable}))
    with pytest.raises(data.DataError, match=rf"{names.name}: the class '\\x1b.* unreadable name"):
        load("cifar100", folder)
    names.unlink()
    assert load("cifar100", folder).classes == tuple(map(str, range(100)))


def other_kind(folder):
    write(folder, "cifar100", "binary")


def empty(folder):
    folder.mkdir()


def many(folder):
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.txt").touch()


def no_archive(folder):
    folder.write_text("some text")


def half_an_archive(folder):
    whole = packed(write(folder.parent / "x", "cifar10", "binary"), folder.parent / "x.tar.gz")
    folder.write_bytes(whole.read_bytes()[:20_000])


def damaged_xz(folder):
    with tarfile.open(folder, "w:xz") as archive:
        archive.add(write(folder.parent / "x", "cifar10", "binary"))
    content = bytearray(folder.read_bytes())
    content[20_000:20_100] = bytes(100)
    folder.write_bytes(content)


def a_pipe(folder):
    write(folder, "cifar10", "binary")
    (folder / "data_batch_1.bin").unlink()
    os.mkfifo(folder / "data_batch_1.bin")


def other_archive(folder):
    packed(write(folder.parent / "x", "cifar100", "binary"), folder)


def not_there(folder):
    pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (not_there, ["cannot be read (No such file", "cifar-10-batches-bin", "-python.tar.gz"]),
        (empty, ["holds nothing", "--data-dir must name cifar-10-binary.tar.gz"]),
        (many, ["holds 00.txt, 01.txt, 02.txt,", "07.txt and 4 more", "-batches-py"]),
        (other_kind, ["holds fine_label_names.txt, test.bin, train.bin", "cifar-10-batches-bin"]),
        (no_archive, ["cannot be read as an archive", "leave --data-dir out"]),
        (half_an_archive, ["cannot be read as an archive"]),
        (damaged_xz, ["cannot be read as an archive", "damaged"]),
        (a_pipe, ["data_batch_1.bin is a device or a pipe"]),
        (other_archive, ["holds x, x/", "cifar-10-batches-bin"]),
    ],
)
def test_what_lies_elsewhere_is_described(tmp_path, make, words):
    path = tmp_path / "there"
    make(path)
    with pytest.raises(data.DataError) as error:
        load("cifar10", path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


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


@BOTH
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (requests.exceptions.ConnectionError("down"), "could not be downloaded"),
        (b"half an arch", "is not the archive with MD5"),
    ],
)
def test_a_failed_download_says_how_to_go_on_and_leaves_no_cache(serve, name, content, words):
    cache = serve(content)
    with pytest.raises(data.DataError, match=words) as error:
        load(name)
    assert "--data-dir" in str(error.value)
    assert KINDS[name].binary.archive in str(error.value)
    assert not cache.exists() or not any(cache.iterdir())


@BOTH
def test_the_archive_is_fetched_once_and_read(serve, monkeypatch, tmp_path, name):
    folder = write(tmp_path / KINDS[name].binary.folder, name, "binary")
    content = packed(folder, tmp_path / "served").read_bytes()
    official(monkeypatch, name, "binary", content)
    serve(content)
    check(load(name), name)
    serve(requests.exceptions.ConnectionError("down"))
    assert load(name).variant == KINDS[name].name
