"""The text of a run's report."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.run.markdown import cell, fenced, number, pairs, table
from experiments.run.report_files import Content, RunFiles, command
from experiments.run.report_settings import settings


def report_text(run: RunFiles) -> str:
    """Returns the report of a run in Markdown."""
    last = run.test[-1]
    has_statistics = bool(last.get("drift"))
    paragraphs = [
        f"# {cell(title(run.config, run.summary))}",
        fenced("bash", _made_by(run.environment)),
        "## Result",
        *([_MODES_EXPLAINED] if has_statistics else []),
        pairs(("test", ""), _scores(run)),
        pairs(("training", ""), _cost(run)),
        "## Loss and accuracy",
        "![Loss and accuracy over epochs](curves.png)",
        *([_MODES] if has_statistics else []),
        "## Confusion matrix",
        "![Confusion matrix](confusion.png)",
        _confusions(run.summary["classes"], last["confusion"]),
        "## Learning rate",
        "![Learning rate over epochs](learning_rate.png)",
        "## Use the network",
        *_use(run.path, run.data["test_images"][1:]),
        "## Settings",
        *settings(run.config),
        "## Machine",
        pairs(("", ""), _machine(run.environment)),
    ]
    return "\n\n".join(paragraphs) + "\n"


_MODES_EXPLAINED = """The running statistics normalize the test images (inference mode). The
accuracy in training mode is that of the same images when the statistics of each test batch
normalize them, as in training."""

_MODES = """## Training mode and inference mode

![Test accuracy in both modes over epochs](modes.png)

The plots below compare the running statistics of each layer with the statistics of a batch of
training images. The smaller the values, the better they agree. In the upper plot, 0.1 says that the
means differ by a tenth of a standard deviation. In the lower plot, 0.1 says that the variances
differ by about 10%, and 0.7 that one of them is about twice the other. Each value is an average
(the root mean square) over the features of a layer.

![Distance of running statistics from batch statistics, by layer](drift.png)"""


def _made_by(environment: Content) -> str:
    """Returns the command that made the run, without the machine's paths."""
    given = environment.get("command") or "unknown"
    if isinstance(given, str):
        return given
    script, *arguments = map(str, given)
    return command(Path(script).stem, *arguments)


def _scores(run: RunFiles) -> dict[str, str]:
    summary, last = run.summary, run.test[-1]
    scores = {
        "test images": _images(run, "test"),
        "accuracy": number(summary.get("accuracy"), ".2%"),
    }
    if run.config.get("views") != "plain":
        scores["accuracy with single views"] = number(last.get("accuracy_plain"), ".2%")
    if last.get("drift"):
        mode = last.get("accuracy_batch_statistics")
        scores["accuracy in training mode"] = number(mode, ".2%")
    return scores | {
        "best accuracy of all evaluations": _best(run),
        "loss": number(summary.get("loss"), ".4f"),
    }


def _images(run: RunFiles, part: str) -> str:
    """Returns the number and the shape of the images of a part, `train` or `test`."""
    count, *shape = run.data[f"{part}_images"]
    is_limited = run.config.get("data", {}).get(f"{part}_size") is not None
    limit = f" (limited by data.{part}_size)" if is_limited else ""
    return f"{count:,}{limit}, each {'x'.join(map(str, shape))}"


def _best(run: RunFiles) -> str:
    """Returns the best accuracy and the first epoch at which it was found."""
    if run.summary.get("best_accuracy", 0.0) is None:
        return "unknown, because metrics were lost"
    best = max(run.test, key=lambda record: record["accuracy"])
    epoch = best["step"] / run.summary["steps_per_epoch"]
    return f"{best['accuracy']:.2%} at epoch {round(epoch, 2):g}"


def _cost(run: RunFiles) -> dict[str, Any]:
    summary, start = run.summary, run.flags.get("init_from")
    seconds = summary.get("seconds", {})
    speed = number(summary.get("images_per_second"), ",.0f")
    return {
        "data": summary.get("data", "unknown"),
        "training images": _images(run, "train"),
        **({"started from the network of the run": start} if start else {}),
        "parameters": number(summary.get("num_params"), ","),
        "steps": number(summary.get("steps"), ","),
        "training": f"{number(seconds.get('training'), '.1f')} s, {speed} images/s",
        "evaluation": f"{number(seconds.get('evaluating'), '.1f')} s",
        "compilation, not counted above": f"{number(seconds.get('compiling'), '.1f')} s",
    }


def _confusions(classes: Sequence[str], counts: Sequence[Sequence[int]], most: int = 5) -> str:
    """Returns a table of the most frequent errors, without those that occur once."""
    errors = [
        (count, classes[label], classes[prediction])
        for label, row in enumerate(counts)
        for prediction, count in enumerate(row)
        if count and label != prediction
    ]
    if not errors:
        return "The network makes no error on the test images."
    frequent = sorted((e for e in errors if e[0] > 1), key=lambda error: -error[0])
    if not frequent:
        return "Each confusion of two classes occurs once."
    shown, others = frequent[:most], frequent[most:]
    rows = [(label, guess, count) for count, label, guess in shown]
    paragraphs = ["The most frequent errors:", table(("label", "prediction", "images"), rows)]
    if ties := sum(count == shown[-1][0] for count, _, _ in others):
        paragraphs.append(f"Not listed: {ties} more, as frequent as the last.")
    return "\n\n".join(paragraphs)


def _use(path: Path, shape: Sequence[int]) -> list[str]:
    """Returns how to use the network, which takes images of this shape."""
    folder = str(path)
    commands = [
        command("evaluate", folder),
        command("predict", folder, "IMAGE.png"),
        command("export", folder, "network.jaxexport"),
    ]
    if (path / "tensorboard").exists():
        commands.append("python -m pip install tensorboard")
        commands.append(shlex.join(["tensorboard", "--logdir", str(path / "tensorboard")]))
    code = f"""import experiments

apply, variables = experiments.load({json.dumps(folder, ensure_ascii=False)})
logits = apply(variables, images)  # uint8 [n, {", ".join(map(str, shape))}]"""
    return [fenced("bash", "\n".join(commands)), fenced("python", code)]


def _machine(environment: Content) -> dict[str, Any]:
    devices, device = environment.get("devices", "unknown"), environment.get("device", "unknown")
    commit = environment.get("commit") or "unknown"
    changed = (
        ", with changes that are not committed" if environment.get("uncommitted_changes") else ""
    )
    machine = {
        "devices": f"{devices} x {device}",
        "processor": environment.get("processor"),
        "CPU cores": environment.get("cpus"),
        "processes": environment.get("processes"),
        "Python": environment.get("python"),
        **environment.get("versions", {}),
        "commit": commit + changed,
    }
    return {name: value for name, value in machine.items() if value is not None}


def title(config: Content, summary: Content) -> str:
    """Returns the name of a run: its network and its data."""
    network = config.get("model", {}).get("name", summary["preset"])
    return f"{network} on {summary.get('data', 'unknown data')}"
