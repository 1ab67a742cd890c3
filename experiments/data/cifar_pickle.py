"""Reads the pickles of CIFAR's Python version without calling anything that they name.

A pickle is a program which calls functions by name. Here each name that an array needs stands for
a class that only keeps its arguments, and every other name is refused. Not even NumPy is called
with arguments from the file: sizes and dtypes are checked first.
"""

import io
import math
import pickle
from typing import Any

import numpy as np

from experiments.data.dataset import DataError


class _Call:
    """A call in a pickle, which is not made: its arguments, and the state set afterwards."""

    __slots__ = ("arguments", "state")

    arguments: tuple[Any, ...]
    state: Any

    # A pickle can leave `__init__` out, but not this.
    def __new__(cls, *arguments: Any) -> Any:
        call = super().__new__(cls)
        call.arguments, call.state = arguments, None
        return call

    # All classes need this method: without it a pickle could set their attributes.
    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Call):
    """NumPy's `_reconstruct`: state is (version, shape, dtype, column-major, bytes)."""


class _Dtype(_Call):
    """NumPy's `dtype`: the first argument is its name."""


class _Encode(_Call):
    """The call that returns bytes in pickles of Python 3 for Python 2."""

    def __new__(cls, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise ValueError(f"encoding {encoding}")
        return str.encode(text, "latin1")


_NAMES = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Call,
    ("_codecs", "encode"): _Encode,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, place: str, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._place = place

    def find_class(self, module: str, name: str) -> type[_Call]:
        if (module, name) not in _NAMES:
            raise DataError(
                f"{self._place} is a pickle that asks for {module}.{name}, which images do not "
                "need. It may be malicious, and was not run: use an official archive."
            )
        return _NAMES[module, name]


def read(place: str, content: bytes) -> dict[bytes, Any]:
    """Returns the dictionary in a pickle. Arrays in it are for `array`.

    Args:
      place: name of the file in errors.
      content: its bytes.

    Raises:
      DataError: it is damaged, holds no dictionary, or asks for a function.
    """
    try:
        found = _Unpickler(place, content).load()
    except DataError:
        raise
    except Exception as error:  # Damaged pickles raise errors of all kinds.
        raise DataError(
            f"{place} is not a pickle, or is damaged ({type(error).__name__}). Unpack the archive "
            "again."
        ) from error
    if not isinstance(found, dict):
        raise DataError(
            f"{place} holds a {type(found).__name__} instead of a dictionary: it is not from the "
            "Python version of CIFAR. Unpack the archive again."
        )
    return {
        key.encode(errors="replace") if isinstance(key, str) else key: value
        for key, value in found.items()
    }


def array(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns a uint8 array of this shape from a pickle, or None if `value` is anything else."""
    match value:
        case _Array(state=(_, found, _Dtype() as dtype, column_major, bytes() as data)):
            pass
        case _:
            return None
    if dtype.arguments[:1] not in (("u1",), (b"u1",)):
        return None
    if found != shape or len(data) != math.prod(shape):
        return None
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")
