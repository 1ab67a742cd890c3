"""Two processes that are connected over the loopback give the same results as one."""

import jax
import numpy as np
import pytest

from tests.helpers import one_device
from tests.launch import free_port, start, wait

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    output = tmp_path_factory.mktemp("processes") / "results.npz"
    port = str(free_port())
    processes = [start("tests.process", str(index), port, str(output)) for index in range(2)]
    logs = wait(processes, timeout=240)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    return np.load(output)


@pytest.mark.parametrize("name", ["shard_map", "jit"])
def test_values_state_and_gradients_are_those_of_one_device(results, name):
    wanted = jax.tree.leaves(one_device())
    for i, leaf in enumerate(wanted):
        np.testing.assert_allclose(results[f"{name}{i}"], leaf, rtol=1e-5, atol=2e-5)
