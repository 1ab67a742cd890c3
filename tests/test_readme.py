"""The README's code runs as printed, its blocks in order and in one namespace."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run():
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert int(namespace["state"].count) == 1
    assert namespace["y"].shape == namespace["x"].shape
    mixed = namespace["batch_and_running_mixed"]
    params, state, x = (namespace[name] for name in ("params", "state", "x"))
    inference = namespace["norm"].infer(params, state, x)
    assert abs(mixed(params, state, x, share=0.0) - inference).max() < 1e-6


def test_commands_are_printed_once():
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert [c for c in commands if "experiments.train" in c] == [
        'python -m pip install -e ".[experiments]" && python -m experiments.train'
    ]
    assert [c for c in commands if "pytest" in c] == [
        'python -m pip install -e ".[dev]" && python -m pytest'
    ]
