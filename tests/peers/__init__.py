"""What other libraries compute, also where they are not installed.

    def fuse(torch, kernel, mean, var): ...

    fused = ask("torch", fuse, kernel, mean, var)

A question is a function of the library, with its further arguments. The answers to all questions of
the tests are stored beside this file, in `<library>.jsonl`, whose first line has the versions of
what gave them. `python -m tests.peers.make` asks again and stores.
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
"""By dtype: several times what another CPU or another JAX changed when it was tried."""


class Record(NamedTuple):
    """A question and its answer, as trees of numbers, arrays and None."""

    function: str
    arguments: Any
    answer: Any


recorded: dict[str, list[Record]] | None = None
"""What was asked of each library and what it answered, while `make` asks; else None."""


def ask(library: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns `function(library, *arguments)`, a tree of numbers and arrays.

    Where the library is installed it answers, and must answer what is stored. Elsewhere the answer
    is the stored one.

    Raises:
      AssertionError: the library answers otherwise.
      LookupError: nothing is stored for these arguments.
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
        f"no answer of {library} to {function}{arguments} is stored; "
        "`python -m tests.peers.make` stores those to all questions of the tests."
    )


@functools.cache
def records(library: str) -> list[Record]:
    """Returns what is stored of a library."""
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
    """Returns a tree of dictionaries and sequences as it comes back from its file."""
    return json.loads(json.dumps(tree, default=to_json), object_hook=from_json)


def to_json(array: Any) -> dict[str, Any]:
    """Returns an array of any library as JSON has it."""
    array = np.asarray(array)
    values = (
        array.astype(str).astype(float) if array.dtype == np.float32 else array
    )  # 0.1 is short.
    return {"dtype": array.dtype.name, "values": values.tolist()}


def from_json(content: dict[str, Any]) -> Any:
    """Returns the array of what `to_json` made, and other dictionaries as they are."""
    if content.keys() == {"dtype", "values"}:
        return np.array(content["values"], content["dtype"])
    return content
