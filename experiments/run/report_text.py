"""The text of a run's report."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.run.markdown import cell, fenced, number, pairs, table
from experiments.run.report_settings import settings

Content = Mapping[str, Any]


def report_text(
    path: Path, summary: Content, config: Content, environment: Content, test: Sequence[Content]
) -> str:
    """Returns the report in Markdown.

    Args:
      path: folder of the run.
      summary: content of `summary.json`.
      config: content of `config.json`.
      environment: content of `environment.json`.
      test: records of the evaluations.
    """
    has_statistics = bool(test[-1].get("drift"))
    paragraphs = [
        f"# {cell(title(config, summary))}",
        fenced("bash", _made_by(environment)),
        "## Result",
        pairs(("test", ""), _scores(summary, test[-1], config.get("views") != "plain")),
        *([_MODES_EXPLAINED] if has_statistics else []),
        pairs(("training", ""), _cost(summary)),
        "## Loss and accuracy",
        "![Loss and accuracy over epochs](curves.png)",
        *([_MODES] if has_statistics else []),
        "## Confusion matrix",
        "![Confusion matrix](confusion.png)",
        _confusions(summary["classes"], test[-1]["confusion"]),
        "## Learning rate",
        "![Learning rate over epochs](learning_rate.png)",
        "## Use the network",
        *_use(path),
        "## Settings",
        *settings(config),
        "## Machine",
        pairs(("", ""), _machine(environment)),
    ]
    return "\n\n".join(paragraphs) + "\n"


_MODES_EXPLAINED = """In training mode each batch of test images is normalized by its own
statistics, as in training. In inference mode, as everywhere else in this table, the running
statistics normalize all images."""

_MODES = """## Training mode and inference mode

![Test accuracy in both modes over epochs](modes.png)

The plots below show how far the running statistics are from the statistics of a batch: the
distance of the means in standard deviations, and the logarithm of the ratio of the variances. Both
are root mean squares over the features of a layer.

![Distance of running statistics from batch statistics, by layer](drift.png)"""


def _made_by(environment: Content) -> str:
    """Returns the command that made the run, without the machine's paths."""
    given = environment.get("command", "unknown")
    if isinstance(given, str):
        return given
    script, *arguments = given
    return command(Path(script).stem, *arguments)


def _scores(summary: Content, last: Content, has_views: bool) -> dict[str, str]:
    scores = {"accuracy": number(summary.get("accuracy"), ".2%")}
    if has_views:
        scores["accuracy with single views"] = number(last.get("accuracy_plain"), ".2%")
    if last.get("drift"):
        mode = last.get("accuracy_batch_statistics")
        scores["accuracy in training mode"] = number(mode, ".2%")
    return scores | {
        "best accuracy of all evaluations": number(summary.get("best_accuracy"), ".2%"),
        "loss": number(summary.get("loss"), ".4f"),
    }


def _cost(summary: Content) -> dict[str, Any]:
    seconds = summary.get("seconds", {})
    speed = number(summary.get("images_per_second"), ",.0f")
    return {
        "data": summary.get("data", "unknown"),
        "parameters": number(summary.get("num_params"), ","),
        "steps": number(summary.get("steps"), ","),
        "training": f"{number(seconds.get('training'), '.1f')} s, {speed} images/s",
        "evaluation": f"{number(seconds.get('evaluating'), '.1f')} s",
        "compilation, not counted above": f"{number(seconds.get('compiling'), '.1f')} s",
    }


def _confusions(classes: Sequence[str], counts: Sequence[Sequence[int]], most: int = 5) -> str:
    """Returns a table of the most frequent errors."""
    errors = [
        (count, classes[label], classes[prediction])
        for label, row in enumerate(counts)
        for prediction, count in enumerate(row)
        if count and label != prediction
    ]
    if not errors:
        return "The network makes no error on the test images."
    errors = sorted(errors, key=lambda error: -error[0])[:most]
    return "The most frequent errors:\n\n" + table(
        ("label", "prediction", "images"), [(label, guess, n) for n, label, guess in errors]
    )


def _use(path: Path) -> list[str]:
    folder = str(path)
    commands = [
        command("evaluate", folder),
        command("predict", folder, "IMAGE.png"),
        command("export", folder, "network.jaxexport"),
    ]
    if (path / "tensorboard").exists():
        commands.append(shlex.join(["tensorboard", "--logdir", str(path / "tensorboard")]))
    code = f"""import experiments

apply, variables = experiments.load({json.dumps(folder, ensure_ascii=False)})
logits = apply(variables, images)  # uint8 [n, height, width, channels]"""
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


def command(module: str, *arguments: str) -> str:
    """Returns a command line that runs a module of the experiments."""
    return shlex.join(["python", "-m", f"experiments.{module}", *arguments])
