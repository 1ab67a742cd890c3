"""The benchmark of whole training steps, for CPU devices."""

import pytest

from experiments.benchmarks.training_step import measure
from experiments.config import Config
from experiments.models import Small

SMALL = Config("", model=Small(width=8, depth=2), batch_size=16)


@pytest.mark.slow
def test_a_step_talks_between_devices_twice_a_norm_at_least_and_needs_less_memory_of_each():
    one, eight = (measure(SMALL, (64, 16, (8, 8, 1)), "cpu", count) for count in (1, 8))
    assert one["norms"] == eight["norms"] == 2
    assert one["collectives"] == 0
    assert eight["collectives"] > 2 * eight["norms"]
    assert 0 < eight["temp_bytes"] < one["temp_bytes"]
