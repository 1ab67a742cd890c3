"""The tables of benchmarks in the READMEs are those of the stored results."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks import compiled_report, resnet50, timed, timing

RESULTS = compiled_report.RESULTS
EXPERIMENTS = RESULTS.parents[1]


def stored(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("target", "page"),
    [("h100", EXPERIMENTS.parent / "README.md"), ("v5e", EXPERIMENTS / "README.md")],
)
def test_compiled(target: str, page: Path):
    assert compiled_report.table(stored(f"compiled-{target}")) in page.read_text()


@pytest.mark.parametrize("target", ["h100"])
def test_collectives(target):
    table = compiled_report.collectives(stored(f"compiled-{target}"))
    assert table in (EXPERIMENTS / "README.md").read_text()


def test_resnet50():
    assert resnet50.table(stored("resnet50-h100")) in (EXPERIMENTS / "README.md").read_text()


def test_timed():
    table = timing.table(stored("timed-cpu")["rows"], timed.TO)
    assert table in (EXPERIMENTS / "README.md").read_text()
