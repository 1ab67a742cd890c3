"""The report of all studies: `report.md`, and `report.html`, which contains its figures."""

import base64
import re
from pathlib import Path

from markdown_it import MarkdownIt

from experiments.studies import STUDIES
from experiments.studies.study_folder import StudyFolder, claim, folder_of

_TITLE = "Claims about batch norm, measured"
_INTRODUCTION = (
    "We measured claims about batch norm in small networks. A claim **held**, or it **did not"
    " hold**. It is **unclear** if the runs are too few, or differ too much, to tell."
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


def write_overview(results: Path) -> None:
    """Writes both files into the folder of results, from the answers that are stored there."""
    contents, sections = [], []
    for name, study in STUDIES.items():
        folders = [folder_of(results, name, scale) for scale in ("digits", "cifar10", "full")]
        answers = [_answer(folder, results) for folder in folders if folder.exists()]
        if answers:
            contents.append(f"- [{study.question}](#{name})")
            sections += [f'<a id="{name}"></a>', f"## {study.question}"]
            sections += [claim(study), *answers]
    text = "\n\n".join([f"# {_TITLE}", _INTRODUCTION, "\n".join(contents), *sections]) + "\n"
    (results / "report.md").write_text(text)
    body = MarkdownIt("commonmark").enable("table").render(text)
    page = _PAGE.format(title=_TITLE, body=_with_images(body, results))
    (results / "report.html").write_text(page)


def _answer(folder: Path, results: Path) -> str:
    """Returns a study's answer below the name of its data, without the question and the claim."""
    stored = StudyFolder(folder)
    text = stored.answer.read_text().split("\n\n", 2)[2].rstrip()
    text = text.replace("](figure.png)", f"]({folder.relative_to(results)}/figure.png)")
    return f"### On {stored.environment.read('environment.json')['data']}\n\n{text}"


def _with_images(html: str, folder: Path) -> str:
    """Replaces the path of each image by its content."""

    def embed(match):
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    return re.sub(r'src="([^"]+\.png)"', embed, html)
