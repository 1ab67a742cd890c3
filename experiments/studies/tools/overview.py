"""The report of all studies: `report.md`, and `report.html`, which contains its figures."""

import base64
import re
from collections.abc import Iterable
from pathlib import Path

from markdown_it import MarkdownIt

from experiments.run.atomic import write_text
from experiments.run.errors import RunError
from experiments.studies.tools import environments
from experiments.studies.tools.definition import Study
from experiments.studies.tools.study_folder import StudyFolder, body, claim, folder_of
from experiments.studies.tools.verdicts import RULE

_TITLE = "Claims about batch norm, measured"
_INTRODUCTION = (
    "We measured claims about batch norm in small networks.\n\n"
    f"{RULE} Each study has its own threshold."
)
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 54rem; margin: auto; padding: 1rem; }}
img {{ max-width: 100%; }}
h2 {{ margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1.5rem; }}
table {{ border-collapse: collapse; font-size: 0.9em; }}
th, td {{ border-bottom: 1px solid #ddd; padding: 0.2rem 0.7rem; text-align: left; }}
code {{ background: #f3f3f3; padding: 0 0.2em; }}
</style>
{body}</html>
"""


def write_overview(results: Path, studies: Iterable[Study]) -> None:
    """Writes both files into the folder of results, from the answers that are stored there.

    Raises:
      RunError: the folder holds no answers.
    """
    contents, sections = [], []
    for study in studies:
        folders = [folder_of(results, study.name, scale) for scale in ("digits", "cifar10", "full")]
        stored = [folder for folder in map(StudyFolder, folders) if folder.answer.exists()]
        if stored:
            contents.append(f"- [{study.question}](#{study.name})")
            sections += [f'<a id="{study.name}"></a>', f"## {study.question}"]
            sections += [claim(study), study.threshold]
            sections += [_answer(folder, results) for folder in stored]
    if not contents:
        raise RunError(f"{results} holds no answers. Name a study to run, or another --output.")
    text = "\n\n".join([f"# {_TITLE}", _INTRODUCTION, "\n".join(contents), *sections]) + "\n"
    write_text(results / "report.md", text)
    html = MarkdownIt("commonmark").enable("table").render(text)
    page = _PAGE.format(title=_TITLE, body=_with_images(html, results))
    write_text(results / "report.html", page)


def _answer(folder: StudyFolder, results: Path) -> str:
    """Returns a study's answer below the name of its data, without what all of them share."""
    figure = (folder.path / "figure.png").relative_to(results)
    text = body(folder.answer.read_text()).replace("](figure.png)", f"]({figure})")
    data = environments.data(run.environment or {} for run in folder.all_runs())
    return f"### On {data}\n\n{text}"


def _with_images(html: str, folder: Path) -> str:
    """Replaces the path of each image by its content."""

    def embed(match):
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    return re.sub(r'src="([^"]+\.png)"', embed, html)
