"""Asks the installed libraries all questions of the tests, and stores their answers.

Command: python -m tests.peers.make
The stored answers of a library that is not installed stay unchanged. To ask all libraries, install
torch, keras, dm-haiku and equinox.
"""

import json
import sys
from importlib.metadata import packages_distributions, version

import pytest

from tests import peers

TESTS = (
    "tests/test_convert.py",
    "tests/test_fold.py::test_torch_fuses_to_the_same_weights",
    "tests/test_methods.py::test_renorm_agrees_with_keras",
    "tests/experiments/test_trajectories.py",
)


def main() -> int:
    """Runs the tests that ask questions; returns 0 if they pass and the answers are stored."""
    peers.recorded = {}
    if code := pytest.main(["-q", "-n0", *TESTS]):
        return code
    for library, records in peers.recorded.items():
        distribution = packages_distributions()[library][0]
        versions = {name: version(name) for name in (distribution, "jax", "numpy")}
        lines = {json.dumps(record, default=peers.to_json): None for record in records}
        content = "\n".join([json.dumps(versions), *lines]) + "\n"
        (peers.FOLDER / f"{library}.jsonl").write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
