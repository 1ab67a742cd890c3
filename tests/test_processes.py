"""Two processes that talk over the loopback give what one gives."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.test_shards import DY, MASK, X, one_device

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    output = tmp_path_factory.mktemp("processes") / "results.npz"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.process", str(index), port, str(output)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        logs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    return np.load(output)


@pytest.mark.parametrize("name", ["shard_map", "jit"])
def test_values_state_and_gradients_are_those_of_one_device(results, name):
    wanted = jax.tree.leaves(one_device(X, DY, MASK))
    for i, leaf in enumerate(wanted):
        np.testing.assert_allclose(results[f"{name}{i}"], leaf, rtol=1e-5, atol=2e-5)
