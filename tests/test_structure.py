"""The way of the data through the library is short, and its public names are what `jbn` shows."""

import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import jbn

ROOT = Path(jbn.__file__).parent


def calls_below(root: Path, function, *arguments) -> list[str]:
    """The files of the Python calls that a function makes in the code below a folder, in order."""
    files = []

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(root)):
            files.append(frame.f_code.co_filename)

    sys.setprofile(profile)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return files


def test_a_training_step_is_traced_in_few_calls_files_and_hops():
    x = jnp.ones((11, 13))
    norm = jbn.batch_norm(decay=0.123)  # No other test traces this norm, or this shape.
    files = calls_below(ROOT, norm.train, *norm.init(13), x)
    hops = sum(a != b for a, b in itertools.pairwise(files))
    assert 20 < len(files) <= 45
    assert len(set(files)) <= 6
    assert hops <= 16
    assert calls_below(ROOT, norm.train, *norm.init(13), x) == files[:1], "it is traced once"


def test_dir_shows_the_public_names_and_nothing_else():
    names = dir(jbn)
    assert not [name for name in names if name.startswith("_")]
    assert {"batch_norm", "Norm", "moments", "linen", "nnx", "convert", "testing"} <= set(names)
    for name in set(names) - set(jbn.__all__):
        assert (ROOT / f"{name}.py").exists() or (ROOT / name / "__init__.py").exists()
    with pytest.raises(AttributeError, match="no attribute 'batch_nrom'"):
        jbn.batch_nrom  # pyright: ignore[reportAttributeAccessIssue] # noqa: B018


def test_no_public_name_is_both_a_module_and_a_function():
    modules = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir()}
    assert not modules & set(jbn.__all__)


FACTORIES = [
    jbn.batch_norm,
    jbn.ghost_batch_norm,
    jbn.inplace_batch_norm,
    jbn.batch_renorm,
    jbn.running_batch_norm,
    jbn.frozen,
    jbn.domain_norm,
]


@pytest.mark.parametrize("factory", FACTORIES)
def test_help_tells_every_option_and_what_the_functions_take(factory):
    options = (inspect.getdoc(factory) or "").split("Args:")[1]
    for name, parameter in inspect.signature(factory).parameters.items():
        assert f"\n  {name}: " in options
        positional = name in ("norm", "num_domains")
        assert parameter.kind is (
            parameter.POSITIONAL_OR_KEYWORD if positional else parameter.KEYWORD_ONLY
        )
    for method in (factory.train, factory.infer):
        doc = inspect.getdoc(method) or ""
        arguments = [name for name in inspect.signature(method).parameters if name != "self"]
        assert all(f"  {name}: " in doc for name in arguments)
        assert "Returns:" in doc
        assert "Raises:" in doc
        assert "[*features]" in doc


def test_importing_jbn_imports_no_flax_and_its_modules_come_when_used():
    code = (
        "import jbn, sys; assert 'flax' not in sys.modules; assert 'optax' not in sys.modules;"
        "jbn.linen.BatchNorm; jbn.nnx.fold; jbn.convert.read; jbn.testing.check_norm;"
        "jbn.activations.elu; assert 'flax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
