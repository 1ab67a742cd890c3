"""The benchmarks for a GPU, in their small version on the CPU."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.benchmarks import networks
from experiments.benchmarks.gpu import calls, cifar10, command, norm, resnet20, resnet50, steps
from experiments.benchmarks.gpu.hardware import describe
from experiments.benchmarks.gpu.piece import Settings
from experiments.benchmarks.gpu.pieces import PIECES, Name, work
from experiments.benchmarks.gpu.processes import alone
from experiments.benchmarks.gpu.report import main, report
from experiments.benchmarks.gpu.stored import Stored, StoredError
from experiments.data import DataError
from experiments.learner import Learner, init
from experiments.learner import train as train_steps
from experiments.placement import place
from experiments.run.errors import Interrupted
from experiments.run.folder import RunFolder
from experiments.run.processes import Signals
from experiments.run.settings import to_dict

ENVIRONMENT = {
    "device": "a card",
    "platform": "cpu",
    "small": True,
    "versions": {"jax": "0.10.2"},
}


@pytest.fixture
def settings(tmp_path):
    return Settings(small=True, folder=tmp_path, deadline=time.time() + 600)


def rows_of(name, settings):
    return Stored(settings.folder, name, ENVIRONMENT).rows


def measure(name, settings):
    """Measures a whole piece in this process."""
    for keys in PIECES[name].processes(True):
        work(name, keys, settings, ENVIRONMENT)
    return rows_of(name, settings)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", PIECES)
def test_keys_are_distinct_and_survive_json(name, small):
    keys = [key for keys in PIECES[name].processes(small) for key in keys]
    assert json.loads(json.dumps(keys)) == keys
    assert len({json.dumps(key) for key in keys}) == len(keys)


def test_a_call_is_timed_among_many_and_the_last_is_waited_for():
    made, waited = [], []
    seconds = calls.seconds_a_call(
        lambda: made.append(time.sleep(0.01)) or len(made), 5, waited.append
    )
    assert len(made) == 5
    assert waited == [5]
    assert 0.01 <= seconds < 0.04


def test_a_share_is_that_of_a_copy_that_moves_as_much():
    seconds = {"copy": [2.0, 2.0, 2.0], "jbn": [3.0, 3.0, 4.0], "torch": [6.0, 6.0, 6.0]}
    row: dict[str, Any] = {part: calls.summary(seconds, "copy") for part in norm.PASSES}
    row |= {"dtype": "float32", "shape": [2, 3], "copy_gb_per_s": 100.0}
    assert norm.shares(row, "forward") == {"jbn": 1, "torch": 0.5}
    assert row["forward"]["quartiles_ms"]["jbn"] == [3000, 3000, 3500]
    assert norm.table([row]).splitlines()[2:] == [
        "| forward, float32 [2, 3] | 100 | 3000.000 (100%) | 6000.000 (50%) |",
        "| forward and backward, float32 [2, 3] | 100 | 3000.000 (267%) | 6000.000 (133%) |",
    ]


@pytest.mark.parametrize("library", norm.LIBRARIES)
def test_both_ways_are_forward_and_its_gradient(library):
    x, dy = np.random.default_rng(0).standard_normal((2, 6, 5, 5, 4), np.float32)
    parts, learned = norm.jax_parts(networks.norm_activations("float32")[library], 4)
    y, state = jax.jit(parts["forward"])(learned, x, dy)
    again, (_, dx), state_again = jax.jit(parts["forward and backward"])(learned, x, dy)
    centred = x.astype(float) - x.mean((0, 1, 2), dtype=float)
    rstd = 1 / np.sqrt(x.var((0, 1, 2), dtype=float) + 1e-5)
    expected = centred * rstd
    slope = (dy * expected).mean((0, 1, 2))
    expected_dx = rstd * (dy - dy.mean((0, 1, 2)) - expected * slope)
    for got, wanted in ((y, expected), (again, expected), (dx, expected_dx)):
        np.testing.assert_allclose(got, wanted, atol=2e-6)
    jax.tree.map(np.testing.assert_allclose, state_again, state)


def test_the_norm_is_timed_and_drawn(settings, capsys):
    rows = measure("norm", settings)
    assert len(rows) == 2
    for row in rows:
        assert {"jbn", "flax.linen"} <= set(norm.shares(row, "forward"))
        assert row["copy_gb_per_s"] > 0
    report(RunFolder(settings.folder))
    assert norm.table(rows) in capsys.readouterr().out
    assert (settings.folder / "norm.png").stat().st_size > 10_000


def test_without_matplotlib_the_report_says_how_the_figure_is_drawn_later(
    settings, capsys, monkeypatch
):
    RunFolder(settings.folder).write("norm.json", {"environment": ENVIRONMENT, "rows": []})
    monkeypatch.setattr("experiments.benchmarks.gpu.report.find_spec", lambda _: None)
    report(RunFolder(settings.folder))
    assert f"gpu.report {settings.folder}` draws it" in capsys.readouterr().out
    assert not (settings.folder / "norm.png").exists()


@pytest.mark.parametrize("name", ["stacks", "resnet50"])
def test_steps_are_compiled_run_and_timed(name, settings):
    """The first form is compiled and run, and all forms are timed."""
    compiled, memory, *_, time = PIECES[name].processes(True)
    for keys in (compiled[:1], memory, time):
        work(name, keys, settings, ENVIRONMENT)
    rows = rows_of(name, settings)
    values = steps.figures(rows, {"batch": rows[0]["batch"]})
    assert values["jbn"]["compiled_gb"] > 0
    assert "peak_gb" not in values["jbn"], "a CPU does not report its peak"
    assert all(found["ms"] > 0 for found in values.values())
    assert [line.split(" | ")[0] for line in PIECES[name].table(rows).splitlines()[2:]] == [
        f"| {form}" for form in steps.FORMS
    ]


def test_a_step_carries_its_state_and_its_compiled_figure_is_right():
    step = steps.Step(lambda state, x: (state + 1, state.sum() + x), (jnp.zeros(4), 2.0), True)
    assert [float(step()[1]) for _ in range(3)] == [2, 6, 10]
    assert steps.compiled_bytes(step)["total_bytes"] >= 4 * 4 + 2 * 4


@pytest.mark.parametrize(("peaks", "outcome"), [([10, 30], 30), ([30, 30], None)])
def test_a_peak_from_before_the_steps_is_not_taken_for_theirs(peaks, outcome, monkeypatch):
    found = iter(peaks)
    monkeypatch.setattr(steps, "_most_in_use", lambda: next(found))
    if outcome:
        assert steps.peak_bytes(lambda: jnp.ones(3)) == {"peak_bytes": outcome}
    else:
        with pytest.raises(RuntimeError, match="Run the same command again"):
            steps.peak_bytes(lambda: jnp.ones(3))


def test_memory_is_looked_at_in_processes_of_their_own_after_all_is_compiled():
    first, *memory, last = PIECES["stacks"].processes(False)
    assert {key["what"] for key in first} == {"compiled"}
    assert [keys[0] | {"what": "compiled"} for keys in memory] == first
    assert all(len(keys) == 1 for keys in memory)
    assert {key["what"] for key in last} == {"time"}


@pytest.mark.parametrize("form", steps.FORMS)
def test_the_network_in_full_is_resnet50(form):
    ((key, *_), *_) = PIECES["resnet50"].processes(False)
    init, _, x = resnet50.network(key["network"], key["batch"], form)
    state = jax.eval_shape(init, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(state[0])) == 25_557_032
    assert x.shape == (256, 224, 224, 3)


def test_a_run_of_cifar10_is_the_trainers_and_one_program_serves_all_seeds(settings):
    config, dataset = cifar10.config_and_images(settings)
    config = dataclasses.replace(config, views="plain")
    learner, data = Learner(config, 10, len(dataset.train_labels)), place(dataset)
    run = jax.jit(cifar10.whole_run(learner))
    losses = [float(run(data, np.int32(seed))["training_loss"]) for seed in (0, 1)]
    assert run._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
    _, metrics = train_steps(learner, init(learner, data, 1), data, learner.total_steps)
    expected = float(metrics["loss"][-1])
    assert losses[1] == pytest.approx(expected, rel=1e-5)
    assert losses[0] != pytest.approx(expected, rel=1e-3)


def test_cifar10_in_full_is_the_preset(settings, tmp_path):
    settings = dataclasses.replace(settings, small=False, data_dir=tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere"):
        cifar10.config_and_images(settings)
    assert len(PIECES["cifar10"].processes(False)[0]) == 20
    rows = [{"seed": s, "data": "a copy", "accuracy": 0.94 + s / 100} for s in range(3)]
    rows = [row | {"accuracy_plain": 0.9, "seconds": 2.0 + row["seed"]} for row in rows]
    assert cifar10.table(rows).splitlines()[2:] == [
        "| `cifar10`, a copy | 3 | 95.00% ± 1.00% | 90.00% ± 0.00% | 3.00 |"
    ]


def test_resnet20_is_interrupted_at_the_deadline_once_the_trainer_listens(settings, monkeypatch):
    begun = []

    def carry_out(run):
        """Does as the trainer: after some time, it checks for signals after each step."""
        begun.append(run)
        RunFolder(run.folder).write("config.json", to_dict(run.config))
        time.sleep(0.05)
        with Signals() as signals:
            for _ in range(300):
                time.sleep(0.01)
                if number := signals.agreed():
                    raise Interrupted(number, "resume")
        return {}

    monkeypatch.setattr(train, "carry_out", carry_out)
    monkeypatch.setattr(resnet20, "INTERVAL", 0.02)
    before = signal.getsignal(signal.SIGTERM)
    late = dataclasses.replace(settings, deadline=time.time() - 1, data_variant="a copy")
    for _ in range(2):
        assert resnet20.train_until(late, 5) is None
    assert signal.getsignal(signal.SIGTERM) == before
    first, second = begun
    assert first.output == second.resume == settings.folder / "resnet20-5"
    assert first.resume is None
    assert first.config == second.config
    assert first.config.seed == 5
    assert second.data_variant == "a copy"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Couldn't find sharding info:UserWarning")
def test_resnet20_stops_at_the_deadline_and_goes_on(settings, monkeypatch):
    """The deadline is before the first of the run's two steps."""
    (keys,) = PIECES["resnet20"].processes(True)
    late = dataclasses.replace(settings, deadline=time.time() - 1)
    monkeypatch.setattr(resnet20, "INTERVAL", 0.01)
    work("resnet20", keys, late, ENVIRONMENT)
    assert rows_of("resnet20", settings) == []
    (row,) = measure("resnet20", settings)
    assert row["steps"] == 2
    assert row["data"] == "scikit-learn digits"
    assert "`resnet20`, scikit-learn digits | 1 |" in resnet20.table([row])


def test_finished_rows_are_not_measured_again(settings, monkeypatch):
    measured = []

    def measure(keys, _):
        for key in keys:
            measured.append(key["seed"])
            yield key | {"accuracy": 0.5}

    piece = PIECES["cifar10"]._replace(measure=measure)
    monkeypatch.setitem(PIECES, "cifar10", piece)
    monkeypatch.setattr(command, "alone", lambda _, function, *arguments: function(*arguments))
    Stored(settings.folder, "cifar10", ENVIRONMENT).add({"seed": 0, "accuracy": 0.1})
    command.carry_out("cifar10", settings, ENVIRONMENT)
    assert measured == [1]
    assert [row["accuracy"] for row in rows_of("cifar10", settings)] == [0.1, 0.5]
    command.carry_out("cifar10", settings, ENVIRONMENT)
    assert measured == [1]


def test_a_piece_ends_with_the_row_in_which_the_deadline_comes(settings, capsys, monkeypatch):
    def measure(keys, settings):
        for key in keys:
            time.sleep(0.02)
            yield key

    monkeypatch.setitem(PIECES, "norm", PIECES["norm"]._replace(measure=measure))
    monkeypatch.setattr(command, "alone", lambda _, function, *arguments: function(*arguments))
    brief = dataclasses.replace(settings, deadline=time.time() + 0.01)
    command.carry_out("norm", brief, ENVIRONMENT)
    assert len(rows_of("norm", settings)) == 1
    assert "1 of 2 rows are stored. The same command makes the rest" in capsys.readouterr().out
    command.carry_out("norm", settings, ENVIRONMENT)
    assert "2 of 2 rows are stored. The piece is finished" in capsys.readouterr().out


def test_rows_of_two_environments_do_not_share_a_file(tmp_path):
    Stored(tmp_path, "norm", ENVIRONMENT).add({"a": 1})
    with pytest.raises(StoredError, match="device: a card -> another"):
        Stored(tmp_path, "norm", ENVIRONMENT | {"device": "another"})


def test_every_piece_can_be_asked_for():
    assert get_args(Name) == tuple(PIECES)


def test_a_piece_that_fails_does_not_stop_the_next(tmp_path, capsys, monkeypatch):
    tried = []

    def carry_out(name, *_):
        tried.append(name)
        if name == "stacks":
            raise RuntimeError("out of memory")

    monkeypatch.setattr(command, "carry_out", carry_out)
    monkeypatch.setattr(command, "alone", lambda *_: dict(ENVIRONMENT))
    flags = ["--output", str(tmp_path), "--only"]
    assert command.main([*flags, "norm"]) == 0
    assert command.main([*flags, "stacks", "resnet50"]) == 1
    assert tried == ["norm", "stacks", "resnet50"]
    shown = capsys.readouterr()
    assert "These pieces failed for the reasons above: stacks." in shown.out
    assert "out of memory" in shown.err


def test_a_process_of_its_own_takes_memory_as_it_needs_it_and_keeps_programs(tmp_path):
    assert alone(tmp_path, os.getenv, "XLA_PYTHON_CLIENT_PREALLOCATE") == "false"
    assert alone(tmp_path, os.getenv, "JAX_COMPILATION_CACHE_DIR") == str(tmp_path)
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in os.environ


PARENT = """
from pathlib import Path
from experiments.benchmarks.gpu.processes import alone
if __name__ == "__main__":
    alone(Path("cache"), exec, "import time; print('begun', flush=True); time.sleep(60)")
"""


def test_a_process_ends_with_its_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = str(Path(command.__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "begun\n"
        parent.kill()
        parent.communicate(timeout=30)  # This returns when no process holds the pipe.


def test_the_environment_names_device_and_versions():
    found = describe()
    assert found["platform"] == "cpu"
    assert found["versions"]["jax"] == jax.__version__
    assert json.loads(json.dumps(found)) == found


@pytest.mark.slow
def test_the_command_measures_everything_and_then_nothing(tmp_path, capfd):
    assert command.main(["--output", str(tmp_path)]) == 0
    assert not {f"{name}.json" for name in PIECES} - {path.name for path in tmp_path.iterdir()}
    before = capfd.readouterr().out
    assert before.count("rows are stored. The piece is finished.") == len(PIECES)
    assert command.main(["--output", str(tmp_path)]) == 0
    assert "{'" not in capfd.readouterr().out


def test_rows_of_another_environment_end_the_command_with_a_message(tmp_path, capfd):
    row = {"accuracy": 0.5, "data": "digits", "images_per_second": 10.0}
    RunFolder(tmp_path).write("resnet20.json", {"environment": ENVIRONMENT, "rows": [row]})
    assert command.main(["--only", "resnet20", "--output", str(tmp_path)]) == 1
    out, error = capfd.readouterr()
    assert "resnet20, on a card, jax 0.10.2, small version\n" in out
    assert "resnet20.json was measured in another environment. Move it away" in error
    assert "Traceback" not in error


def test_a_report_of_nothing_says_so(tmp_path, capsys):
    assert main(tmp_path) == 1
    assert f"{tmp_path} holds no results" in capsys.readouterr().err
