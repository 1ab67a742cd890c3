"""Results of other libraries, which need not be installed.

    def fuse(torch, kernel, mean, var): ...

    fused = ask("torch", fuse, kernel, mean, var)

A question is a function of the library, with further arguments. The answers to all questions of the
tests are stored beside this file in `<library>.jsonl`. The first line of a file holds the versions
of the library, JAX and NumPy. `python -m tests.peers.make` asks all questions again, and stores the
answers.
"""

import functools
import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

FOLDER = Path(__file__).parent
TOLERANCES = {"float32": 2e-6, "float64": 1e-14}
"""Tolerances by dtype: several times the changes that we saw with another CPU or another JAX."""


class Record(NamedTuple):
    """A question and its answer, as trees of numbers, arrays and None."""

    function: str
    arguments: Any
    answer: Any


recorded: dict[str, list[Record]] | None = None
"""Questions to each library and its answers while `make` runs, else None."""


def ask(library: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns `function(library, *arguments)`, a tree of numbers and arrays.

    If the library is installed, it answers, and its answer must equal the stored one. Otherwise the
    answer is the stored one.

    Raises:
      AssertionError: the answer of the library differs from the stored one.
      LookupError: no answer is stored for these arguments.
    """
    question = function.__name__, plain(arguments)
    if importlib.util.find_spec(library) is None:
        return stored_answer(library, *question)
    answer = function(importlib.import_module(library), *arguments)
    if recorded is None:
        assert_close(plain(answer), stored_answer(library, *question))
    else:
        recorded.setdefault(library, []).append(Record(*question, plain(answer)))
    return answer


def stored_answer(library: str, function: str, arguments: Any) -> Any:
    """Returns the stored answer to a question, whose numbers may differ by rounding."""
    for record in records(library):
        if record.function == function and is_close(record.arguments, arguments):
            return record.answer
    raise LookupError(
        f"No answer of {library} to {function}{arguments} is stored. "
        "`python -m tests.peers.make` stores the answers to all questions of the tests."
    )


@functools.cache
def records(library: str) -> list[Record]:
    """Returns the stored questions to a library and its answers."""
    _, *lines = (FOLDER / f"{library}.jsonl").read_text().splitlines()
    return [Record(*json.loads(line, object_hook=from_json)) for line in lines]


def assert_close(actual: Any, expected: Any) -> None:
    """Checks that two trees are equal but for the rounding of their floating point numbers."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        if tolerance := TOLERANCES.get(a.dtype.name):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(a, b)


def is_close(actual: Any, expected: Any) -> bool:
    """Returns whether `assert_close` passes."""
    try:
        assert_close(actual, expected)
    except AssertionError:
        return False
    return True


def plain(tree: Any) -> Any:
    """Returns a tree of dictionaries and sequences in the form that it has after it is stored."""
    return json.loads(json.dumps(tree, default=to_json), object_hook=from_json)


def to_json(array: Any) -> dict[str, Any]:
    """Returns an array of any library in a form that JSON can hold."""
    array = np.asarray(array)
    values = (
        array.astype(str).astype(float) if array.dtype == np.float32 else array
    )  # 0.1 is short.
    return {"dtype": array.dtype.name, "values": values.tolist()}


def from_json(content: dict[str, Any]) -> Any:
    """Returns the array from the result of `to_json`, and other dictionaries unchanged."""
    if content.keys() == {"dtype", "values"}:
        return np.array(content["values"], content["dtype"])
    return content
