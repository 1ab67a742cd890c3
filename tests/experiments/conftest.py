"""The experiments' programs are compiled fast."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _compile_fast(compile_fast):
    """For every file in this folder."""
