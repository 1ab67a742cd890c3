"""The README's code runs as printed, its blocks in order and in one namespace."""

import importlib
import re
import shlex
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

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
    assert [c for c in commands if c.endswith("experiments.train")] == [
        'python -m pip install -e ".[experiments]" && python -m experiments.train'
    ]
    assert [c for c in commands if "pytest" in c] == [
        'python -m pip install -e ".[dev]" && python -m pytest'
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # The open file.
def test_commands_for_own_images_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (1000, 12, 12, 3), np.uint8)
    labels = (images.mean((1, 2)).argmax(-1)).astype(np.int64)
    np.savez("images.npz", images=images, labels=labels)
    Image.fromarray(images[0]).save("photo.png")
    (block,) = (block for block in blocks("bash") if "images.npz" in block)
    # The networks promote ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for line in block.splitlines():
            _, _, module, *arguments = shlex.split(line)
            if module == "experiments.train":
                arguments += ["--devices", "1", "--epochs", "1"]
            assert importlib.import_module(module).main(arguments) == 0
        assert "photo.png: " in capsys.readouterr().out
        (call,) = re.findall(r"`(jax\.export\.deserialize.*)`", README)
        assert eval(call).shape == (1000, 3)
