"""The training command and the commands for trained networks, tested on a few digits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import experiments
from experiments import evaluate, export, predict, train
from experiments.configs import PRESETS
from experiments.data import load
from experiments.evaluation import evaluate as evaluated
from experiments.placement import place
from experiments.run import plan, session
from experiments.run.checkpoints import Checkpoints
from experiments.run.command import parse
from experiments.run.errors import Interrupted, NotFinite, RunError
from experiments.run.folder import RunFolder
from experiments.run.processes import Signals
from experiments.run.report import LAST, write_report
from experiments.run.session import Session, started
from experiments.run.settings import section_variants
from experiments.run.several import parts, store_parts
from experiments.run.trained import Trained
from tests.experiments.kills import TIMES
from tests.helpers import slow_but_for
from tests.launch import ROOT

SMALL = [
    *("digits", "--data.train-size", "512", "--model.width", "8", "--model.depth", "2"),
    *("--epochs", "2", "--eval-every", "0.5", "--eval-batch-size", "360", "--devices", "1"),
]
BRIEF = [*SMALL, "--epochs", "0.25"]
STEPS = 16


def run(folder, *flags, of=SMALL):
    return train.carry_out(parse([*of, "--output", str(folder), *flags]))


def resume(folder, *flags):
    return train.carry_out(parse(["--resume", str(folder), "--devices", "1", *flags]))


def records(folder, kind=None):
    """Returns the records of a run without their times."""
    found = RunFolder(folder).records(kind)
    return [{k: v for k, v in record.items() if k not in TIMES} for record in found]


def losses(folder):
    return np.array([record["loss"] for record in records(folder, "train")])


def checkpoints(folder):
    """Returns all checkpoints, as `newest/8`."""
    paths = (folder / "checkpoints").glob("*/*")
    return sorted(f"{path.parent.name}/{path.name}" for path in paths if path.is_dir())


def damage(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder of a finished run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """Returns a copy of the finished run."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(autouse=True)
def _no_report(whole, monkeypatch):
    """Writes only the last file of all reports but that of `whole`; plots take a second."""
    monkeypatch.setattr(session, "write_report", lambda folder: (folder.path / LAST).touch())


def test_a_run_writes_its_folder(whole):
    names = {path.name for path in whole.iterdir() if path.name != ".lock"}
    plots = {f"{n}.png" for n in ("curves", "learning_rate", "modes", "drift", "confusion")}
    settings = {"config.json", "run.json", "data.json", "environment.json"}
    results = {"metrics.jsonl", "summary.json", "report.md", "report.html", "train.csv", "test.csv"}
    assert names == {"checkpoints", "tensorboard"} | settings | results | plots
    summary = RunFolder(whole).read("summary.json")
    assert summary["steps"] == STEPS == len(losses(whole))
    assert summary["accuracy"] == records(whole, "test")[-1]["accuracy"]
    assert [record["step"] for record in records(whole, "test")] == [4, 8, 12, 16]
    assert [name for name in checkpoints(whole) if "newest" in name] == ["newest/12", "newest/16"]


@pytest.mark.parametrize("damaged", slow_but_for([False], [False, True]))
def test_stop_and_resume_equals_a_run_in_one_piece_bitwise(whole, tmp_path, damaged):
    """If `damaged`, the newest checkpoint is cut short and the one before it is used."""
    folder = tmp_path / "run"

    def stop_when_half_done():
        metrics = folder / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 12:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_half_done, daemon=True).start()
    with pytest.raises(Interrupted, match=f"--resume {folder}") as interrupted:
        run(folder)
    assert interrupted.value.exit_code == 128 + signal.SIGTERM
    done = len(losses(folder))
    assert 8 < done < STEPS
    assert f"newest/{done}" in checkpoints(folder)
    if damaged:
        damage(folder / "checkpoints" / "newest" / str(done))
    resume(folder)
    assert records(folder) == records(whole)
    assert_equal(Trained.open(folder).state, Trained.open(whole).state)
    assert_equal(Trained.open(folder, "best").state, Trained.open(whole, "best").state)


def test_what_the_environment_sets_in_jax_does_not_change_a_run(whole, tmp_path):
    with (
        jax.threefry_partitionable(False),
        jax.default_prng_impl("rbg"),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.transfer_guard("disallow"),
        jax.disable_jit(),
        jax.enable_x64(True),
    ):
        run(tmp_path / "run")
    assert records(tmp_path / "run") == records(whole)


@pytest.mark.slow
def test_eight_devices_give_the_same_curve(whole, tmp_path):
    run(tmp_path / "run", "--devices", "8")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole), rtol=2e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    folder = tmp_path / "run"
    flags = ["--norm.method", "none", "--optimizer.learning-rate", "1e20", "--eval-every", "1"]
    where = rf"{folder}/checkpoints/newest/0 \(the initial weights\)\. "
    with pytest.raises(RunError, match=rf"(loss|grad norm) of step \d .* {where}"):
        run(folder, *flags)
    assert np.isfinite(losses(folder)).all()
    assert checkpoints(folder) == ["newest/0"]


def test_a_test_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    folder = tmp_path / "run"
    results = {"loss": np.float32(np.nan), "accuracy": np.float32(0.1)}
    with started(parse([*SMALL, "--output", str(folder)])) as begun:
        state = begun.state._replace(step=begun.state.step + 4)
        with pytest.raises(
            RunError, match=r"test loss after step 4 is nan.*newest/0 \(the initial weights\)\. "
        ):
            begun.journal.tested(state, results, {}, {"seconds": 0.1})
    assert checkpoints(folder) == ["newest/0"]
    assert records(folder) == []


def test_weights_that_are_not_finite_are_never_saved(whole, tmp_path):
    state = Trained.open(whole).state
    spoiled = state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params))
    with Checkpoints(tmp_path) as saves:
        saves.save(state)
        with pytest.raises(RunError, match=r"after step 17 are not finite.*newest/16\. "):
            saves.save(spoiled._replace(step=state.step + 1), best=True)
    assert checkpoints(tmp_path) == ["newest/16"]


def test_a_changed_configuration_is_refused_with_the_difference(whole):
    with pytest.raises(RunError, match=r"norm.decay: 0.9 -> 0.5"):
        resume(whole, "--norm.decay", "0.5")


def test_other_images_are_refused(whole, monkeypatch):
    def changed(*arguments):
        dataset = load(*arguments)
        images = dataset.train_images.copy()
        images[0, 0, 0] ^= 1
        return dataset._replace(train_images=images)

    monkeypatch.setattr(plan, "load", changed)
    with pytest.raises(RunError, match=r"images are not those of the run .* scikit-learn digits"):
        resume(whole)


def test_a_finished_run_is_reported_anew(copy, whole, monkeypatch):
    monkeypatch.undo()
    (copy / "report.md").unlink()
    resume(copy)
    assert (copy / "report.md").exists()
    assert records(copy) == records(whole)


def test_a_run_without_its_summary_is_finished(copy, whole, monkeypatch):
    """It ended after the last step, before the results were written down."""
    monkeypatch.undo()
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert '"test"' in lines[-1]
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]))
    for name in ("summary.json", "report.md", "report.html"):
        (copy / name).unlink()
    summary, before = resume(copy), RunFolder(whole).read("summary.json")
    assert records(copy) == records(whole)
    assert (copy / "report.html").exists()
    changing = {"folder", "seconds", "images_per_second"}
    assert {k: v for k, v in summary.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }


@pytest.mark.parametrize(
    "content",
    slow_but_for(
        ['{"kind": "train", "step": "x"}'],
        [
            *(
                '{"kind": "tr',
                "",
                "[3]",
                "\x00\x00",
                '{"kind": "x", "step": 1}',
                '{"kind": "train"}',
            ),
            *('{"kind": "test", "step": 2}', '{"kind": "test", "step": 2, "accuracy": "high"}'),
            *(
                '{"kind": "train", "step": 2, "seconds": null}',
                '{"kind": "train", "step": 2, "loss": NaN}',
            ),
        ],
    ),
)
def test_a_damaged_line_of_the_metrics_costs_that_line_alone(content, copy, whole, capsys):
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    lines[5] = content
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    resume(copy)
    expected = records(whole)
    del expected[5]
    assert records(copy) == expected
    told = [line for line in capsys.readouterr().out.splitlines() if "metrics.jsonl" in line]
    assert len(told) == 1
    assert "1 damaged line left out" in told[0]


def test_lost_metrics_are_told_and_the_best_checkpoint_stays(copy, whole, capsys):
    """Nothing says how accurate it is."""
    (copy / "metrics.jsonl").unlink()
    for folder in ("best", "newest"):
        for path in (copy / "checkpoints" / folder).iterdir():
            if int(path.name) > 12:
                shutil.rmtree(path)
    if not list((copy / "checkpoints" / "best").iterdir()):
        shutil.copytree(
            copy / "checkpoints" / "newest" / "12", copy / "checkpoints" / "best" / "12"
        )
    best = [name for name in checkpoints(copy) if "best" in name]
    resume(copy)
    out = capsys.readouterr().out
    assert "the records of 12 steps are missing" in out
    assert f"No record says how accurate {copy}/checkpoints/{best[0]} is" in out
    assert [name for name in checkpoints(copy) if "best" in name] == best
    assert [record["step"] for record in records(copy)] == [13, 14, 15, 16, 16]
    summary = RunFolder(copy).read("summary.json")
    assert summary["best_accuracy"] is summary["seconds"]["training"] is None


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_it_is_used(copy, whole, capsys):
    damage(copy / "checkpoints" / "newest" / "16")
    shutil.rmtree(copy / "checkpoints" / "best")
    resume(copy)
    out = capsys.readouterr().out
    assert f"{copy}/checkpoints/newest/16 cannot be read" in out
    assert "continues from step 12" in out
    assert records(copy) == records(whole)
    assert_equal(Trained.open(copy).state, Trained.open(whole).state)


def test_the_best_checkpoint_is_used_if_the_newest_are_damaged(copy, whole, capsys):
    damage(copy / "checkpoints" / "newest")
    (best,) = (name.partition("/")[2] for name in checkpoints(whole) if "best" in name)
    resume(copy)
    told = "The run is complete." if int(best) == STEPS else f"continues from step {best}"
    assert told in capsys.readouterr().out
    assert records(copy) == records(whole)
    assert_equal(Trained.open(copy).state, Trained.open(whole).state)


def test_if_all_checkpoints_are_damaged_the_error_names_them_and_none_is_deleted(copy, capsys):
    damage(copy / "checkpoints")
    before = checkpoints(copy)
    assert train.main(["--resume", str(copy), "--devices", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: None of the checkpoints can be read: ")
    assert all(f"{copy}/checkpoints/{name}" in error for name in before)
    assert checkpoints(copy) == before


def test_the_interval_of_evaluations_and_the_chunk_are_kept_on_resume(tmp_path):
    folder = tmp_path / "run"
    with started(parse([*SMALL, "--chunk", "3", "--eval-every", "0.75", "--output", str(folder)])):
        pass
    resumed = parse(["--resume", str(folder)])
    assert (resumed.chunk, resumed.eval_every) == (3, 0.75)
    assert parse(["--resume", str(folder), "--chunk", "2"]).chunk == 2


def test_a_second_writer_is_refused(copy):
    with (
        RunFolder(copy),
        pytest.raises(RunError, match=f"{copy}: process {os.getpid()} on .* writes"),
    ):
        resume(copy)


def test_lookahead_with_few_steps_reports_the_trained_network(tmp_path):
    folder = tmp_path / "run"
    summary = run(folder, "--optimizer.lookahead", of=BRIEF)
    trained = Trained.open(folder)
    assert trained.step < 5
    assert_equal(trained.variables["params"], trained.state.params)
    data = place(load(trained.learner.config.data))
    fast = evaluated(trained.learner, trained.state._replace(slow=None), data)
    assert summary["loss"] == pytest.approx(float(fast["loss"]), rel=1e-5)
    assert summary["accuracy"] == pytest.approx(float(fast["accuracy"]))


def test_without_arguments_the_preset_is_digits():
    assert parse([]).config == PRESETS["digits"]


def test_a_configuration_in_a_file_is_used(whole):
    path = str(whole / "config.json")
    assert parse(["--config", path]).config == parse(SMALL).config
    changed = parse([f"--config={path}", "--norm.decay", "0.5"]).config
    assert changed == parse([*SMALL, "--norm.decay", "0.5"]).config


def test_seeds_and_a_sweep_make_a_run_each_and_a_table_and_are_resumed(tmp_path, capsys):
    folder = tmp_path / "runs"
    flags = ["--seeds", "2", "--sweep", "norm.decay", "0.5", "0.9", "--output", str(folder)]
    assert train.main([*BRIEF, *flags]) == 0
    names = [f"norm.decay-{decay}-seed-{seed}" for decay in (0.5, 0.9) for seed in (0, 1)]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == names
    configs = [RunFolder(folder / name).read("config.json") for name in names]
    assert [(c["norm"]["decay"], c["seed"]) for c in configs] == [
        (0.5, 0),
        (0.5, 1),
        (0.9, 0),
        (0.9, 1),
    ]
    table = (folder / "results.md").read_text()
    assert table.count("| 2 |") == 2
    assert table.strip() in capsys.readouterr().out
    before = {name: records(folder / name) for name in names}
    whole, ended, begun, missing = (folder / name for name in names)
    shutil.rmtree(missing)
    (begun / LAST).unlink()
    (ended / "summary.json").write_text("{")
    untouched = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    (folder / "results.md").unlink()
    assert train.main(["--resume", str(folder), "--devices", "1"]) == 0
    assert {name: records(folder / name) for name in names} == before
    again = (folder / "results.md").read_text()
    assert [line.split("|")[:4] for line in again.splitlines()] == [
        line.split("|")[:4] for line in table.splitlines()
    ]  # The time of the run that was missing is another one.
    assert (begun / LAST).exists()
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == untouched


def test_a_sweep_goes_on_if_the_loss_of_a_run_is_not_finite(tmp_path, capsys):
    folder, flags = tmp_path / "runs", ["--norm.method", "none", "--chunk", "1"]
    sweep = ["--sweep", "optimizer.learning_rate", "1e30", "0.1", "--output", str(folder)]
    for line in ([*BRIEF, *flags, *sweep], ["--resume", str(folder)]):
        assert train.main(line) == 2
        out, err = capsys.readouterr()
        bad, ended = err.splitlines()
        assert bad.startswith(f"error: {folder}/optimizer.learning_rate-1e30-seed-0: The ")
        assert "initial weights" in bad
        assert ended == "error: 1 of 2 runs ended early, as said above."
        rows = (folder / "results.md").read_text().splitlines()[2:]
        assert ["1 of 1 ended early" in row for row in rows] == [True, False]
        assert rows[1] in out


def test_a_signal_ends_a_command_whose_run_is_not_finite(tmp_path, capsys, monkeypatch):
    def fit(_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise NotFinite("The loss is nan.")

    monkeypatch.setattr(train, "fit", fit)
    line = [*BRIEF, "--seeds", "2", "--output", str(tmp_path / "runs")]
    assert train.main(line) == 128 + signal.SIGTERM
    assert (
        f"Resume with: python -m experiments.train --resume {tmp_path}" in capsys.readouterr().err
    )
    assert not (tmp_path / "runs" / "seed-1").exists()


def test_a_signal_is_remembered_if_nobody_reads_standard_error(monkeypatch):
    def broken(*_):
        raise BrokenPipeError

    with Signals() as signals:
        monkeypatch.setattr(os, "write", broken)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.agreed() == signal.SIGTERM


def test_a_signal_ends_a_command_after_the_current_run(tmp_path, capsys, monkeypatch):
    finish = Session.finish

    def signalled(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(self)

    monkeypatch.setattr(Session, "finish", signalled)
    flags = [*BRIEF, "--seeds", "2", "--output", str(tmp_path)]
    assert train.main(flags) == 128 + signal.SIGTERM
    assert f"--resume {tmp_path}" in capsys.readouterr().err
    assert (tmp_path / "seed-0" / "summary.json").exists()
    assert not (tmp_path / "seed-1").exists()
    monkeypatch.undo()
    monkeypatch.setattr(session, "write_report", lambda folder: (folder.path / LAST).touch())
    assert train.main(["--resume", str(tmp_path)]) == 0
    assert (tmp_path / "results.md").exists()


def test_runs_of_another_command_in_the_folder_are_kept(tmp_path, capsys):
    flags = [*BRIEF, "--output", str(tmp_path), "--sweep", "norm.decay"]
    store_parts(parse([*flags, "0.5"]))
    before = (tmp_path / "parts.json").read_bytes()
    others = (["0.6"], ["0.5", "0.6", "--epochs", "1"], ["0.5", "0.6", "--seed", "3"])
    for other in (*others, ["0.5", "--init-from", "x"]):
        with pytest.raises(RunError, match="holds runs of another command"):
            parts(parse([*flags, *other]))
    assert (tmp_path / "parts.json").read_bytes() == before
    assert len(parts(parse([*flags, "0.5", "0.6", "--seeds", "2"]))) == 4


def test_a_run_is_resumed_on_as_many_devices(tmp_path, capsys):
    with started(parse([*BRIEF, "--devices", "2", "--output", str(tmp_path / "run")])):
        pass
    assert parse(["--resume", str(tmp_path / "run")]).devices == 2
    assert "last digits" not in capsys.readouterr().out
    with started(parse(["--resume", str(tmp_path / "run"), "--devices", "1"])):
        pass
    assert "began on --devices 2, so results can differ in last digits" in capsys.readouterr().out


def test_a_run_without_its_last_checkpoint_is_not_finished(tmp_path, monkeypatch, capsys):
    wait = ocp.CheckpointManager.wait_until_finished

    def full(self):
        wait(self)
        if self.latest_step() == 2:
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", full)
    assert train.main([*BRIEF, "--output", str(tmp_path / "run")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_finished_part_with_other_settings_is_not_taken_for_this_one(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "seed-0")
    flags = [*SMALL, "--norm.decay", "0.5", "--seeds", "2", "--output", str(tmp_path)]
    assert train.main(flags) == 2
    assert "another configuration" in capsys.readouterr().err


def test_a_run_starts_from_the_network_of_another_run(whole, tmp_path):
    flags = ["--init-from", str(whole), "--output", str(tmp_path / "run")]
    with started(parse([*SMALL, *flags])) as begun:
        old = Trained.open(whole)
        assert int(begun.state.step) == 0
        assert_equal(begun.state.params, old.variables["params"])
        assert_equal(begun.state.batch_stats, old.variables["batch_stats"])
    assert_equal(Trained.open(tmp_path / "run").state.params, old.variables["params"])
    stored = RunFolder(tmp_path / "run").read("run.json")
    assert stored["init_from"] == str(whole)


def test_a_run_with_lookahead_starts_from_a_network(whole, tmp_path):
    flags = ("--optimizer.lookahead", "--init-from", str(whole))
    assert run(tmp_path / "run", *flags, of=BRIEF)["steps"] == 2


def test_several_runs_keep_their_flags_on_resume(whole, tmp_path):
    folder = tmp_path / "runs"
    flags = [*BRIEF, "--seeds", "2", "--eval-every", "0.125", "--init-from", str(whole)]
    store_parts(parse([*flags, "--output", str(folder)]))
    run = parse(["--resume", str(folder)])
    assert (run.seeds, run.eval_every, run.init_from) == (2, 0.125, whole)
    first, second = parts(run)
    assert first.init_from == second.init_from == whole
    assert first.resume_command == f"python -m experiments.train --resume {folder}"


def test_a_sweep_over_true_and_false_makes_both_runs():
    run = parse([*BRIEF, "--sweep", "optimizer.nesterov", "True", "False", "--output", "x"])
    assert [part.config.optimizer.nesterov for part in parts(run)] == [True, False]


def test_images_in_a_file_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", images=np.zeros((8, 8, 8), np.uint8), labels=np.arange(8) % 2)
    config = parse(["digits", "--data.dataset", "data.npz", "--output", "run"]).config
    assert config.data.dataset == str(tmp_path / "data.npz")


OWN_CLASSES = ["$a_{b$", "<b>", "a|b"]


@pytest.fixture(scope="module")
def own(tmp_path_factory, random_arrays):
    """A folder with a run on a file of images, and this file."""
    folder = tmp_path_factory.mktemp("own")
    np.savez(folder / "data.npz", **random_arrays)
    flags = ["--data.dataset", str(folder / "data.npz"), "--batch-size", "32"]
    line = ["digits", *SMALL[3:], *flags, "--epochs", "0.25", "--output", str(folder / "run")]
    train.carry_out(parse(line))
    return folder


@pytest.fixture(scope="module")
def random_arrays():
    images = np.random.default_rng(0).integers(0, 255, (256, 8, 8), np.uint8)
    return {"images": images, "labels": np.arange(256) % 3, "classes": OWN_CLASSES}


def test_class_names_may_look_like_formulas(own):
    write_report(RunFolder(own / "run"))
    assert "a|b" in (own / "run" / "report.html").read_text()


def test_data_that_has_moved_is_found_by_its_new_path(own, tmp_path, capsys):
    folder = tmp_path / "own"
    shutil.copytree(own, folder)
    (own / "data.npz").rename(old := own / "other.npz")
    try:
        assert train.main(["--resume", str(folder / "run")]) == 2
        assert evaluate.main([str(folder / "run")]) == 2
        assert "data.npz, the data of this run, is missing" in capsys.readouterr().err
        new = str(folder / "data.npz")
        assert train.main(["--resume", str(folder / "run"), "--data.dataset", new]) == 0
        assert evaluate.main([str(folder / "run")]) == 0
    finally:
        old.rename(own / "data.npz")


def test_runs_of_one_command_have_the_same_images(own, random_arrays, tmp_path, capsys):
    np.savez(path := tmp_path / "data.npz", **random_arrays)
    flags = ["--data.dataset", str(path), "--batch-size", "32", "--epochs", "0.25", "--seeds", "2"]
    line = ["digits", *SMALL[3:9], *flags, "--output", str(tmp_path / "runs")]
    assert train.main(line) == 0
    shutil.rmtree(tmp_path / "runs" / "seed-1")
    np.savez(path, **random_arrays | {"labels": random_arrays["labels"][::-1]})
    assert train.main(["--resume", str(tmp_path / "runs")]) == 2
    assert "images are not those of the run in" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "seed-1").exists()
    path.rename(other := tmp_path / "other.npz")
    assert train.main(["--resume", str(tmp_path / "runs"), "--data.dataset", str(other)]) == 2
    np.savez(moved := tmp_path / "moved.npz", **random_arrays)
    assert train.main(["--resume", str(tmp_path / "runs"), "--data.dataset", str(moved)]) == 0
    (row,) = (tmp_path / "runs" / "results.md").read_text().splitlines()[2:]
    assert "moved.npz" in row
    assert "| 2 |" in row


def test_a_sweep_over_data_is_resumed_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("b.npz").touch()
    flags = ["--sweep", "data.dataset", "digits", "./b.npz", "--output", str(tmp_path / "x")]
    run = parse([*BRIEF, *flags])
    first = parts(run)
    store_parts(run)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    Path("b.npz").touch()
    for made in (first, parts(parse(["--resume", str(tmp_path / "x")]))):
        assert [part.folder.name for part in made] == [
            "data.dataset-digits-seed-0",
            "data.dataset-._b.npz-seed-0",
        ]
        assert [p.config.data.dataset for p in made] == ["digits", str(tmp_path / "b.npz")]


def test_data_that_has_changed_is_refused(own, random_arrays, capsys):
    before = (own / "data.npz").read_bytes()
    labels = random_arrays["labels"][::-1]
    try:
        np.savez(own / "data.npz", **random_arrays | {"labels": labels})
        assert train.main(["--resume", str(own / "run")]) == 2
        assert evaluate.main([str(own / "run")]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert ["images are not those of the run" in line for line in errors] == [True, True]
    finally:
        (own / "data.npz").write_bytes(before)


@pytest.mark.parametrize("number", [4, 10])
def test_a_head_for_other_classes_keeps_its_initial_values(number, whole, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 255, (256, 8, 8), np.uint8)
    classes = [f"class {index}" for index in range(number)]
    labels = np.arange(256) % number
    np.savez(tmp_path / "data.npz", images=images, labels=labels, classes=classes)
    line = ["digits", "--data.dataset", str(tmp_path / "data.npz"), *SMALL[3:], "--init-from"]
    with started(parse([*line, str(whole), "--output", str(tmp_path / "run")])) as begun:
        old, new = Trained.open(whole).variables["params"], begun.state.params
        assert_equal(new["ConvNorm_0"], old["ConvNorm_0"])
        assert new["Dense_0"]["kernel"].shape[-1] == number
        if number == 10:
            assert not np.array_equal(new["Dense_0"]["kernel"], old["Dense_0"]["kernel"])
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "start anew" in line]
    assert told.endswith(": params/Dense_0/bias, params/Dense_0/kernel.")


def digits():
    return load(parse(SMALL).config.data)


def test_the_loaded_network_gives_the_accuracy_of_the_evaluation(whole):
    data, summary = digits(), RunFolder(whole).read("summary.json")
    apply, variables = experiments.load(whole)
    logits = jax.jit(apply)(variables, data.test_images)
    assert logits.shape == (360, 10)
    accuracy = np.mean(np.argmax(logits, -1) == data.test_labels)
    assert summary["accuracy_plain"] == pytest.approx(accuracy)
    one_hot = jax.nn.one_hot(data.test_labels, 10)
    loss = -np.mean(np.sum(jax.nn.log_softmax(logits) * one_hot, -1))
    assert summary["loss"] == pytest.approx(float(loss), rel=1e-4)
    best, _ = experiments.load(str(whole), "best")
    assert best is not None


@pytest.mark.parametrize("shape", [(8, 8, 1), (3, 8, 8), (3, 9, 8, 1)])
def test_the_loaded_network_refuses_other_shapes(whole, shape):
    apply, variables = experiments.load(whole)
    with pytest.raises(ValueError, match=r"uint8 of shape \(n, 8, 8, 1\)"):
        apply(variables, np.zeros(shape, np.uint8))


def test_predict_prints_the_most_probable_classes(whole, tmp_path, capsys):
    data = digits()
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for path, image in zip(paths, data.test_images, strict=False):
        Image.fromarray(image[:, :, 0]).save(path)
    assert predict.main([str(whole), *paths, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    apply, variables = experiments.load(whole)
    shares = np.asarray(jax.nn.softmax(apply(variables, jnp.asarray(data.test_images[:3]))))
    for line, path, share in zip(lines, paths, shares, strict=True):
        first, second = np.argsort(-share)[:2]
        assert line == f"{path}: {first} {share[first]:.1%}, {second} {share[second]:.1%}"


def test_predict_names_each_file_that_is_no_image_after_the_others(whole, tmp_path, capsys):
    for name in ("first", "last"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{name}.png")
    for name in ("bad", "worse"):
        (tmp_path / f"{name}.png").write_text("no image")
    paths = [str(tmp_path / f"{name}.png") for name in ("first", "bad", "worse", "last")]
    assert predict.main([str(whole), *paths]) == 2
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == [paths[0], paths[3]]
    assert [path in line for path, line in zip(paths[1:3], err.splitlines(), strict=True)] == [
        True
    ] * 2


def test_evaluate_gives_the_accuracy_of_the_run(whole, tmp_path, capsys):
    summary, output = RunFolder(whole).read("summary.json"), tmp_path / "results.json"
    assert evaluate.main([str(whole), "--output", str(output)]) == 0
    assert f"{summary['accuracy']:.2%}" in capsys.readouterr().out
    results = json.loads(output.read_text())
    assert results["accuracy"] == pytest.approx(summary["accuracy"])
    assert results["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert results["step"] == STEPS


def test_results_are_written_through_a_link_and_into_a_pipe(whole, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "results.json")
    assert evaluate.main([str(whole), "--output", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(pipe := tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        assert evaluate.main([str(whole), "--output", str(pipe)]) == 0
        assert read.result(timeout=60) == (tmp_path / "results.json").read_text()


def test_evaluate_takes_the_test_images_of_a_file(whole, tmp_path, capsys):
    data, summary = digits(), RunFolder(whole).read("summary.json")
    arrays = {name: getattr(data, name) for name in data._fields[:4]}
    np.savez(tmp_path / "data.npz", classes=np.array(data.classes), **arrays)
    assert evaluate.main([str(whole), "--data", str(tmp_path / "data.npz")]) == 0
    out = capsys.readouterr().out
    assert "data.npz: 360 test images" in out
    assert f"{summary['accuracy']:.2%}" in out


def test_evaluate_takes_images_of_some_classes(whole, tmp_path):
    """Integers are the network's own labels, and strings are matched with its classes."""
    data, path, output = digits(), tmp_path / "some.npz", tmp_path / "results.json"
    some = np.flatnonzero(np.isin(data.test_labels, [1, 3]))
    images, labels = data.test_images[some], data.test_labels[some]
    names = np.array(["3", "1", "cat"])  # No image is of a cat.
    cases: list[dict[str, Any]] = [
        {"labels": labels},
        {"labels": labels.astype(str)},
        {"labels": (labels == 1).astype(int), "classes": names},
    ]
    for arrays in cases:
        np.savez(path, images=images, **arrays)
        assert evaluate.main([str(whole), "--data", str(path), "--output", str(output)]) == 0
        confusion = json.loads(output.read_text())["confusion"]
        np.testing.assert_array_equal(np.sum(confusion, 1), np.bincount(labels, minlength=10))


def test_evaluate_gives_grey_images_the_channels_of_coloured_ones():
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
    tests = evaluate.Tests(images, np.array([1, 0, 1], np.uint64), ("a", "b"), "grey")
    network: Any = SimpleNamespace(image_shape=(2, 2, 3), classes=("b", "a"))
    images_of_network, labels, *_ = evaluate._labelled_alike(tests, network)
    np.testing.assert_array_equal(images_of_network, np.concatenate([images] * 3, -1))
    np.testing.assert_array_equal(labels, [0, 1, 0])


ALONE = """
import sys
for name in ("experiments", "jbn", "flax"):
    sys.modules[name] = None
import numpy as np, jax, jax.export
network = jax.export.deserialize(open("network", "rb").read())
np.save("logits.npy", network.call(np.load("images.npy")))
"""


def logits_of_export(folder, images, place):
    """Returns the logits that an exported network gives in a process with only JAX."""
    assert export.main([str(folder), str(place / "network"), "--platforms", "cpu"]) == 0
    np.save(place / "images.npy", images)
    environment = {"JAX_PLATFORMS": "cpu", "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-I", "-c", ALONE], cwd=place, env=environment, check=True)
    return np.load(place / "logits.npy")


def test_an_exported_network_needs_only_jax(whole, tmp_path):
    images = digits().test_images[:7]
    apply, variables = experiments.load(whole)
    logits = logits_of_export(whole, images, tmp_path)
    expected = apply(variables, jnp.asarray(images))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


METHODS = tuple(section_variants()["norm"][1])


@pytest.mark.parametrize("kind", slow_but_for(["inplace"], [*METHODS, "batch in float64"]))
def test_every_norm_trains_evaluates_and_is_exported(kind, tmp_path):
    folder, method = tmp_path / "run", kind.partition(" ")[0]
    precision = "float64" if "float64" in kind else "float32"
    summary = run(folder, "--norm.method", method, "--precision", precision, of=BRIEF)
    assert summary["steps"] == len(losses(folder)) == 2
    assert evaluate.main([str(folder), "--output", str(tmp_path / "results.json")]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["loss"] == pytest.approx(summary["loss"], rel=1e-4)
    assert export.main([str(folder), str(tmp_path / "network")]) == 0
    network = jax.export.deserialize(bytearray((tmp_path / "network").read_bytes()))
    images = jnp.asarray(digits().test_images[:7])
    with jax.enable_x64(precision == "float64"):
        apply, variables = experiments.load(folder)
        expected = apply(variables, images)
        np.testing.assert_allclose(network.call(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_parameters_and_statistics_of_float64_are_float64(tmp_path):
    run(tmp_path / "run", "--precision", "float64", of=BRIEF)
    with jax.enable_x64(True):
        trained = Trained.open(tmp_path / "run")
        floats = trained.state.params, trained.state.batch_stats
    assert {leaf.dtype for leaf in jax.tree.leaves(floats)} == {np.dtype("float64")}


def start_until(imported, *flags):
    """Starts the command, and returns its process when it has imported a module."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "experiments.train", *flags],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == imported:
            return process
    raise AssertionError(f"{imported} was never imported.")


@pytest.mark.parametrize(
    "imported", slow_but_for(["numpy"], ["numpy", "jax._src.core", "jax", "orbax.checkpoint"])
)
def test_ctrl_c_in_the_first_seconds_ends_the_command_without_a_traceback(imported, tmp_path):
    process = start_until(imported, "digits", "--output", str(tmp_path / "run"))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in error
    assert not Path(tmp_path / "run").exists()
