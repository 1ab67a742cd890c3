"""Turns a report in Markdown into a page in HTML that needs no other file."""

import base64
import html
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt

_TEMPLATE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def page(title: str, markdown: str, folder: Path) -> str:
    """Returns the page.

    Args:
      title: title of the page.
      markdown: text of the page. HTML in it is shown as text.
      folder: folder of the PNG images that the text shows.
    """
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = renderer.parse(markdown)
    for child in (child for token in tokens for child in token.children or []):
        if child.type == "image":
            image = (folder / str(child.attrs["src"])).read_bytes()
            child.attrs["src"] = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    body = renderer.renderer.render(tokens, renderer.options, {})
    return _TEMPLATE.substitute(title=html.escape(title), body=body)
