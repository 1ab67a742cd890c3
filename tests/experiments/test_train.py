"""The training command, tested on a few digits."""

import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from experiments import train
from experiments.train import RunError
from tests.helpers import slow_but_for

SMALL = [
    *("digits", "--data.train-size", "512", "--model.widths", "8", "16", "16"),
    *("--epochs", "2", "--eval-batch-size", "360"),
]


def run(folder, *flags):
    return train.carry_out(train.parse([*SMALL, "--output", str(folder), *flags]))


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if line["kind"] == "train"])


def checkpoint(folder):
    """Returns the parameters and statistics of the newest checkpoint."""
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(folder.absolute() / "checkpoints" / "newest")
    return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, "--devices", "1")
    return folder


def test_a_run_writes_its_folder(whole):
    names = {path.name for path in whole.iterdir()}
    plots = {f"{n}.png" for n in ("curves", "learning_rate", "modes", "drift", "confusion")}
    files = {"config.json", "environment.json", "metrics.jsonl", "summary.json", "report.md"}
    assert names == {"checkpoints"} | files | plots
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 16
    assert 0 <= summary["accuracy"] <= 1
    assert len(losses(whole)) == 16


@pytest.mark.filterwarnings("ignore:Couldn't find sharding info:UserWarning")
@pytest.mark.parametrize("damage", slow_but_for([False], [False, True]))
def test_stop_and_resume_equals_a_run_in_one_piece_bitwise(whole, tmp_path, damage):
    """With `damage`, the newest checkpoint is cut short and the one before it is used."""
    folder = tmp_path / "run"

    def stop_when_half_done():
        metrics = folder / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 11:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_half_done, daemon=True).start()
    with pytest.raises(train.Interrupted, match="--resume"):
        run(folder, "--devices", "1")
    assert 8 < len(losses(folder)) < 16
    if damage:
        newest = folder / "checkpoints" / "newest"
        step = max(int(path.name) for path in newest.iterdir())
        for path in (newest / str(step)).rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:10])
    train.carry_out(train.parse(["--resume", str(folder), "--devices", "1"]))
    np.testing.assert_array_equal(losses(folder), losses(whole))
    for a, b in zip(
        jax.tree.leaves(checkpoint(folder)), jax.tree.leaves(checkpoint(whole)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_eight_devices_give_the_same_curve(whole, tmp_path):
    run(tmp_path / "run", "--devices", "8")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole), rtol=2e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    folder = tmp_path / "run"
    flags = ["--devices", "1", "--norm.method", "none", "--optimizer.learning-rate", "1e20"]
    with pytest.raises(RunError, match="loss of step"):
        run(folder, *flags, "--eval-every", "0.125")
    assert np.isfinite(losses(folder)).all()
    assert any((folder / "checkpoints" / "newest").iterdir())


def test_a_changed_configuration_is_refused_with_the_difference(whole):
    with pytest.raises(RunError, match=r"norm.decay: 0.9 -> 0.5"):
        train.carry_out(train.parse(["--resume", str(whole), "--norm.decay", "0.5"]))


def test_a_folder_with_a_run_is_not_written_over(whole):
    with pytest.raises(RunError, match="holds a run"):
        run(whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "choose one of"),
        (["--resume", "nowhere"], "config.json is missing"),
        (["cifar10", "--data-dir", "nowhere"], "cannot be read"),
        (["digits", "--devices", "3"], "cannot be spread evenly"),
        (["digits", "--data.train-size", "99999"], "train_size=99999"),
    ],
)
def test_errors_say_what_to_do(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_finished_run_is_reported_anew(whole, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    (copy / "report.md").unlink()
    train.carry_out(train.parse(["--resume", str(copy), "--devices", "1"]))
    assert (copy / "report.md").exists()
