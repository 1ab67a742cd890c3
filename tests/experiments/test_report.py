"""The files that are written about a run: the report, its plots, CSV and event files."""

import csv
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from tensorboardX import RecordWriter
from tensorboardX.proto import event_pb2

from experiments.config import Config, DataConfig
from experiments.norms import GroupNorm
from experiments.run import report
from experiments.run.figures import logarithmic
from experiments.run.folder import RunFolder
from experiments.run.markdown import cell
from experiments.run.page import page
from experiments.run.plots import Plots
from experiments.run.settings import to_dict
from experiments.run.tensorboard import TensorBoard

PLOTS = {"curves.png", "learning_rate.png", "modes.png", "confusion.png", "drift.png"}
FULL = Path("/dev/full")
FILES = {"report.md", "report.html", "train.csv", "test.csv"}


def a_step(step, loss=1.0):
    metrics = {"loss": loss, "accuracy": 0.5, "learning_rate": 0.1, "grad_norm": 2.0}
    return {"kind": "train", "step": step, **metrics}


def an_evaluation(step, classes=3, layers=2, loss=0.5):
    scores = {"accuracy": 0.9, "accuracy_plain": 0.8, "accuracy_batch_statistics": 0.7}
    drift = {f"layer_{i}/norm": {"mean": 0.1 * i, "var": 0.2} for i in range(layers)}
    confusion = [[9 if i == j else i for j in range(classes)] for i in range(classes)]
    lists = {"confusion": confusion, "drift": drift}
    return {"kind": "test", "step": step, "loss": loss, **scores, **lists}


def a_run(path, train=None, test=None, classes=("a", "b", "c"), config=None, **changes):
    """Returns the folder of a finished run."""
    folder = RunFolder(path)
    folder.write("config.json", config or to_dict(Config("digits", epochs=2.0)))
    command = ["/home/me/experiments/train.py", "--output", "a folder"]
    environment = {"command": command, "devices": 1, "device": "cpu", "versions": {"jax": "1"}}
    folder.write("environment.json", environment)
    summary = {"preset": "digits", "steps_per_epoch": 2, "classes": list(classes), "accuracy": 0.9}
    folder.write("summary.json", summary | changes)
    folder.write("data.json", {"train_images": [64, 16, 8, 3], "test_images": [32, 16, 8, 3]})
    folder.append(train or [a_step(step) for step in (1, 2, 3, 4)])
    folder.append(test or [an_evaluation(step, len(classes)) for step in (2, 4)])
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Makes all plots a single point."""

    def write(plots):
        buffer = io.BytesIO()
        plt.imsave(buffer, [[0.0]], format="png")
        for name in PLOTS:
            (plots.folder / name).write_bytes(buffer.getvalue())

    monkeypatch.setattr("experiments.run.plots.Plots.write", write)


def written_report(folder):
    report.write_report(folder)
    return (folder.path / "report.md").read_text()


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_a_report_has_all_files_and_no_others(tmp_path):
    folder = a_run(tmp_path / "run")
    before = {path.name for path in folder.path.iterdir()}
    report.write_report(folder)
    assert {path.name for path in folder.path.iterdir()} - before == FILES | PLOTS


@pytest.mark.usefixtures("quick")
def test_the_report_says_how_the_run_was_made_and_how_to_go_on(tmp_path):
    folder = a_run(tmp_path / "my run")
    text = written_report(folder)
    assert "```bash\npython -m experiments.train --output 'a folder'\n```" in text
    assert "/home/me" not in text
    use = section(text, "Use the network")
    path = str(folder.path)
    assert f"python -m experiments.evaluate '{path}'\n" in use
    assert f"python -m experiments.predict '{path}' IMAGE.png\n" in use
    assert f"python -m experiments.export '{path}' network.jaxexport\n" in use
    assert f'import experiments\n\napply, variables = experiments.load("{path}")\n' in use
    assert "logits = apply(variables, images)  # uint8 [n, 16, 8, 3]\n" in use
    assert "tensorboard" not in use
    (folder.path / "tensorboard").mkdir()
    install, show = (
        "python -m pip install tensorboard",
        f"tensorboard --logdir '{path}/tensorboard'",
    )
    assert f"\n{install}\n{show}\n" in written_report(folder)


@pytest.mark.usefixtures("quick")
def test_the_result_explains_training_mode_before_its_accuracy(tmp_path):
    result = section(written_report(a_run(tmp_path)), "Result")
    assert "| accuracy in training mode | 70.00% |" in result
    assert " ".join(result.split()).index("accuracy in training mode is that of") < result.index(
        "| accuracy |"
    )


@pytest.mark.usefixtures("quick")
def test_the_result_says_which_images_and_which_network_the_run_had(tmp_path):
    folder = a_run(tmp_path, config=to_dict(Config("digits", data=DataConfig(train_size=64))))
    folder.write("run.json", {"init_from": None})
    result = section(written_report(folder), "Result")
    assert "| training images | 64 (limited by data.train_size), each 16x8x3 |" in result
    assert "| test images | 32, each 16x8x3 |" in result
    assert "started from" not in result
    folder.write("run.json", {"init_from": "runs/first"})
    start = "| started from the network of the run | runs/first |"
    assert start in section(written_report(folder), "Result")


@pytest.mark.usefixtures("quick")
def test_the_best_accuracy_has_the_epoch_of_its_checkpoint(tmp_path):
    scores = {1: 0.5, 2: 0.75, 3: 0.75, 4: 0.7}
    test = [an_evaluation(step) | {"accuracy": score} for step, score in scores.items()]
    folder = a_run(tmp_path, test=test)
    assert "| best accuracy of all evaluations | 75.00% at epoch 1 |" in written_report(folder)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("counts", "shown", "hidden"),
    [
        ([[9, 3, 1], [0, 9, 0], [0, 0, 9]], "| a | b | 3 |", "| a | c |"),
        (
            [[9, 0, 1], [0, 9, 0], [0, 0, 9]],
            "Each confusion of two classes occurs once",
            "| label |",
        ),
        ([[9, 2, 2], [2, 9, 2], [2, 2, 9]], "Not listed: 1 more", "| c | b |"),
        ([[9, 0, 0], [0, 9, 0], [0, 0, 9]], "no error", "| label |"),
    ],
)
def test_errors_that_occur_once_are_not_frequent(tmp_path, counts, shown, hidden):
    text = written_report(a_run(tmp_path, test=[an_evaluation(4) | {"confusion": counts}]))
    confusions = section(text, "Confusion matrix")
    assert shown in confusions
    assert hidden not in confusions


def test_networks_without_running_statistics_have_one_mode(tmp_path):
    config = to_dict(Config("digits", norm=GroupNorm()))
    folder = a_run(tmp_path, test=[an_evaluation(4, layers=0)], config=config)
    assert "raining mode" not in written_report(folder)
    assert not (folder.path / "drift.png").exists()


@pytest.mark.usefixtures("quick")
def test_changed_settings_come_first_and_those_without_effect_are_left_out(tmp_path):
    settings = section(written_report(a_run(tmp_path)), "Settings")
    changed, default = settings.split("| setting, as in the preset digits |")
    assert "| epochs | 2.0 |" in changed
    assert "| optimizer.schedule | (0, 1), (1, 0) |" in changed
    assert "| norm.decay | 0.9 |" in default
    assert "| seed | 0 |" in default
    for name in ("augment.pad", "data.train_size", "None", "r_max"):
        assert name not in settings


@pytest.mark.usefixtures("quick")
def test_old_folders_with_other_settings_are_reported(tmp_path):
    config = {"name": "digits", "norm": {"method": "batch", "decay": 0.5, "r_max": 3.0}}
    settings = section(written_report(a_run(tmp_path / "old", config=config)), "Settings")
    assert "| norm.decay | 0.5 |" in settings.split("| setting, as in the preset digits |")[0]
    assert "r_max" not in settings
    unknown = a_run(tmp_path / "unknown", config={"name": "digits", "mood": "good"})
    assert "mood" in section(written_report(unknown), "Settings")


@pytest.mark.usefixtures("quick")
def test_the_page_needs_no_other_file_and_shows_names_as_text(tmp_path):
    names = ("<script>alert(1)</script>", "*b*|c", "__d__ & `e`")
    folder = a_run(tmp_path, classes=names, data="<b>x")
    report.write_report(folder)
    html = (folder.path / "report.html").read_text()
    sources = re.findall(r'<img src="([^"]*)"', html)
    assert len(sources) == len(PLOTS)
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "<script" not in html
    assert "<title>small on &lt;b&gt;x</title>" in html
    for shown in ("&lt;script&gt;alert(1)&lt;/script&gt;", "*b*|c", "__d__ &amp; `e`"):
        assert f"<td>{shown}</td>" in html
    assert 'name="viewport"' in html


@pytest.mark.parametrize("text", ["a_b", "_a_", "*a*", "a|b", "[a](b)", "<i>", "&amp;", "\\", "~~"])
def test_cells_show_their_text(text, tmp_path):
    html = page("", f"| x |\n|---|\n| {cell(text)} |", tmp_path)
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{shown}</td>" in html


@pytest.mark.usefixtures("quick")
def test_metrics_are_csv(tmp_path):
    folder = a_run(tmp_path, train=[a_step(1), {"kind": "train", "step": 2, "loss": 0.25}])
    report.write_report(folder)
    with (folder.path / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["step", "loss", "accuracy", "learning_rate", "grad_norm"]
    assert [rows[0]["grad_norm"], rows[1]["loss"], rows[1]["grad_norm"]] == ["2.0", "0.25", ""]
    with (folder.path / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1.0", "2.0"]
    assert rows[0]["accuracy_batch_statistics"] == "0.7"
    assert "confusion" not in rows[0]


@pytest.mark.usefixtures("quick")
def test_a_file_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    folder = a_run(tmp_path)
    report.write_report(folder)
    old = (folder.path / "train.csv").read_bytes(), (folder.path / "report.html").read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("experiments.run.atomic.os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        report.write_report(folder)
    assert old == (
        (folder.path / "train.csv").read_bytes(),
        (folder.path / "report.html").read_bytes(),
    )
    assert not list(folder.path.glob(".*partial"))


@pytest.mark.parametrize("loss", [0.0, 1e30, 1e-30])
def test_one_step_and_one_evaluation_with_odd_numbers_are_drawn(tmp_path, loss):
    folder = a_run(tmp_path, [a_step(1, loss)], [an_evaluation(1, loss=loss)], loss=loss)
    written_report(folder)
    assert (folder.path / "curves.png").stat().st_size > 0


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the figures of a report, by the names of their files."""
    kept = {}
    monkeypatch.setattr(
        "experiments.run.plots.save", lambda figure, path: kept.update({path.name: figure})
    )
    yield kept
    plt.close("all")


def overlapping(labels):
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


@pytest.mark.parametrize(
    ("number", "name"),
    [
        *((2, "class {}"), (2, "a name that does not end before line {}"), (20, "{}")),
        *((20, "a name that does not end before line {}"), (100, "class {}")),
    ],
)
def test_names_of_classes_do_not_collide(tmp_path, drawn, number, name):
    classes = [name.format(i) for i in range(number)]
    Plots(tmp_path, [a_step(1)], [an_evaluation(2, number)], 2, classes).write()
    figure = drawn["confusion.png"]
    figure.canvas.draw()
    axis = figure.axes[0]
    assert 2 <= len(axis.get_xticks()) <= 20
    assert not overlapping(axis.get_xticklabels())
    assert not overlapping(axis.get_yticklabels())
    assert bool(axis.texts) == (number <= 20)


@pytest.mark.parametrize("layers", [2, 60])
def test_names_of_layers_do_not_collide(tmp_path, drawn, layers):
    Plots(tmp_path, [a_step(1)], [an_evaluation(4, layers=layers)], 2, ["a", "b", "c"]).write()
    figure = drawn["drift.png"]
    figure.canvas.draw()
    if layers == 2:
        labels = figure.legends[0].get_texts()
        assert [label.get_text() for label in labels] == ["layer_0/norm", "layer_1/norm"]
    else:
        labels = figure.axes[-1].get_yticklabels()
        assert len(labels) == 10
    assert not overlapping(labels)
    lines = figure.axes[0].lines
    assert {line.get_marker() for line in lines} == {"o"}


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.1, 2.0], ["0.1", "0.2", "0.5", "1", "2"]),
        ([0.25, 2.4], ["0.5", "1", "2"]),
        ([0.0, math.nan, 1.0, 3.0], ["1", "1.5", "2", "3"]),
        ([0.001, 1.0], ["0.001", "0.01", "0.1", "1"]),
        ([1e-12, 1.0], ["1e-12", "1e-10", "1e-08", "1e-06", "0.0001", "0.01", "1"]),
    ],
)
def test_logarithmic_axes_have_plain_numbers(values, labels):
    figure, axis = plt.subplots()
    axis.plot(values)
    logarithmic(axis, values)
    figure.canvas.draw()
    assert axis.get_yscale() == "log"
    assert [label.get_text() for label in axis.get_yticklabels()] == labels
    plt.close(figure)


@pytest.mark.parametrize("values", [[], [0.0], [math.nan, math.inf], [1.0, 2.0]])
def test_axes_stay_linear_if_a_logarithm_shows_nothing(values):
    figure, axis = plt.subplots()
    logarithmic(axis, values)
    assert axis.get_yscale() == "linear"
    plt.close(figure)


def curves(axis):
    return {line.get_label(): line.get_color() for line in axis.lines}


def test_a_color_and_a_label_have_one_meaning(tmp_path, drawn):
    train = [a_step(step) for step in range(1, 21)]
    Plots(tmp_path, train, [an_evaluation(20)], 20, ["a", "b", "c"]).write()
    training_and_test, modes = (
        curves(drawn["curves.png"].axes[0]),
        curves(drawn["modes.png"].axes[0]),
    )
    assert training_and_test.keys() == {"training, mean of 4 steps", "test"}
    assert modes["inference mode"] == training_and_test["test"]
    assert len({*modes.values(), *training_and_test.values()}) == 3


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.995, 1.0])
def test_a_small_difference_of_accuracies_does_not_fill_the_plot(tmp_path, drawn, accuracy):
    scores = {"accuracy_plain": accuracy, "accuracy_batch_statistics": abs(accuracy - 0.005)}
    Plots(tmp_path, [a_step(1)], [an_evaluation(2) | scores], 2, ["a", "b", "c"]).write()
    low, high = drawn["modes.png"].axes[0].get_ylim()
    assert high - low == pytest.approx(0.1)
    assert -0.02 <= low < min(scores.values())
    assert max(scores.values()) < high <= 1.02 + 1e-9


def test_names_of_classes_may_hold_any_character(tmp_path, drawn):
    names = ("数字", "\ud800", "bell\x07", "two\nlines", "naïve")
    Plots(tmp_path, [a_step(1)], [an_evaluation(2, len(names))], 2, names).write()
    figure = drawn["confusion.png"]
    figure.canvas.draw()
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == ["0: ??", "1: ?", "2: bell?", "two lines", "naïve"]


@pytest.mark.usefixtures("quick")
def test_texts_of_a_report_may_hold_any_character(tmp_path):
    folder = a_run(tmp_path, classes=("数字", "\ud800", "c"), data="\udcff")
    report.write_report(folder)
    for name in ("report.md", "report.html"):
        text = (folder.path / name).read_text("utf-8")
        assert "数字" in text
        assert "\\ud800" in text
        assert "\\udcff" in text


@pytest.mark.slow
def test_the_command_writes_nothing_to_stderr_without_a_home(tmp_path):
    folder = a_run(tmp_path / "run", classes=("数字", "\x07", "\ud800"))
    variables = {k: v for k, v in os.environ.items() if k not in ("MPLCONFIGDIR", "XDG_CACHE_HOME")}
    home = {"HOME": str(tmp_path / "run" / "summary.json" / "none")}
    command = [sys.executable, "-m", "experiments.run.report", str(folder.path)]
    done = subprocess.run(command, env=variables | home, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("summary.json", {}, "classes is missing"),
        ("summary.json", {"preset": "digits", "classes": 3, "steps_per_epoch": 2}, "classes is 3"),
        ("summary.json", {"preset": "x", "classes": [], "steps_per_epoch": 0}, "steps_per_epoch"),
        ("environment.json", {"versions": 3}, "versions is 3"),
        ("environment.json", [], "dictionary"),
        ("environment.json", {"command": None}, "command is None"),
        ("environment.json", {"command": ["python", 3]}, "command is 3"),
        ("config.json", {"name": "digits", "model": None}, "model is None"),
        ("data.json", {"train_images": [1, 2, 3, 4]}, "test_images is missing"),
        ("data.json", {"train_images": [1], "test_images": [1, 2, 3, 4]}, "train_images is [1]"),
        ("run.json", {"init_from": 3}, "init_from is 3"),
        ("metrics.jsonl", an_evaluation(4) | {"confusion": []}, "confusion matrix"),
        ("metrics.jsonl", an_evaluation(4) | {"confusion": [[1]]}, "confusion matrix"),
    ],
)
def test_the_command_names_a_damaged_file(tmp_path, capsys, name, content, words):
    path = a_run(tmp_path).path / name
    before = path.read_text() if name == "metrics.jsonl" else ""
    path.write_text(before + json.dumps(content) + "\n")
    assert report.main([str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {path} is damaged: ")
    assert words in printed
    assert printed.count("\n") == 1


def test_the_command_needs_a_finished_run(tmp_path, capsys):
    RunFolder(tmp_path / "half").write("config.json", {})
    for arguments, words in (
        ([], "Name one folder"),
        ([str(tmp_path)], "holds no finished run"),
        ([str(tmp_path / "half")], f"experiments.train --resume {tmp_path / 'half'}"),
    ):
        assert report.main(arguments) == 2
        printed = capsys.readouterr()
        assert words in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
    a_run(tmp_path / "run")
    assert report.main([str(tmp_path / "run")]) == 0


def events(folder):
    """Returns the events of all files, in TensorBoard's order."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + size]))  # pyright: ignore
            data = data[16 + size :]
    return found


def test_event_files_have_all_numbers_of_the_records(tmp_path):
    with TensorBoard(tmp_path, 0) as board:
        board.add([a_step(1, 0.25), an_evaluation(1)])
        header, start, train, test = events(tmp_path)  # They are on the disk before the end.
    assert header.file_version == "brain.Event:2"
    assert start.session_log.status == event_pb2.SessionLog.START  # pyright: ignore
    assert train.step == test.step == 1
    values = {value.tag: value.simple_value for value in train.summary.value}
    assert values == pytest.approx(
        {
            "train/loss": 0.25,
            "train/accuracy": 0.5,
            "train/learning_rate": 0.1,
            "train/grad_norm": 2.0,
        }
    )
    assert {value.tag for value in test.summary.value} == {
        *("test/loss", "test/accuracy", "test/accuracy_plain", "test/accuracy_batch_statistics"),
        *("drift/mean/layer_0/norm", "drift/var/layer_0/norm"),
        *("drift/mean/layer_1/norm", "drift/var/layer_1/norm"),
    }


def test_a_resumed_run_hides_the_steps_that_it_repeats(tmp_path):
    for first in (0, 4):
        with TensorBoard(tmp_path, first) as board:
            board.add([a_step(first + 1)])
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [1, 5]


@pytest.mark.skipif(not FULL.exists(), reason="This system has no device that is always full.")
def test_errors_of_the_disk_reach_the_caller(tmp_path, monkeypatch):
    with TensorBoard(tmp_path, 0) as board:
        full = RecordWriter(str(FULL))
        with monkeypatch.context() as patch:
            patch.setattr(board, "_writer", full)
            with pytest.raises(OSError, match="No space left"):
                board.add([an_evaluation(1)])
        with pytest.raises(OSError, match="No space left"):
            full.close()
