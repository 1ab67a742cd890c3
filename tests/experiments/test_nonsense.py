"""Wrong input: each ends in one line that names the argument, and leaves no folder behind."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import evaluate, export, predict, train
from experiments.run.folder import RunFolder

TINY = [
    *("digits", "--data.train-size", "128", "--data.test-size", "64", "--model.width", "4"),
    *("--model.depth", "1", "--eval-batch-size", "64", "--epochs", "0.5", "--devices", "1"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder of a finished run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train.main([*TINY, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _no_training(request, monkeypatch, tmp_path):
    """Fails if nonsense reaches the first training step; relative paths lie in a new folder."""
    if "whole" not in request.fixturenames:

        def fit(_):
            raise AssertionError("The run starts to train.")

        monkeypatch.setattr(train, "fit", fit)
    monkeypatch.chdir(tmp_path)


def the_error(capfd) -> str:
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, "\n".join(lines)
    assert lines[0].startswith("error: ")
    return lines[0]


def files(folder: Path) -> dict[str, bytes]:
    """Returns the content of all files, but not of the lock."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


NUMBERS = [
    *("--epochs 0", "--epochs -1", "--epochs nan", "--epochs inf", "--epochs 1e-9"),
    *("--batch-size 0", "--batch-size -64", "--batch-size 2.5", "--batch-size 64x"),
    *("--eval-batch-size 0", "--eval-batch-size -1", "--eval-every 0", "--eval-every nan"),
    *("--eval-every -1", "--chunk 0", "--chunk -5", "--chunk 1.5", "--devices 0", "--devices -1"),
    *("--seed -1", "--seed 2147483648", "--seed x", "--seeds 0", "--seeds -2", "--wait 0"),
    *("--wait nan", "--label-smoothing 1", "--label-smoothing -0.1", "--label-smoothing nan"),
    *("--classes-per-batch 0", "--classes-per-batch 5", "--classes-per-batch 64"),
    *("--optimizer.learning-rate 0", "--optimizer.learning-rate -1"),
    *("--optimizer.learning-rate nan", "--optimizer.learning-rate inf", "--optimizer.momentum 1"),
    *("--optimizer.momentum -0.1", "--optimizer.weight-decay -1", "--optimizer.weight-decay nan"),
    *("--optimizer.norm-bias-factor 0", "--optimizer.schedule 1 1 0 1"),
    *("--optimizer.schedule 0 -1", "--optimizer.schedule 0 nan", "--optimizer.schedule 0 0 1 0"),
    *("--optimizer.schedule", "--optimizer.schedule 0 1 0.5", "--optimizer.schedule 0 1 2 0"),
    *("--norm.decay 1", "--norm.decay -0.1", "--norm.decay nan", "--norm.epsilon 0"),
    *("--norm.epsilon -1", "--norm.group-size 0", "--norm.group-size 5", "--model.width 0"),
    *("--model.depth 0", "--model.depth 2.5", "--data.train-size 0", "--data.test-size 0"),
    *("--data.shrink 0", "--data.gain 0", "--data.gain inf", "--augment.shift -1"),
    *("--augment.shift 8", "--process -1", "--processes 0", "--wait 1e300", "--epochs 1e39"),
    *("--seeds 2147483648", "--optimizer.weight-decay 1e300", f"--batch-size 1{'0' * 400}"),
    *(f"--eval-batch-size 1{'0' * 19}", f"--model.width 1{'0' * 12}"),
]


@pytest.mark.parametrize("flags", NUMBERS)
def test_a_number_that_makes_no_sense_is_refused(flags, capfd):
    check(["digits", *given(flags), "--output", "out"], flags.split()[0], capfd)


def given(flags: str) -> list[str]:
    """Returns flags. A single value is joined to its flag, because it may start with `-`."""
    name, *values = flags.split(" ")
    return [f"{name}={values[0]}"] if len(values) == 1 else [name, *values]


def check(arguments, words, capfd, command=train, output="out"):
    """Checks that a command ends with an error that has these words, and writes no folder."""
    assert command.main([str(argument) for argument in arguments]) == 2
    assert words in the_error(capfd)
    assert not Path(output).exists()


SETTINGS = {
    "nonsense": "no preset 'nonsense'",
    "digits --sweep eval-every 0.5 1": "eval-every is no setting",
    "digits --sweep init-from a b": "init-from is no setting",
    "digits --sweep optimizer.lookahead 0 1": "True and False",
    "digits --devices 1 --batch-size 1 --data.shrink 4": "--batch-size 1 is too small",
    "digits --devices 1 --eval-batch-size 1 --data.shrink 4": "--eval-batch-size 1 is too small",
    "Digits": "no preset 'Digits'",
    "--epochs 1 digits": "The preset digits goes first",
    "digits cifar10": "The preset cifar10 goes first",
    "digits extra": "extra",
    "digits --norm.decay 0.5 --sweep norm.decay 0.5 0.6": "--norm.decay has no effect with a sweep",
    "digits --output=": "--output is empty",
    "digits --data-dir=": "--data-dir is empty",
    "digits --sweep epochs 1 2 --sweep batch-size 8 16": "--sweep is given twice",
    "digits --nonsense 1": "--nonsense",
    "digits --norm.nonsense 1": "--norm.nonsense",
    "digits --epochs": "--epochs",
    "digits --epochs ten": "--epochs",
    "digits --name other": "--name, other",
    "digits --norm.method nonsense": "--norm.method nonsense",
    "digits --model.name nonsense": "--model.name nonsense",
    "digits --views nonsense": "--views",
    "digits --precision float16": "--precision",
    "digits --augment.flip maybe": "--augment.flip",
    "digits --augment.pad one": "--augment.pad",
    "digits --model.activation tanh": "--model.activation",
    "digits --optimizer.nesterov maybe": "maybe",
    "digits --norm.group-size 4 --norm.method inplace": "--norm.group-size has no effect",
    "digits --norm.decay 0.5 --norm.method group": "--norm.decay has no effect",
    "digits --norm.decay 0.5 --norm.method none": "--norm.decay has no effect",
    "digits --norm.epsilon 1 --norm.method none": "--norm.epsilon has no effect",
    "digits --norm.r-max 2": "--norm.r-max has no effect",
    "digits --norm.channels-per-group 4": "--norm.channels-per-group has no effect",
    "digits --norm.unbiased --norm.method renorm": "--norm.unbiased has no effect",
    "digits --norm.method renorm --norm.r-max 0.5": "--norm.r-max 0.5",
    "digits --norm.method renorm --norm.d-max=-1": "--norm.d-max -1",
    "digits --norm.method renorm --norm.widening-steps=-1": "--norm.widening-steps -1",
    "digits --norm.method group --norm.channels-per-group 0": "--norm.channels-per-group 0",
    "digits --norm.method group --norm.channels-per-group 5": "group size (5)",
    "digits --norm.method inplace --model.activation sigmoid": "--model.activation sigmoid",
    "cifar10 --model.width 8": "--model.width has no effect",
    "resnet20 --model.depth 8": "--model.depth has no effect",
    "digits --model.widths 8 8 8": "--model.widths has no effect",
    "digits --model.name airbench --model.widths 8 8": "--model.widths",
    "digits --model.name airbench --model.widths 8 0 8": "--model.widths 0",
    "digits --model.name airbench --model.whiten-epochs=-1": "--model.whiten-epochs -1",
    "digits --model.name airbench": "--model.name airbench cannot take images",
    "digits --data.shrink 8 --augment.shift 0": "--model.name small cannot take images",
    "digits --data.shrink 3": "data.shrink=3",
    "digits --data.train-size 99999": "data.train_size=99999",
    "digits --data.test-size 361": "data.test_size=361",
    "digits --data.resize 4": "data.resize=4 has no effect",
    "digits --data.dataset nonsense": "data.dataset=nonsense",
    "digits --data.dataset ~nosuchuser/x.npz": "~nosuchuser/x.npz starts with the home folder",
    "digits --data.dataset nonsense.npz": "data.dataset=nonsense.npz",
    "digits --data-dir X": "--data-dir X has no effect",
    "digits --data-variant X": "--data-variant 'X' has no effect",
    "cifar10 --data-dir nowhere": "nowhere cannot be read",
    "digits --batch-size 2000 --devices 1": "--batch-size 2000 is more than",
    "digits --batch-size 60 --devices 8": "batch_size=60",
    "digits --devices 99": "--devices 99",
    "digits --devices 3": "3 devices",
    "digits --process 1": "--process 1",
    "digits --coordinator a:1": "--coordinator a:1 has no effect",
    "digits --processes 2": "--coordinator",
    "digits --processes 2 --process 2 --coordinator a:1": "--process 2",
    "digits --processes 2 --coordinator a": "--coordinator a must be",
    "digits --processes 2 --coordinator a:b": "--coordinator a:b",
    "digits --processes 2 --coordinator a:0": "--coordinator a:0",
    "digits --processes 2 --coordinator a:65536": "--coordinator a:65536",
    "digits --distributed --processes 2": "--distributed",
    "digits --sweep norm.decay": "--sweep norm.decay",
    "digits --sweep": "--sweep needs",
    "digits --sweep norm.decay 0.9 0.90": "two of the values are the same",
    "digits --sweep data.dataset a/b a_b": "would have the same folder",
    "digits --devices 1 --sweep batch-size 64 2000": "--batch-size 2000 is more than",
    "digits --devices 1 --sweep data.dataset digits a.npz": "a.npz",
    "digits --seed 2147483647 --seeds 2": "--seeds 2",
    "digits --config=": "--config",
    "--config= digits": "--config .",
    "digits --sweep norm.decay 0.5 0.5": "--sweep norm.decay",
    "digits --sweep norm.decay 0.5 2": "--sweep norm.decay 2",
    "digits --sweep norm.decay 0.5 x": "--sweep norm.decay x",
    "digits --sweep nonsense 1 2": "--sweep nonsense 1",
    "digits --sweep seed 1 2": "--sweep seed",
    "digits --sweep norm.method batch nonsense": "--norm.method nonsense",
    "digits --seeds 2 --data-dir X": "--data-dir X",
    "digits --init-from nowhere": "nowhere/config.json is missing",
    "digits --seeds 2 --init-from nowhere": "nowhere/config.json is missing",
    "digits --config nowhere.json": "--config nowhere.json",
    "--config nowhere.json": "--config nowhere.json",
    "--config .": "--config .",
    "--resume nowhere": "nowhere/config.json is missing",
    "--resume nowhere --init-from elsewhere": "nowhere",
    "--resume .": "config.json is missing",
}


@pytest.mark.parametrize("line", SETTINGS)
def test_settings_that_contradict_or_do_not_exist_are_refused(line, capfd):
    output = [] if "--resume" in line else ["--output", "out"]
    check([*line.split(), *output], SETTINGS[line], capfd)


CONFIGS = {
    "": "Expecting value",
    "{": "--config file.json",
    "[]": "dictionary",
    "3": "dictionary",
    '{"nonsense": 1}': "'nonsense'",
    '{"name": "digits", "epoch": 1}': "'epoch'",
    '{"name": "digits", "norm": {"methode": "batch"}}': "'norm.methode'",
    '{"name": "digits", "norm": {"method": "nonsense"}}': "norm.method is 'nonsense'",
    '{"name": "digits", "norm": 3}': "norm",
    '{"name": "digits", "data": {"dataset": "a\\u0000b"}}': "null character",
    '{"name": "digits", "epochs": "ten"}': "epochs is 'ten'",
    '{"name": "digits", "epochs": -1}': "--epochs -1",
    '{"name": "digits", "epochs": NaN}': "--epochs nan",
    '{"name": "digits", "batch_size": 2.5}': "batch_size is 2.5",
    '{"name": "digits", "optimizer": {"schedule": [[0, 1, 2]]}}': "schedule",
    '{"name": "other"}': "name 'other' must be",
    "{}": "name",
    '{"name": "digits", "norm": {"method": ["batch"]}}': "norm.method is ['batch']",
    '{"name": "digits", "model": {"name": {}}}': "model.name is {}",
    f'{{"name": "digits", "epochs": 1{"0" * 400}}}': "epochs is 1",
    "[" * 100_000: "--config file.json",
}


@pytest.mark.parametrize("content", CONFIGS)
def test_a_file_that_is_no_configuration_is_refused(content, capfd):
    Path("file.json").write_text(content)
    check(["--config", "file.json", "--output", "out"], CONFIGS[content], capfd)


def test_a_file_of_other_bytes_is_no_configuration(capfd):
    Path("file.json").write_bytes(b"\xff\xfe\x00")
    check(["--config", "file.json", "--output", "out"], "--config file.json", capfd)


def test_a_run_does_not_write_into_its_folder_of_images(capfd):
    for name in ("a", "b"):
        Path("images", name).mkdir(parents=True)
    line = ["digits", "--data.dataset", "images", "--output", "images/run"]
    check(line, "--output images/run is in the folder of images", capfd, output="images/run")


DATA = {
    **{"train_images": 3, "classes": 3, "mean": "x", "std": [[1.0]]},
    **{"train_images ": [1, 8, 8], "classes ": [1, 2], "mean ": [1.0, 2.0]},
}


@pytest.mark.parametrize("name", DATA)
def test_data_of_another_type_are_damaged(name, whole, capfd):
    shutil.copytree(whole, "run")
    data = RunFolder(Path("run")).read("data.json")
    Path("run", "data.json").write_text(json.dumps(data | {name.strip(): DATA[name]}))
    check(["run", "image.png"], "run/data.json is damaged", capfd, predict)


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/nope/run"])
@pytest.mark.parametrize("flags", ["", "--seeds 2"])
def test_an_output_that_cannot_be_a_folder_is_refused(place, flags, capfd):
    Path("file").write_text("kept")
    assert train.main([*TINY, *flags.split(), "--output", place]) == 2
    assert place.removesuffix("/run") in the_error(capfd)
    assert Path("file").read_text() == "kept"


def test_a_path_of_two_lines_makes_an_error_of_one(capfd):
    check(["--resume", "a\nb"], r"a\nb", capfd)


@pytest.mark.parametrize("command", [evaluate, export])
@pytest.mark.parametrize("name", ["config.json", "curves.png", ".lock"])
def test_a_file_of_a_run_is_not_replaced_by_an_output(command, name, whole, capfd):
    shutil.copytree(whole, "run")
    before = files(Path("run"))
    flags = ["--output"] * (command is evaluate)
    check(["run", *flags, f"run/{name}"], f"{name} is a file of the run in ", capfd, command)
    assert files(Path("run")) == before


@pytest.mark.parametrize("name", ["config.json", "checkpoints/newest/1/default/_METADATA"])
def test_a_file_of_a_run_is_not_replaced_through_a_link(name, whole, capfd):
    shutil.copytree(whole, "run")
    assert Path("run", name).exists()
    Path("link").symlink_to(Path("run", name))
    before = files(Path("run"))
    check(["run", "--output", "link"], "link is a file of the run in ", capfd, evaluate)
    assert files(Path("run")) == before


@pytest.mark.parametrize("file", [".", "folder", "", "file/results.json"])
def test_an_output_must_be_a_file(file, whole, capfd):
    Path("folder").mkdir()
    Path("file").write_text("kept")
    check([whole, "--output", file], "folder. Name", capfd, evaluate)


def test_a_run_without_the_hash_of_its_images_is_not_resumed(whole, capfd):
    shutil.copytree(whole, "run")
    Path("run", "data.json").unlink()
    check(["--resume", "run", "--devices", "1"], "data.json is missing", capfd)


@pytest.mark.parametrize("name", ["config.json", "run.json", "data.json", "metrics.jsonl"])
def test_a_full_disk_ends_the_run_with_one_line(name, capfd, monkeypatch):
    write_text, open_file = Path.write_text, Path.open

    def full(path):
        if name in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", lambda p, *a, **k: (full(p), write_text(p, *a, **k))[1])
    monkeypatch.setattr(Path, "open", lambda p, *a, **k: (full(p), open_file(p, *a, **k))[1])
    assert train.main([*TINY, "--output", "out"]) == 2
    error = the_error(capfd)
    assert "No space left on device" in error
    assert name in error


FILES = {
    "config.json": {
        **dict.fromkeys(("", "{", "[]", "{}", "\xff"), "config.json"),
        '{"nonsense": 1}': "'nonsense'",
        '{"name": "digits", "epochs": "ten"}': "epochs is 'ten'",
        '{"name": "digits", "epochs": -1}': "--epochs -1",
    },
    "run.json": dict.fromkeys(
        ("", "{", "[]", "3", '{"chunk": "x"}', '{"eval_every": "x"}', '{"data_dir": 3}'), "run.json"
    ),
    "data.json": dict.fromkeys(("", "{", "[]", "{}"), "data.json"),
    "environment.json": dict.fromkeys(("", "{", "[]", '{"resumed": 3}'), "environment.json"),
    "parts.json": dict.fromkeys(
        (
            *("", "{", "[]", "{}", '{"config": 3, "seeds": 2, "sweep": []}'),
            '{"config": {"name": "digits"}, "seeds": "x", "sweep": []}',
            '{"config": {"name": "digits"}, "seeds": 2, "sweep": 3}',
        ),
        "parts.json",
    ),
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, found in FILES.items() for content in found]
)
def test_a_damaged_file_of_a_run_is_named_and_nothing_is_changed(name, content, whole, capfd):
    shutil.copytree(whole, "run")
    Path("run", name).write_text(content, encoding="latin-1")
    before = files(Path("run"))
    check(["--resume", "run", "--devices", "1"], FILES[name][content], capfd)
    assert files(Path("run")) == before


RESUMES = {
    "--epochs 2": "epochs: 0.5 -> 2.0",
    "--norm.decay 0.5": "norm.decay: 0.9 -> 0.5",
    "--norm.method group": "norm.method: batch -> group",
    "--output out": "--output has no effect with --resume",
    "--init-from run": "--init-from has no effect with --resume",
    "--seeds 2": "--seeds",
    "--sweep norm.decay 0.5 0.6": "--sweep",
    "--chunk 0": "--chunk 0",
    "--data-dir X": "--data-dir X",
    "--config run/config.json": "--config",
    "--seed 3": "seed: 0 -> 3",
}


@pytest.mark.parametrize("flags", RESUMES)
def test_a_run_is_not_resumed_with_other_settings(flags, whole, capfd):
    shutil.copytree(whole, "run")
    before = files(Path("run"))
    check(["--resume", "run", "--devices", "1", *flags.split()], RESUMES[flags], capfd)
    assert files(Path("run")) == before


@pytest.mark.parametrize("flags", ["", "--seeds 2"])
def test_a_folder_with_a_run_gets_no_other_run(flags, whole, capfd):
    shutil.copytree(whole, "run")
    before = files(Path("run"))
    check([*TINY, *flags.split(), "--output", "run"], "already holds a run", capfd)
    assert files(Path("run")) == before


OTHER_NETWORKS = {
    "--norm.method none --model.width 8": "--init-from",
    "--model.name resnet20": "--init-from",
}


@pytest.mark.parametrize("flags", OTHER_NETWORKS)
def test_a_run_does_not_start_from_a_network_that_has_little_in_common(flags, whole, capfd):
    line = [*TINY[:5], "--eval-batch-size", "64", "--devices", "1", *flags.split()]
    check([*line, "--init-from", whole, "--output", "out"], OTHER_NETWORKS[flags], capfd)


@pytest.mark.parametrize(
    ("command", "rest"), [(evaluate, []), (predict, ["image.png"]), (export, ["out"])]
)
def test_commands_for_networks_name_what_is_missing(command, rest, whole, capfd):
    check(["nowhere", *rest], "nowhere/config.json is missing", capfd, command)
    Path("file").write_text("")
    check(["file", *rest], "file/config.json", capfd, command)
    check([], "Folder of the run", capfd, command)
    check([whole, *rest, "--nonsense"], "--nonsense", capfd, command)
    check([whole, *rest, "--checkpoint", "oldest"], "--checkpoint", capfd, command)
    shutil.copytree(whole, "run")
    shutil.rmtree("run/checkpoints")
    check(["run", *rest], "checkpoint", capfd, command)
    assert not Path("run/checkpoints").exists()
    Path("run/data.json").write_text("[]")
    check(["run", *rest], "data.json", capfd, command)


def test_predict_refuses_what_is_no_image(whole, capfd):
    Path("text.png").write_text("This is no image.")
    check([whole, "text.png"], "text.png", capfd, predict)
    check([whole, "nowhere.png"], "nowhere.png", capfd, predict)
    check([whole, "."], ". cannot be read as an image", capfd, predict)
    check([whole], "image", capfd, predict)
    check([whole, "text.png", "--top", "0"], "--top 0", capfd, predict)


def test_evaluate_refuses_images_that_do_not_fit(whole, capfd):
    images, labels = np.zeros((20, 8, 8), np.uint8), np.array(["9", "cat"] * 10)
    np.savez("classes.npz", images=images, labels=labels)
    check([whole, "--data", "classes.npz"], "class 'cat', which the network", capfd, evaluate)
    np.savez("sizes.npz", images=np.zeros((100, 4, 4), np.uint8), labels=np.arange(100) % 10)
    check([whole, "--data", "sizes.npz"], "(4, 4, 1)", capfd, evaluate)
    np.savez("labels.npz", images=images, labels=np.array([3, 12] * 10))
    check([whole, "--data", "labels.npz"], "labels from 3 to 12", capfd, evaluate)
    check([whole, "--data", "~nobody-here/x"], "~nobody-here/x", capfd, evaluate)
    check([whole, "--data", "nowhere.npz"], "nowhere.npz", capfd, evaluate)
    check([whole, "--data", "digits", "--data-dir", "X"], "--data-dir X", capfd, evaluate)
    check([whole, "--output", "sizes.npz/out.json"], "sizes.npz", capfd, evaluate)


def test_export_refuses_a_place_or_a_platform_that_does_not_exist(whole, capfd):
    Path("file").write_text("kept")
    check([whole, "file/network"], "file", capfd, export)
    check([whole, "out", "--platforms", "abacus"], "abacus", capfd, export)
    Path("folder").mkdir()
    check([whole, "folder"], "folder", capfd, export)


def test_the_report_of_no_run_is_refused(whole, capfd):
    from experiments.run import report

    check(["nowhere"], "nowhere", capfd, report)
    check([], "folder", capfd, report)


def test_a_value_that_is_not_finite_never_reaches_the_files(whole):
    records = RunFolder(whole).records()
    assert "NaN" not in json.dumps(records)
