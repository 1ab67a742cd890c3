"""The studies run and resume, and their stored answers agree with their stored runs."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import study
from experiments.augment import gather_classes, permutation
from experiments.config import Config
from experiments.data import load
from experiments.learner import Learner, init, train
from experiments.placement import place
from experiments.run.environment import environment
from experiments.studies import STUDIES, robust
from experiments.studies.tools import study_folder, training, verdicts
from experiments.studies.tools.base import base, change
from experiments.studies.tools.definition import Study
from experiments.studies.tools.environments import of_run
from experiments.studies.tools.perturb import PERTURBATIONS, perturb
from experiments.studies.tools.records import Record, Setting
from experiments.studies.tools.study_folder import StudyFolder
from experiments.studies.tools.training import Training

SMOKE = change(base("smoke", "test"), batch_size=32, optimizer={"learning_rate": 0.1})


@pytest.fixture(scope="module")
def images():
    return load(SMOKE.data)


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        (["smoother"], ["smoother"]),
        pytest.param(list(STUDIES), ["--all"], marks=pytest.mark.slow),
    ],
    ids=["one", "all"],
)
def test_studies_leave_runs_figures_answers_and_a_report(tmp_path, names, flags):
    """They do so at the smallest scale."""
    assert study.main([*flags, "--smoke", "--report", "--output", str(tmp_path)]) == 0
    html, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert len(re.findall(r'src="data:image/png;base64,', html)) == len(names)
    assert not re.findall(r'src="(?!data:)', html)
    for name in names:
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert files == {"runs.jsonl", "environment.json", "figure.png", "answer.md"}
        lines = (tmp_path / name / "runs.jsonl").read_text().splitlines()
        assert len(lines) == len(STUDIES[name].settings("smoke"))
        assert STUDIES[name].question in text
        assert f"]({name}/figure.png)" in text


def toy(calls: list[int], end_at: int | None = None) -> Study:
    """Returns a study whose runs only add their seed to `calls`."""

    def settings(scale):
        return [Setting({"seed": seed}, Config("toy", seed=seed)) for seed in range(5)]

    def measure(setting, dataset):
        if setting.config.seed == end_at:
            raise KeyboardInterrupt
        calls.append(setting.config.seed)
        return {"value": setting.config.seed}

    def plot(records, caption):
        return plt.figure()

    def answer(records):
        return f"The sum is {records.values('value').sum():.0f}."

    texts = "toy", "Sum?", "no claim.", "The threshold is 1."
    return Study(*texts, lambda records: "Summed.", settings, measure, plot, answer)


def test_what_is_finished_is_kept_and_only_the_rest_is_run(tmp_path, monkeypatch):
    calls = []
    arguments = ["toy", "--output", str(tmp_path)]
    monkeypatch.setitem(STUDIES, "toy", toy(calls, end_at=3))
    assert study.main(arguments) == 130
    runs = tmp_path / "toy" / "runs.jsonl"
    # A process that is killed while it writes leaves such a file.
    whole = runs.read_bytes()
    runs.write_bytes(whole + b'{"labels": {"se')
    monkeypatch.setitem(STUDIES, "toy", toy(calls))
    assert study.main(arguments) == 0
    assert calls == [0, 1, 2, 3, 4]
    assert runs.read_bytes().startswith(whole)
    lines = runs.read_text().splitlines()
    assert [json.loads(line)["result"]["value"] for line in lines] == [0, 1, 2, 3, 4]
    assert "The sum is 10." in (tmp_path / "toy" / "answer.md").read_text()
    assert study.main(arguments) == 0
    assert len(calls) == 5


def test_the_report_shows_each_data_beneath_its_question(tmp_path, monkeypatch):
    monkeypatch.setitem(STUDIES, "toy", toy([]))
    for flags in ([], ["--cifar10", "--report"]):
        assert study.main(["toy", *flags, "--output", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.count("## Sum?") == text.count("no claim.") == 1
    assert text.count("### On scikit-learn digits") == text.count("The sum is 10.") == 2
    figures = re.findall(r"\]\(([^)]*\.png)\)", text)
    assert figures == ["toy/figure.png", "cifar10/toy/figure.png"]
    assert all((tmp_path / figure).exists() for figure in figures)


def test_without_output_new_results_lie_apart_from_those_of_the_documentation(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(STUDIES, "toy", toy([]))
    assert study.main(["toy"]) == 0
    assert (tmp_path / "runs" / "studies" / "toy" / "answer.md").exists()
    assert not (study.RESULTS / "toy").exists()


def test_the_answer_tells_the_versions_of_all_runs(tmp_path):
    """Runs store their environment; those of older versions have that of the folder."""
    folder, each = StudyFolder(tmp_path), toy([])
    here = environment("the digits")
    old = {**here, "data": "old digits", "versions": {**here["versions"], "jax": "0.1"}}
    folder.begin({**old, "command": "the command"})
    folder.begin({**here, "command": "another command"})
    for seed, own in enumerate((None, None, of_run(here))):
        config = {} if seed == 0 else {"seed": seed}
        folder.append(Record({"seed": seed}, config, {"value": seed}, 1.0, own))
    first, _, last = folder.runs.read_text().splitlines()
    assert "environment" not in json.loads(first)
    assert json.loads(last)["environment"]["versions"] == here["versions"]
    text = folder.text(
        each, folder.finished([Setting({"seed": s}, Config("toy", seed=s)) for s in range(3)])
    )
    assert f"jax 0.1 (2 runs) and {here['versions']['jax']} (1 run)," in text
    assert f"numpy {here['versions']['numpy']}." in text
    assert "The data are old digits (2 runs) and the digits (1 run)." in text
    assert "`the command --output FOLDER`" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "choose from"),
        ([], "Name a study"),
        (["--all", "--smoke", "--full"], "one of"),
        (["faster", "--data-dir", "somewhere"], "Add --cifar10 or --full"),
        (["--report", "--output", "nowhere"], "nowhere holds no answers"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(arguments, message, capsys):
    assert study.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("scale", ["digits", "cifar10"])
@pytest.mark.parametrize("name", STUDIES)
def test_stored_answers_are_those_of_the_stored_runs(name, scale):
    """All runs of a study are stored, with at least three seeds, and the text follows from them.

    This writes it anew:
    `python -m experiments.study --all --report --output experiments/studies/results`.
    """
    stored, each = StudyFolder(study_folder.folder_of(study.RESULTS, name, scale)), STUDIES[name]
    settings = each.settings(scale)
    finished = stored.finished(settings)
    assert len(finished) == len(settings)
    assert len(finished.labels("seed")) >= 3
    assert (stored.path / "answer.md").read_text() == stored.text(each, finished)
    assert (stored.path / "figure.png").exists()


@pytest.mark.slow
def test_a_shared_program_trains_as_the_run_of_its_own(images):
    """The seed and the learning rate are arguments of the program. The result is the same."""
    Training(SMOKE, images).advance(1)
    config = change(SMOKE, seed=3, optimizer={"learning_rate": 0.02})
    shared = Training(config, images)
    metrics = shared.advance(2)
    learner, data = Learner(config, 10, len(images.train_labels)), place(images)
    state, expected = train(learner, init(learner, data, 3), data, 2)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(shared.state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_without_a_norm_a_batch_in_micro_batches_is_the_batch(images):
    config = change(SMOKE, norm={"method": "none"})
    states = []
    for size in (32, 8):
        run = Training(config, images)
        run.finish_in_micro_batches(size)
        states.append(run.state)
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_recalibrated_inference_on_its_images_is_batch_norm_on_them(images):
    run = Training(SMOKE, images)
    run.advance(2)
    by_batch = run.call(training.logits_by_batch, images.train_images)
    before = run.call(training.logits, images.train_images)
    run.state = run.call(training.recalibrated, images.train_images)
    after = run.call(training.logits, images.train_images)
    assert abs(before - by_batch).max() > 0.1
    np.testing.assert_allclose(after, by_batch, atol=1e-4)


def test_adapted_statistics_are_the_batchs_or_the_running_ones(images):
    run = Training(SMOKE, images)
    run.advance(2)
    batches = images.test_images[:20].reshape(2, 10, 8, 8, 1)
    own = run.call(robust._adapted_logits, batches, np.float32(0))
    running = run.call(robust._adapted_logits, batches, np.float32(1e9))
    for index, batch in enumerate(batches):
        np.testing.assert_allclose(own[index], run.call(training.logits_by_batch, batch), atol=1e-4)
        np.testing.assert_allclose(running[index], run.call(training.logits, batch), atol=1e-4)


def test_cross_entropy_is_that_of_optax():
    import optax

    logits = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32) * 20
    labels = np.arange(50) % 10
    expected = optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits), labels).mean()
    np.testing.assert_allclose(training.cross_entropy(logits, labels), expected, rtol=1e-5)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_perturbations_change_images_at_all_levels_but_one(name, images):
    _, levels, neutral, _ = PERTURBATIONS[name]
    assert neutral in levels
    original = images.test_images[:5].astype(np.float32)
    for level in levels:
        changed = abs(perturb(images.test_images[:5], name, level) - original).max()
        assert changed < 1e-4 if level == neutral else changed > 1


def test_few_classes_in_a_batch():
    """Every image comes once, and at most one piece for each class also holds the next class."""
    labels = jnp.array(np.random.default_rng(0).integers(10, size=640), jnp.int32)
    order = permutation(0, jnp.int32(0), 640)
    gathered = gather_classes(order, labels, 32, 0, jnp.int32(0))
    assert sorted(gathered.tolist()) == list(range(640))
    classes = [len(set(row)) for row in labels[gathered].reshape(-1, 32).tolist()]
    assert sum(count - 1 for count in classes) <= 9
    other = gather_classes(order, labels, 32, 0, jnp.int32(1))
    assert (other != gathered).any()


def test_gain_scales_the_networks_input(images):
    for gain in (1.0, 10.0):
        learner = Learner(change(SMOKE, data={"gain": gain}), 10, len(images.train_labels))
        x = learner.normalize(place(images), images.train_images)
        np.testing.assert_allclose([x.mean(), x.std()], [0, gain], atol=1e-4 * gain)


def test_differences_are_welchs():
    """They agree with the formula, written out here."""
    a, b = np.array([3.0, 4.0, 5.5, 3.5]), np.array([1.0, 1.5, 2.5])
    errors = a.var(ddof=1) / 4, b.var(ddof=1) / 3
    error = np.sqrt(sum(errors))
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 3 + errors[1] ** 2 / 2)
    assert freedom == pytest.approx(5)
    found = verdicts.difference(a, b, relevant=1.0)
    assert found.mean == pytest.approx(a.mean() - b.mean())
    # This is the 97.5% quantile of Student's t with 5 degrees of freedom, from a printed table.
    assert (found.high - found.mean) / error == pytest.approx(2.571, abs=0.0005)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((2.0, 1.0, 3.0), "held"),
        ((0.5, 0.1, 0.9), "did not hold"),
        ((-2.0, -3.0, -1.0), "did not hold"),
        ((0.5, 0.1, 1.5), "unclear"),
        ((2.0, -1.0, 5.0), "unclear"),
    ],
)
def test_verdicts(interval, expected):
    assert verdicts.Difference(*interval, relevant=1.0).verdict == expected


def test_a_single_run_says_nothing():
    assert verdicts.difference([5.0], [1.0, 1.1], relevant=0.1).verdict == "unclear"


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([4, 16, 64], "from 4 images on"),
        ([64], "only with 64 images"),
        ([4, 64], "only with 4 and 64 images"),
        ([4], "only with 4 images"),
        ([], "at no size"),
    ],
)
def test_from_a_size_on_means_at_all_larger_sizes(held, words):
    assert robust._where(held, [1, 4, 16, 64]) == words
