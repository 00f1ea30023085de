"""Pages of executed notebooks that open from the file system, and need no network.

Their one script is inside them; without it they can be read all the same.
"""

import argparse
import ast
import base64
import copy
import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from markupsafe import Markup
from nbconvert.exporters import HTMLExporter
from nbconvert.filters import markdown2html_mistune
from PIL import Image
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from traitlets.config import Config

from pdutils._utils import whole_file
from pdutils.demo.examples import demo_root, results_folder
from tools.glossary import terms_of, with_terms_on

_TEMPLATES = Path(__file__).parent / "templates"

#: The richest form of an output that needs no script.
_FORMS = [
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/latex",
    "text/plain",
]

_PICTURES = {"image/png", "image/jpeg", "image/svg+xml"}

_THUMBNAIL_WIDTH = 900

#: A figure that takes more, exact to the last bit, is a photo, and its page shows it nearly exact.
_EXACT_BYTES = 60_000

_JSON = "application/json"

#: Where a picture that a notebook's prose links to is looked for.
_SOURCES = demo_root() / "notebooks"

_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)

_SECTION = re.compile(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', re.DOTALL)

#: pandas gives the name of the rows a line of its own in the head of a table.
_NAME_OF_ROWS = re.compile(
    r"(<thead>\s*<tr[^>]*>\s*<th>)(</th>(?:(?!</tr>).)*</tr>)"
    r"\s*<tr>\s*<th>([^<]+)</th>(?:\s*<th></th>)*\s*</tr>",
    re.DOTALL,
)

#: Notebooks from this number on go beyond the blog.
_BEYOND = "10"


@dataclass(frozen=True)
class Figure:
    """A picture as a data address, and what it shows in words."""

    source: str
    alt: str


@dataclass(frozen=True)
class Card:
    """What the index shows of a notebook.

    Attributes
    ----------
    name, title : str
        Its file name without suffix, and its first heading.
    intro : Markup
        The first paragraph of its prose.
    figure : Figure or None
        Its main figure: of the cell tagged `main-figure`, else the first.
    headline : str or None
        The sentence that its results give under `headline`.
    seconds : float
        How long it ran.
    started : str
        When, in UTC.
    error : str or None
        What it failed with.
    parameters : dict
        What was passed in place of its own values.
    settings : dict
        All its parameters with their values, those passed included, without the empty ones.
    """

    name: str
    title: str
    intro: Markup
    figure: Figure | None
    headline: str | None
    seconds: float
    started: str
    error: str | None
    parameters: dict[str, Any]
    settings: dict[str, Any]


def results(folder: Path) -> list[Path]:
    """List the executed notebooks of a folder.

    Parameters
    ----------
    folder : Path
        Where `python -m pdutils run` left them; it need not exist.

    Returns
    -------
    list of Path
        Sorted by name.
    """
    return sorted(path for path in folder.glob("*.ipynb") if not path.name.startswith("."))


def build(folder: Path) -> None:
    """Write the pages that are missing, older than their notebook or lead elsewhere; the index.

    Parameters
    ----------
    folder : Path
        Where the executed notebooks are, and the pages go.
    """
    paths = results(folder)
    names = [path.stem for path in paths]
    for path in paths:
        if not _is_current(path, names):
            html = page(path.stem, nbformat.read(path, as_version=4), names)
            _write(path.with_suffix(".html"), html)
    if paths:
        _write(folder / "index.html", index(folder))


def _is_current(path: Path, names: Sequence[str]) -> bool:
    html = path.with_suffix(".html")
    if not html.exists() or html.stat().st_mtime < path.stat().st_mtime:
        return False
    return _links(path.stem, names) in html.read_text("utf-8")


def page(name: str, notebook: Any, names: Sequence[str]) -> str:
    """Make the page of an executed notebook, with all that it shows inside it.

    Parameters
    ----------
    name : str
        Of the notebook's file, without suffix.
    notebook : nbformat.NotebookNode
        As executed.
    names : sequence of str
        All notebooks, in order; links to one of them lead to its page.

    Returns
    -------
    str
        HTML.
    """
    body = _with_local_links(_body(notebook), names)
    template = _environment().get_template("page.html.j2")
    return template.render(
        card=card(name, notebook, names),
        body=Markup(with_terms_on(body)),
        terms=terms_of(body),
        sections=[(anchor, Markup(text).striptags()) for anchor, text in _SECTION.findall(body)],
        links=Markup(_links(name, names)),
        highlighting=_highlighting(),
    )


def index(folder: Path) -> str:
    """Make the page that leads to the others.

    Parameters
    ----------
    folder : Path
        Where the executed notebooks are.

    Returns
    -------
    str
        HTML: a card for each notebook, in two groups, above them the first main figure.
    """
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in results(folder)}
    cards = [card(name, notebook, list(notebooks)) for name, notebook in notebooks.items()]
    covers = (figure(notebook, "cover-figure") for notebook in notebooks.values())
    shown = [cover for cover in covers if cover] + [card.figure for card in cards if card.figure]
    template = _environment().get_template("index.html.j2")
    groups = {
        "The blog": [card for card in cards if card.name < _BEYOND],
        "Beyond the blog": [card for card in cards if card.name >= _BEYOND],
    }
    return template.render(
        cards=cards,
        groups={group: members for group, members in groups.items() if members},
        cover=next(iter(shown), None),
    )


def card(name: str, notebook: Any, names: Sequence[str] = ()) -> Card:
    """Read from an executed notebook what the index shows of it.

    Parameters
    ----------
    name : str
        Of its file, without suffix.
    notebook : nbformat.NotebookNode
        As executed.
    names : sequence of str
        All notebooks; links to one of them lead to its page. None by default.

    Returns
    -------
    Card
    """
    record = notebook.metadata.get("papermill", {})
    title, intro = _opening(notebook)
    passed = dict(record.get("parameters") or {})
    return Card(
        name=name,
        title=title or name,
        intro=Markup(with_terms_on(_with_local_links(intro, names), f"{name}.html")),
        figure=figure(notebook, "main-figure") or _first_figure(_described(notebook)),
        headline=_headline(notebook),
        seconds=float(record.get("duration") or 0.0),
        started=str(record.get("start_time") or "")[:16].replace("T", " "),
        error=record.get("error"),
        parameters=passed,
        settings=_shown(_own_settings(notebook) | passed),
    )


def figure(notebook: Any, tag: str) -> Figure | None:
    """Find the first picture that a tagged cell shows.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        As executed.
    tag : str
        Such as `main-figure`.

    Returns
    -------
    Figure or None
        None if no cell has that tag, or it shows no picture.
    """
    tagged = [cell for cell in _described(notebook) if tag in cell.metadata.get("tags", [])]
    return _first_figure(tagged)


def _first_figure(cells: Sequence[Any]) -> Figure | None:
    for cell in cells:
        for output in cell.get("outputs", []):
            for form in _PICTURES & set(output.get("data", {})):
                return Figure(_thumbnail(form, output.data[form]), _alt(output, form, cell))
    return None


def _alt(output: Any, form: str, cell: Any) -> str:
    """Give the words that came with a picture, else those of its cell."""
    own = output.metadata.get(form, {}).get("alt") or cell.metadata.get("alt", "")
    return str(own)


def _thumbnail(form: str, content: str) -> str:
    if form == "image/svg+xml":
        return _address(form, content.encode())
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        picture.thumbnail((_THUMBNAIL_WIDTH, _THUMBNAIL_WIDTH))
        return _as_webp(picture, quality=82)


def _as_webp(picture: Image.Image, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.convert("RGBA").save(buffer, "WEBP", **options)
    return _address("image/webp", buffer.getvalue())


def _address(form: str, content: bytes) -> str:
    return f"data:{form};base64,{base64.b64encode(content).decode()}"


def _described(notebook: Any) -> list[Any]:
    """Copy the cells; each that shows a picture says of what, if only of which section."""
    cells, heading = copy.deepcopy(notebook.cells), ""
    for cell in cells:
        if cell.cell_type == "markdown":
            heading = (_HEADING.findall(cell.source) or [heading])[-1]
        elif "alt" not in cell.metadata:
            cell.metadata["alt"] = f"Figure of the section: {_text(heading)}"
    return list(cells)


def _opening(notebook: Any) -> tuple[str, Markup]:
    """Give the text of the first heading, and the first paragraph of prose."""
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    title = next(iter(_HEADING.findall(prose)), "")
    paragraphs = [part for part in re.split(r"\n\s*\n", prose) if part[:1].isalpha()]
    return _text(title), _html(paragraphs[0]) if paragraphs else Markup()


def _headline(notebook: Any) -> str | None:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.data[_JSON] for output in outputs if _JSON in output.get("data", {})]
    return shown[-1].get("headline") if shown and isinstance(shown[-1], dict) else None


def _own_settings(notebook: Any) -> dict[str, Any]:
    """Read the literals that the cell tagged `parameters` assigns; none where it is no Python."""
    tagged = [c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    settings: dict[str, Any] = {}
    with suppress(SyntaxError):
        for statement in ast.parse(tagged[0]).body if tagged else []:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                with suppress(ValueError):
                    settings[statement.targets[0].id] = ast.literal_eval(statement.value)
    return settings


def _shown(settings: dict[str, Any]) -> dict[str, str]:
    """Write settings as they are read: no empty ones, of a file its name alone."""
    written = {name: str(value) for name, value in settings.items() if value not in ("", None)}
    files = {name: Path(text).name for name, text in written.items() if Path(text).is_absolute()}
    return written | files


def _html(markdown: str) -> Markup:
    return Markup(markdown2html_mistune(markdown))


def _text(heading: str) -> str:
    # As a heading, since "1. First" by itself is a list.
    return _html(f"# {heading}").striptags().removesuffix("¶")


def _body(notebook: Any) -> str:
    shown = nbformat.from_dict({**notebook, "cells": _described(notebook)})
    shown.metadata.pop("widgets", None)
    for cell in shown.cells:
        for output in cell.get("outputs", []):
            _prepare(output, cell)
    body, _ = _exporter().from_notebook_node(shown, {"metadata": {"path": str(_SOURCES)}})
    return str(body).replace('output_error"', 'output_error" id="failed"', 1)


def _prepare(output: Any, cell: Any) -> None:
    """Turn results and pictures into HTML, which the exporter leaves as it is."""
    data = output.get("data", {})
    if _JSON in data:
        data["text/html"] = _folded(data.pop(_JSON))
    if "text/html" in data:
        data["text/html"] = _NAME_OF_ROWS.sub(r"\1\3\2", data["text/html"])
    for form in _PICTURES & set(data):
        if "text/html" not in data:
            metadata = output.metadata.get(form, {})
            data["text/html"] = _image(form, data[form], _alt(output, form, cell), metadata)


def _folded(results: Any) -> str:
    listed = json.dumps(results, indent=1, ensure_ascii=False)
    return Markup("<details><summary>results</summary><pre>{}</pre></details>").format(listed)


def _image(form: str, content: str, alt: str, metadata: dict[str, Any]) -> str:
    if form == "image/png":
        source = _smaller(content)
    elif form == "image/svg+xml":
        source = _address(form, content.encode())
    else:
        source = _address(form, base64.b64decode(content))
    # A picture for a screen of double density states its width.
    width = Markup(' width="{}"').format(metadata["width"]) if "width" in metadata else ""
    picture = '<div class="picture"><img src="{}" alt="{}"{}></div>'
    return Markup(picture).format(source, alt, width)


def _smaller(png: str) -> str:
    """Give the very same picture in fewer bytes; a photo nearly the same in far fewer."""
    content = base64.b64decode(png)
    forms = [_address("image/png", content)]
    with Image.open(io.BytesIO(content)) as picture:
        forms.append(_as_webp(picture, lossless=True, method=1, quality=0))
        if min(map(len, forms)) > _EXACT_BYTES:
            forms.append(_as_webp(picture, quality=90))
    return min(forms, key=len)


def _links(name: str, names: Sequence[str]) -> str:
    at = names.index(name)
    template = _environment().get_template("links.html.j2")
    return template.render(
        previous=names[at - 1] if at > 0 else None,
        following=names[at + 1] if at + 1 < len(names) else None,
    )


def _with_local_links(html: str, names: Sequence[str]) -> str:
    def to_page(match: re.Match[str]) -> str:
        return f'href="{match[1]}.html' if match[1] in names else match[0]

    return re.sub(r'href="(?:\./)?([^"/:#]+)\.ipynb', to_page, html)


@cache
def _exporter() -> HTMLExporter:
    forms = Config({"NbConvertBase": {"display_data_priority": _FORMS}})
    return HTMLExporter(
        config=forms,
        template_name="basic",
        template_file="notebook.html.j2",
        extra_loaders=[jinja2.FileSystemLoader(_TEMPLATES)],
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _highlighting() -> Markup:
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark")
    asked = dark.get_style_defs(':root:not([data-theme="light"]) .highlight')
    chosen = dark.get_style_defs(':root[data-theme="dark"] .highlight')
    return Markup(
        f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{asked}\n}}\n"
        f"@media screen {{\n{chosen}\n}}"
    )


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the pages of the folder that the options of `python -m pdutils run` name."""
    parser = argparse.ArgumentParser(prog="python -m tools.pages", allow_abbrev=False)
    parser.add_argument("--output", metavar="DIR", type=Path, default=results_folder())
    folder = parser.parse_known_args(arguments)[0].output
    build(folder)
    if (folder / "index.html").exists():
        print(f"open {os.path.relpath(folder / 'index.html')}")


if __name__ == "__main__":
    main()
