"""jbn has none of the known defects of batch norm. Flax shows that the cases find them."""

import json

import pytest

from experiments.benchmarks import layers, peers

CASES = {case.name: case for case in peers.CASES}


@pytest.mark.parametrize("name", CASES)
def test_jbn_is_right(name):
    case = CASES[name]
    assert case.is_right(peers.measure(case, layers.make_jbn))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")  # Flax's, in float64.
def test_flax_is_wrong_where_the_stored_table_says_so():
    rows = json.loads(peers.RESULTS.read_text())["rows"]
    stored = {row["case"]: row["is_right"]["flax.linen"] for row in rows}
    assert set(stored) == set(CASES)
    for name, case in CASES.items():
        value = peers.measure(case, layers.make_linen)
        assert (None if value is None else case.is_right(value)) == stored[name]
