"""The examples in the docstrings run, and every public name has one."""

import ast
import doctest
import importlib
import inspect
import itertools
import pkgutil
from types import ModuleType

import pytest

import jbn
from tests.helpers import public_names

MODULES = ["jbn", *(module.name for module in pkgutil.walk_packages(jbn.__path__, "jbn."))]
WITHOUT_EXAMPLE = {
    "jbn.BatchNormParams",
    "jbn.BatchNormState",
    "jbn.Drift",
    "jbn.Moments",
    "jbn.Norm",
    "jbn.RunningBatchNormState",
    "jbn.Statistics",
    "jbn.convert.Foreign",
    "jbn.convert.Layer",
    "jbn.convert.LayoutName",
    "jbn.linen.Folded",
    "jbn.nnx.Folded",
}
"""Types that the functions of the library return; the examples of these functions show them."""


def docs_of_data(module: ModuleType) -> dict[str, str]:
    """The strings that follow assignments at the top level of a module, by name."""
    docs = {}
    for node, after in itertools.pairwise(ast.parse(inspect.getsource(module)).body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            docs[ast.unparse(target)] = ast.literal_eval(after.value)
    return docs


NAMES = public_names()


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"jbn": jbn})
    assert results.failed == 0
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for data, doc in docs_of_data(module).items():
        runner.run(parser.get_doctest(doc, {"jbn": jbn}, f"{name}.{data}", module.__file__, 0))
    assert runner.failures == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_EXAMPLE])
def test_every_public_name_has_an_example(name):
    path, attribute = name.rsplit(".", 1)
    module = importlib.import_module(path)
    doc = docs_of_data(module).get(attribute) or inspect.getdoc(getattr(module, attribute))
    assert ">>> " in (doc or "")


def test_only_public_names_go_without_example():
    assert set(NAMES) >= WITHOUT_EXAMPLE


def test_every_activation_is_public():
    classes = {kind for kind in vars(jbn.activations).values() if inspect.isclass(kind)}
    own = {kind.__name__ for kind in classes if kind.__module__ == "jbn.activations"}
    assert own == set(jbn.activations.__all__)
