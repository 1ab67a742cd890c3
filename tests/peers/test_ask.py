"""Questions to libraries, and answers that differ from the stored ones."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests import peers
from tests.helpers import data
from tests.peers import ask


def double(_library, x, times):
    return {"x": 2 * np.asarray(x), "times": times + 1}


@pytest.fixture
def stored(monkeypatch):
    """Stores the doubles of some numbers as answers of every library. Some of them are wrong."""
    right, wrong = data((2, 3), 0), data((2, 3), 1)
    answers = [
        peers.Record("double", [right, 1], {"x": 2 * right, "times": 2}),
        peers.Record("double", [wrong, 1], {"x": 2 * wrong + 1e-4, "times": 2}),
        peers.Record("double", [right, 5], {"x": 2 * right, "times": 5}),
    ]
    monkeypatch.setattr(peers, "records", lambda library: answers)
    monkeypatch.setattr(peers, "recorded", None)
    return right, wrong


def test_a_library_that_is_not_installed_answers_as_once(stored):
    right, wrong = stored
    rounded = jnp.asarray(np.nextafter(right, 9))
    np.testing.assert_array_equal(ask("no_such_library", double, rounded, 1)["x"], 2 * right)
    np.testing.assert_array_equal(ask("no_such_library", double, wrong, 1)["x"], 2 * wrong + 1e-4)


def test_a_library_that_is_installed_answers_itself_and_as_once(stored):
    right, wrong = stored
    rounded = np.nextafter(right, 9)
    np.testing.assert_array_equal(ask("math", double, rounded, 1)["x"], 2 * rounded)
    for x, times in [(wrong, 1), (right, 5)]:
        with pytest.raises(AssertionError):
            ask("math", double, x, times)


@pytest.mark.parametrize("library", ["math", "no_such_library"])
def test_what_was_never_asked_is_an_error(stored, library):
    right, _ = stored
    for x, times in [(right + 1e-4, 1), (right, 2), (right.astype(np.float64), 1), (right[:1], 1)]:
        with pytest.raises(LookupError, match=r"python -m tests\.peers\.make"):
            ask(library, double, x, times)


def test_trees_come_back_from_their_files_in_every_bit():
    arrays = [data((2, 0)), data(5), data((), 1), data(3, 2, dtype=np.float64), np.int64(2**53 + 1)]
    tree = {"arrays": [*map(np.asarray, arrays), np.array([True, False])], "others": [None, 0.1, 3]}
    back = peers.plain(tree)
    assert back["others"] == tree["others"]
    for actual, expected in zip(back["arrays"], tree["arrays"], strict=True):
        np.testing.assert_array_equal(actual, expected, strict=True)


@pytest.mark.parametrize("library", ["torch", "haiku", "keras", "equinox"])
def test_versions_are_stored_with_the_answers(library):
    first, *_ = (peers.FOLDER / f"{library}.jsonl").read_text().splitlines()
    assert {"jax", "numpy"} < set(json.loads(first))
    assert peers.records(library)
