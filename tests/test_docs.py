"""The documentation: the reference is complete, and pages name files that exist."""

import re
from pathlib import Path

import pytest

import jbn
from tests.helpers import public_names

ROOT = Path(jbn.__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
PAGES += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md"]


def entries(page: Path, directive: str) -> list[str]:
    """The full names in directives such as `autoclass`, which follow a `currentmodule`."""
    module, names = "", []
    for line in page.read_text().splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        if found := re.match(rf"\.\. {directive}:: ([\w.]+)", line):
            names.append(f"{module}.{found[1]}")
    return names


def listed(page: Path) -> list[str]:
    """The full names in the tables of `autosummary`."""
    blocks = re.findall(
        r"currentmodule:: (\S+)\n\.\. autosummary::\n\n(.*?)```", page.read_text(), re.S
    )
    return [f"{module}.{name}" for module, names in blocks for name in names.split()]


def test_every_public_name_is_in_the_reference_once():
    pages = [page for page in REFERENCE.glob("*.md") if page.stem != "index"]
    names = [name for page in pages for name in entries(page, "auto(?:class|function|data)")]
    assert sorted(names) == public_names()
    assert sorted(listed(REFERENCE / "index.md")) == sorted(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))
    for link in links:
        target = link.split("#")[0]
        if target and "://" not in target:
            assert (page.parent / target).exists(), link


def test_versions_agree():
    assert f"\nversion: {jbn.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {jbn.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
