"""Where the files of CIFAR-10 or CIFAR-100 are: a folder, an archive, or a download."""

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pooch
import requests

from experiments.data.cifar_kinds import SITE, Kind, Version
from experiments.data.dataset import DataError
from experiments.data.listing import listing
from experiments.data.paths import expanded, is_special


class Files(NamedTuple):
    """Files with images.

    Attributes:
      place: the folder or archive.
      version: which files these are.
      read: returns the bytes of the file with a name, or None if there is no such file.
      official: whether this is the official archive, by its MD5.
    """

    place: Path
    version: Version
    read: Callable[[str], bytes | None]
    official: bool


def download(kind: Kind) -> Files:
    """Returns the files of the official binary archive, which is cached.

    Raises:
      DataError: the download failed.
    """
    version = kind.binary
    url = SITE + version.archive
    try:
        path = pooch.retrieve(url, f"md5:{version.md5}", path=pooch.os_cache("jbn"))
    except requests.exceptions.RequestException as error:
        raise DataError(
            f"{kind.name} could not be downloaded from {url} ({type(error).__name__}). Connect to "
            f"the internet, or pass the path of a copy of {version.archive} as --data-dir."
        ) from error
    except ValueError as error:
        raise DataError(
            f"The download from {url} is not the archive with MD5 {version.md5}, and was not kept. "
            "Try again, or pass the path of a good copy as --data-dir."
        ) from error
    return _in_archive(kind, Path(path))


def find(kind: Kind, path: Path) -> Files:
    """Returns the files at `path`: an archive, an unpacked folder, or a folder with one of them.

    Raises:
      DataError: the files are not there, or the archive cannot be read.
    """
    path = expanded(path)
    if path.is_file():
        return _in_archive(kind, path)
    try:
        held = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). {_expected(kind)}") from error
    versions = (kind.binary, kind.python)
    for version in versions:
        for folder in (path, path / version.folder):
            if any((folder / name).is_file() for name in version.images):
                return Files(folder, version, lambda name, at=folder: _read(at / name), False)
    for version in versions:
        if (path / version.archive).is_file():
            return _in_archive(kind, path / version.archive)
    raise DataError(f"{path} holds {listing(held)}. {_expected(kind)}")


def _expected(kind: Kind) -> str:
    return (
        f"--data-dir must name {kind.binary.archive}, {kind.python.archive}, one of their unpacked "
        f"folders {kind.binary.folder} and {kind.python.folder}, or a folder with one of these."
    )


def _read(path: Path) -> bytes | None:
    if is_special(path):
        raise DataError(
            f"{path} is a device or a pipe instead of a file. Unpack the archive again."
        )
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}). Check that it is a file that you may read."
        ) from error


def _in_archive(kind: Kind, path: Path) -> Files:
    wanted = {
        name for version in (kind.binary, kind.python) for name in (*version.images, version.names)
    }
    seen, contents = [], {}
    try:
        with tarfile.open(path) as archive:
            # One pass: to go back in a compressed archive means to unpack it from the start.
            for member in archive:
                name = PurePosixPath(member.name).name
                seen.append(member.name)
                file = archive.extractfile(member) if member.isfile() and name in wanted else None
                if file is not None:
                    contents[name] = file.read()
    except MemoryError:
        raise
    except Exception as error:  # Damaged archives raise errors of all kinds.
        raise DataError(
            f"{path} cannot be read as an archive ({type(error).__name__}): it is damaged, or no "
            ".tar.gz file. Download it again, or leave --data-dir out."
        ) from error
    for version in (kind.binary, kind.python):
        if any(name in contents for name in version.images):
            return Files(path, version, contents.get, _md5(path) == version.md5)
    raise DataError(f"{path} holds {listing(seen)}. {_expected(kind)}")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
