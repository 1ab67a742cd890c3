"""Gathered runs: their stored form, and the tables that are made from it."""

import csv
import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from experiments import gather
from experiments.config import DataConfig
from experiments.configs import PRESETS
from experiments.models import ResNet20
from experiments.norms import BatchRenorm
from experiments.run.folder import RunFolder
from experiments.run.results import markdown, read_result
from experiments.run.settings import to_dict
from experiments.studies.tools.study_folder import folder_of

OLD = '[{"config": {"name": "digits"}, "environment": {}, "outcome": {}}]'
ODD = '[{"config": 5, "environment": {}, "outcome": {"last_step": 3}}]'
EXPERIMENTS = Path(gather.__file__).parent


def finished(path, seed, accuracy, **changes):
    folder = RunFolder(path)
    config = dataclasses.replace(PRESETS["digits"], seed=seed, **changes)
    folder.write("config.json", to_dict(config))
    folder.write("environment.json", {"command": ["somewhere"], "cpus": 2})
    folder.append([{"kind": "train", "step": step} for step in (1, 2, 3)])
    if accuracy is not None:
        seconds = {"compiling": 1.0, "training": 10.0 * (1 + seed), "evaluating": 1.0}
        values = {"accuracy": accuracy, "accuracy_plain": 0.5, "loss": 1.0, "steps": 3}
        folder.write("summary.json", {**values, "seconds": seconds, "images_per_second": 7.0})
    return str(path)


def test_runs_of_one_configuration_share_a_row(tmp_path, capsys):
    others = {"model": ResNet20(), "norm": BatchRenorm(scale=False)}
    folders = [
        finished(tmp_path / "a", 0, 0.90),
        finished(tmp_path / "b", 1, 0.92),
        finished(tmp_path / "c", 0, None, epochs=3.0),
        finished(tmp_path / "d", 1, None, epochs=3.0, **others),
    ]
    file = tmp_path / "results" / "digits.json"
    assert gather.main([str(file), *folders]) == 0
    stored = json.loads(file.read_text())
    assert capsys.readouterr().out == markdown(stored) + "\n"
    assert markdown(stored).splitlines()[2:] == [
        "| `digits` | 2 | 91.00% ± 1.41% | 15 ± 7 |",
        "| `digits --epochs 3` | 1 | 1 of 1 ended early, after step 3 |  |",
        "| `digits --model.name resnet20 --norm.no-scale --norm.method renorm --epochs 3` | 1"
        " | 1 of 1 ended early, after step 3 |  |",
    ]
    assert "somewhere" not in file.read_text()
    assert stored[1]["config"]["seed"] == 1


def test_runs_are_added_once_to_those_in_the_file(tmp_path):
    file, a, b = tmp_path / "results.json", tmp_path / "a", tmp_path / "b"
    folders = [finished(a, 0, 0.90), finished(b, 1, 0.92)]
    assert gather.main([str(file), folders[0]]) == 0
    assert gather.main([str(file), *reversed(folders)]) == 0
    assert json.loads(file.read_text()) == [read_result(RunFolder(f)) for f in (a, b)]


def test_a_run_that_was_resumed_is_added_once(tmp_path):
    file, path = tmp_path / "results.json", tmp_path / "a"
    line = [str(file), finished(path, 0, 0.9)]
    assert gather.main(line) == 0
    folder = RunFolder(path)
    folder.write("environment.json", folder.read("environment.json") | {"resumed": [{}]})
    first = read_result(folder)
    folder.write("summary.json", folder.read("summary.json") | {"seconds": {"training": None}})
    assert gather.main(line) == 0
    assert json.loads(file.read_text()) == [first]


def test_a_run_whose_data_has_moved_is_added_once(tmp_path):
    file, path = tmp_path / "results.json", tmp_path / "a"
    for dataset in ("/old/data.npz", "/new/data.npz"):
        line = [str(file), finished(path, 0, 0.9, data=DataConfig(dataset))]
        RunFolder(path).write("data.json", {"fingerprint": "f"})
        assert gather.main(line) == 0
    assert json.loads(file.read_text()) == [read_result(RunFolder(path))]


def test_a_run_that_went_on_replaces_its_result(tmp_path):
    file, path = tmp_path / "results.json", tmp_path / "a"
    for accuracy in (None, 0.9):
        assert gather.main([str(file), finished(path, 0, accuracy)]) == 0
    assert json.loads(file.read_text()) == [read_result(RunFolder(path))]


def test_a_result_of_an_older_version_is_known_again(tmp_path):
    file, path = tmp_path / "results.json", tmp_path / "a"
    line = [str(file), finished(path, 0, 0.9)]
    RunFolder(path).write("data.json", {"fingerprint": "f"})
    new = read_result(RunFolder(path))
    old = {k: v for k, v in new.items() if k not in ("init_from", "fingerprint")}
    file.write_text(json.dumps([old]))
    assert gather.main(line) == 0
    assert json.loads(file.read_text()) == [new]


def test_a_pipe_or_a_folder_without_runs_is_a_one_line_error(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    RunFolder(tmp_path / "runs").write("parts.json", {})
    run = finished(tmp_path / "a", 0, 0.9)
    for file, folder in (("pipe", run), ("file.json", str(tmp_path / "runs"))):
        assert gather.main([str(tmp_path / file), folder]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", ["", "{", "3", "{}", "[3]", '[{"config": {}}]', OLD, ODD])
def test_a_file_with_something_else_is_kept(tmp_path, capsys, content):
    file = tmp_path / "results.json"
    file.write_text(content)
    assert gather.main([str(file), finished(tmp_path / "a", 0, 0.9)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {file} holds no results")
    assert file.read_text() == content


def test_another_run_of_the_same_seed_is_refused(tmp_path, capsys):
    file, folders = tmp_path / "results.json", [tmp_path / "a", tmp_path / "b"]
    line = [str(file), *(finished(folder, 0, 0.9 + i / 10) for i, folder in enumerate(folders))]
    assert gather.main(line) == 2
    assert f"the settings of {folders[1]} and its seed" in capsys.readouterr().err
    assert not file.exists()


def test_runs_on_other_images_are_refused(tmp_path, capsys):
    file, folders = tmp_path / "results.json", [tmp_path / "a", tmp_path / "b"]
    line = [str(file), *(finished(folder, i, 0.9) for i, folder in enumerate(folders))]
    for folder in folders:
        RunFolder(folder).write("data.json", {"fingerprint": folder.name})
    assert gather.main(line) == 2
    assert f"the settings of {folders[1]} but other images" in capsys.readouterr().err


def test_runs_from_other_weights_have_a_row_of_their_own(tmp_path):
    file, folders = tmp_path / "results.json", [tmp_path / "a", tmp_path / "b"]
    line = [str(file), *(finished(folder, 0, 0.9) for folder in folders)]
    RunFolder(folders[1]).write("run.json", {"init_from": "/runs/my first"})
    assert gather.main(line) == 0
    rows = markdown(json.loads(file.read_text())).splitlines()[2:]
    assert [row.split("|")[1] for row in rows] == [
        " `digits` ",
        " `digits --init-from '/runs/my first'` ",
    ]


def test_a_folder_of_several_runs_gives_all_of_them(tmp_path):
    for seed in range(2):
        finished(tmp_path / "runs" / f"seed-{seed}", seed, 0.9)
    RunFolder(tmp_path / "runs").write("parts.json", {})
    assert gather.main([str(tmp_path / "file.json"), str(tmp_path / "runs")]) == 0
    assert [run["config"]["seed"] for run in json.loads((tmp_path / "file.json").read_text())] == [
        0,
        1,
    ]


def test_settings_that_differ_in_the_last_digit_have_rows_of_their_own(tmp_path):
    folders = [finished(tmp_path / str(e), 0, 0.9, epochs=e) for e in (1.0, 1.00000001)]
    rows = markdown([read_result(RunFolder(Path(folder))) for folder in folders]).splitlines()[2:]
    assert [row.split("|")[1] for row in rows] == [
        " `digits --epochs 1` ",
        " `digits --epochs 1.00000001` ",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [("summary.json", "{}"), ("config.json", '{"name": 3}'), ("environment.json", "[]")],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path, capsys, name, content):
    folder = finished(tmp_path / "a", 0, 0.9)
    (tmp_path / "a" / name).write_text(content)
    assert gather.main([str(tmp_path / "file.json"), folder]) == 2
    assert f"{tmp_path}/a/{name}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["file.json"]])
def test_without_folders_it_says_what_is_missing(arguments, capsys):
    assert gather.main(arguments) == 2
    assert "FILE" in capsys.readouterr().err


def test_an_empty_folder_is_a_one_line_error(tmp_path, capsys):
    assert gather.main([str(tmp_path / "file.json"), str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no run")
    assert not (tmp_path / "file.json").exists()


@pytest.mark.parametrize(
    "file", sorted((EXPERIMENTS / "results").glob("*.json")), ids=lambda f: f.stem
)
def test_the_tables_are_those_of_the_stored_runs(file):
    assert markdown(json.loads(file.read_text())) in (EXPERIMENTS / "README.md").read_text()


def test_the_stored_curves_are_those_of_the_stored_run():
    *_, run = json.loads((EXPERIMENTS / "results" / "cifar10.json").read_text())
    with (EXPERIMENTS / "results" / "cifar10" / "test.csv").open() as file:
        *_, last = csv.DictReader(file)
    outcome = run["outcome"]
    assert int(last["step"]) == outcome["steps"]
    for name in ("accuracy", "accuracy_plain", "loss"):
        assert float(last[name]) == outcome[name]


@pytest.mark.parametrize("scale", ["digits", "cifar10"])
def test_the_tables_of_methods_are_the_studys(scale):
    answer = folder_of(EXPERIMENTS / "studies/results", "batch_size", scale) / "answer.md"
    table = re.search(r"^\|.*\|$", answer.read_text(), re.S | re.M)
    assert table
    assert len(table[0].splitlines()) == 7
    assert table[0] in (EXPERIMENTS.parent / "docs" / "studies.md").read_text()
