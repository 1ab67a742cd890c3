"""The examples in the docstrings run, and every public name has one."""

import doctest
import importlib
import pkgutil

import pytest

import jbn

MODULES = [module.name for module in pkgutil.walk_packages(jbn.__path__, "jbn.")]
WITHOUT_EXAMPLE = {
    "BatchNormParams",
    "BatchNormState",
    "Drift",
    "Moments",
    "Norm",
    "RunningBatchNormState",
    "Statistics",
}
"""Types that the functions of the library return; the examples of these functions show them."""


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"jbn": jbn})
    assert results.failed == 0


@pytest.mark.parametrize("name", sorted(set(jbn.__all__) - WITHOUT_EXAMPLE - {"save_norm_inputs"}))
def test_every_public_function_has_an_example(name):
    assert ">>> " in getattr(jbn, name).__doc__
