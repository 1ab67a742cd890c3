"""The README's code runs as printed, its blocks in order and in one namespace."""

import re
from pathlib import Path

import jax

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run():
    namespace = {}
    # Optax and Flax promote dtypes.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), namespace)
    assert int(namespace["state"].count) == 16
    assert namespace["prediction"].shape == (1,)
    assert namespace["updates"]["batch_stats"]
    assert namespace["y"].shape == namespace["x"].shape == (512, 8)
    assert namespace["layer"].use_running_average


def test_commands_are_printed_once():
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert [c for c in commands if "experiments.train" in c] == [
        'python -m pip install -e ".[experiments]" && python -m experiments.train'
    ]
    assert [c for c in commands if "pytest" in c] == [
        'python -m pip install -e ".[dev]" && python -m pytest'
    ]
