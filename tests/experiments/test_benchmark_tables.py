"""The tables of benchmarks in the documentation are those of the stored results."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks import compiled_report, peers, resnet50, stopwatch, timed

RESULTS = compiled_report.RESULTS
DOCS = Path(__file__).parents[2] / "docs"
BENCHMARKS = (DOCS / "benchmarks.md").read_text()


def stored(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_compiled(target: str):
    assert compiled_report.table(stored(f"compiled-{target}")) in BENCHMARKS


def test_collectives():
    assert compiled_report.collectives(stored("compiled-h100")) in BENCHMARKS


def test_resnet50():
    assert resnet50.table(stored("resnet50-h100")) in BENCHMARKS


def test_timed():
    assert stopwatch.table(stored("timed-cpu")["rows"], timed.TO) in BENCHMARKS


def test_defects():
    page, results = (DOCS / "defects.md").read_text(), json.loads(peers.RESULTS.read_text())
    assert peers.table(results) in page
    for package, version in results["versions"].items():
        assert package in ("jax", "jbn") or f"{package} {version.split('+')[0]}" in page
