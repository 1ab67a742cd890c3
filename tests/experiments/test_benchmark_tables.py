"""The tables of benchmarks in the READMEs are those of the stored results."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks import compiled_report, peers, resnet50, stopwatch, timed

RESULTS = compiled_report.RESULTS
EXPERIMENTS = RESULTS.parents[1]
README = EXPERIMENTS.parent / "README.md"


def stored(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("target", "page"),
    [("h100", README), ("v5e", EXPERIMENTS / "README.md")],
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
    table = stopwatch.table(stored("timed-cpu")["rows"], timed.TO)
    assert table in (EXPERIMENTS / "README.md").read_text()


def test_defects():
    readme, results = README.read_text(), json.loads(peers.RESULTS.read_text())
    assert peers.table(results) in readme
    for package, version in results["versions"].items():
        assert package in ("jax", "jbn") or f"{package} {version.split('+')[0]}" in readme
