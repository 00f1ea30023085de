"""The site: executed notebooks, chapters and reference, built by Sphinx as `docs/conf.py` says.

What Sphinx does not do is here: the sources are laid side by side, a notebook says how it ran, its
pictures get their words, and the first page has a card for each.
"""

import argparse
import ast
import base64
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import nbformat
from markupsafe import Markup
from nbformat import NotebookNode
from PIL import Image

from pdutils._utils import extra, whole_file
from pdutils.demo.examples import demo_root, results_folder

#: Of the forms of an output the first one is shown; none of them needs a script.
_PICTURES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}
_FORMS = ("application/json", "text/html", "text/markdown", *_PICTURES, "text/latex", "text/plain")

_THUMBNAIL_WIDTH = 900

#: A figure that takes more, exact to the last bit, is a photo, and its page shows it nearly exact.
_EXACT_BYTES = 45_000

_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)

#: pandas gives the name of the rows a line of its own in the head of a table.
_NAME_OF_ROWS = re.compile(
    r"(<thead>\s*<tr[^>]*>\s*<th>)(</th>(?:(?!</tr>).)*</tr>)"
    r"\s*<tr>\s*<th>([^<]+)</th>(?:\s*<th></th>)*\s*</tr>",
    re.DOTALL,
)

#: An interval is not torn apart at the end of a line.
_INTERVAL = re.compile(r"(\[[-+−]?\d*\.\d+,) ([-+−]?\d*\.\d+\])")

#: A link in what folds would be a control within a control.
_USES = re.compile(r"<summary>Expand for references to .*?</summary>", re.DOTALL)

#: In a docstring, and where the paper is.
_PAPERS = (
    (re.compile(r"arXiv (\d{4}\.\d{4,5})"), r"`arXiv \1 <https://arxiv.org/abs/\1>`__"),
    (re.compile(r"DOI (10\.\d+/[^\s;)]*\w)"), r"`DOI \1 <https://doi.org/\1>`__"),
)

#: What lies under a page: all notebooks under the table of them, and the tables of the results.
_CONTENTS = {
    Path(page): f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{below}\n```\n".encode()
    for page, below in (("notebooks/README.md", "*"), ("results.md", "results/*"))
}


def build(folder: Path) -> int:
    """Build the site of a folder's executed notebooks into it; give 1 if Sphinx warned, else 0.

    Notebooks that were not executed are in it as they are, so that every link leads somewhere.
    """
    with extra("docs"):
        from sphinx.cmd.build import main as sphinx
    cache, docs = folder / ".site", demo_root() / "docs"
    _write(_sources(folder, docs), cache / "source")
    options = ["-q", "-W", "-c", str(docs), "-d", str(cache / "read")]
    return int(sphinx([*options, str(cache / "source"), str(folder)]))


def _sources(folder: Path, docs: Path) -> dict[Path, bytes]:
    """Lay chapters and notebooks side by side; the pictures of the notebooks go to the folder."""
    shipped = demo_root() / "notebooks"
    # What JupyterLab leaves beside a page that was opened in it is none.
    chapters = [path for path in docs.rglob("[!.]*.*") if path.parent.name != ".ipynb_checkpoints"]
    files = {path.relative_to(docs): path.read_bytes() for path in chapters}
    for path in [*shipped.glob("[!.]*.*"), *sorted(folder.glob("[!.]*.ipynb"))]:
        files[Path("notebooks", path.name)] = path.read_bytes()
    pictures = _Pictures(folder / "_images")
    cards, covers = {}, []
    for path in sorted(path for path in files if path.suffix == ".ipynb"):
        notebook = nbformat.reads(files[path].decode(), 4)
        covers += [*pictures.thumbnails(notebook, "cover-figure")]
        cards[path.stem] = _card(path.stem, notebook, pictures)
        files[path] = nbformat.writes(_page(path.stem, notebook, pictures)).encode()
    files[Path("index.md")] = _first_page(files[Path("index.md")].decode(), cards, covers).encode()
    for path in files:
        if path.suffix in (".md", ".ipynb"):
            files[path] = files[path].replace(b"](../notebooks/", b"](notebooks/")
            files[path] = files[path].replace(b"](../docs/", b"](../")
    for path, contents in _CONTENTS.items():
        files[path] += contents
    pictures.drop_others()
    return files


def _write(files: dict[Path, bytes], source: Path) -> None:
    """Write what has changed, since Sphinx goes by the times of files, and drop what is no more."""
    for path in [path for path in source.rglob("*.*") if path.relative_to(source) not in files]:
        path.unlink()
    for path, content in files.items():
        place = source / path
        if not place.exists() or place.read_bytes() != content:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def _first_page(text: str, cards: dict[str, str], covers: list[str]) -> str:
    shown = {
        "cover": f'<div class="cover">{covers[0]}</div>' if covers else "",
        "blog": "\n".join(card for name, card in cards.items() if name < "10"),
        "beyond": "\n".join(card for name, card in cards.items() if name >= "10"),
    }
    return re.sub(r"<!-- (\w+) -->", lambda match: shown[match[1]], text)


def _card(name: str, notebook: NotebookNode, pictures: "_Pictures") -> str:
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    title = next(iter(_HEADING.findall(prose)), name)
    intro = next((part for part in re.split(r"\n\s*\n", prose) if part[:1].isalpha()), "")
    intro = re.sub(r"\]\((?=\w+\.ipynb)", "](notebooks/", intro).replace("](../docs/", "](")
    shown = chain(pictures.thumbnails(notebook, "main-figure"), pictures.thumbnails(notebook))
    results = [data["application/json"] for data in _data(notebook) if "application/json" in data]
    found = results[-1].get("headline") if results and isinstance(results[-1], dict) else None
    headline = str(Markup('<p class="headline">{}</p>').format(found)) if found else ""
    head = f"::::{{grid-item-card}} [{title}](notebooks/{name}.ipynb)"
    facts = _facts(name, notebook, "", f"notebooks/{name}.html")
    picture = f"<div>{next(shown, '')}</div>"
    return "\n".join([head, picture, headline, "", intro, "", facts, "::::"])


def _data(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield output.get("data", {})


def _page(name: str, notebook: NotebookNode, pictures: "_Pictures") -> NotebookNode:
    """Say under the title how the notebook ran, and turn its outputs into what Sphinx knows."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.setdefault("language_info", {"name": "python"})["pygments_lexer"] = "ipython3"
    first = notebook.cells[0] if notebook.cells else None
    if not first or first.cell_type != "markdown" or not first.source.startswith("# "):
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {name}"))
    title, _, rest = notebook.cells[0].source.partition("\n")
    top, failed = {"title": title, "facts": _facts(name, notebook, "../"), "opening": rest}, False
    cells = [nbformat.v4.new_markdown_cell(text, id=name) for name, text in top.items()]
    for cell in notebook.cells[1:]:
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata.setdefault("tags", []).append("hide-input")
        for output in cell.get("outputs", []):
            if output.output_type == "error" and not failed:
                failed = True
                cells.append(nbformat.v4.new_markdown_cell('<div id="failed"></div>', id="failed"))
            if "data" in output:
                output.data = NotebookNode(_shown(output, pictures))
        cells.append(cell)
    notebook.cells = cells
    return notebook


def _shown(output: NotebookNode, pictures: "_Pictures") -> dict[str, str]:
    form = next((form for form in _FORMS if form in output.data), None)
    content = output.data.get(form, "")
    if form in _PICTURES:
        return {"text/html": pictures.shown(form, content, output.metadata[form])}
    if form == "application/json":
        listed = json.dumps(content, indent=1, ensure_ascii=False)
        folded = Markup("<details><summary>results</summary><pre>{}</pre></details>")
        return {"text/html": str(folded.format(listed))}
    if form == "text/html":
        return {"text/html": _NAME_OF_ROWS.sub(r"\1\3\2", content)}
    return {form or "text/plain": content}


def _facts(name: str, notebook: NotebookNode, root: str, page: str = "") -> str:
    """Say how a notebook ran and with which settings, on its page or its card."""
    record = notebook.metadata.get("papermill")
    if record is None:
        return '<p class="run">not executed yet: <code>make run-all</code> does</p>'
    error, passed = record.get("error"), record.get("parameters") or {}
    state = Markup('<strong class="failed">failed</strong>') if error else "ok"
    started = str(record.get("start_time") or "")[:16].replace("T", " ")
    facts = Markup(
        '<p class="run">{} · {:.0f} s · {} UTC · <a href="{}{}.ipynb">executed notebook</a></p>'
    ).format(state, record.get("duration") or 0, started, root, name)
    if error:
        failed = (
            '<p class="failed"><a href="{}#failed">Ended with an error</a>: <code>{}</code></p>'
        )
        facts += Markup(failed).format(page, " ".join(error.split()))
    rows = Markup("").join(
        Markup('<div class="{}"><dt>{}</dt><dd>{}</dd></div>').format(
            "passed" if key in passed else "own", key, _on_one_line(value)
        )
        for key, value in (_own_settings(notebook) | passed).items()
        if value not in ("", None)
    )
    if rows:
        told = f", {len(passed)} passed to it" if passed else ""
        settings = '<details class="settings"><summary>Settings{}</summary><dl>{}</dl></details>'
        facts += Markup(settings).format(told, rows)
    return str(facts)


def _on_one_line(value: Any) -> str:
    """Write a setting; of a file its name alone."""
    text = " ".join(str(value).split())
    return Path(text).name if Path(text).is_absolute() else text


def _own_settings(notebook: NotebookNode) -> dict[str, Any]:
    """Read the literals that the cell tagged `parameters` assigns; none where it is no Python."""
    tagged = [c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    settings: dict[str, Any] = {}
    with suppress(SyntaxError):
        for statement in ast.parse(tagged[0]).body if tagged else []:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                with suppress(ValueError):
                    settings[statement.targets[0].id] = ast.literal_eval(statement.value)
    return settings


class _Pictures:
    """The pictures of the pages: files, each written once, and the HTML that shows them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[Path] = set()

    def thumbnails(self, notebook: NotebookNode, tag: str = "") -> Iterator[str]:
        """Give the pictures of the cells with a tag, or of all, for the first page."""
        heading = ""
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                heading = (_HEADING.findall(cell.source) or [heading])[-1]
            for output in cell.get("outputs", []):
                for form in sorted(_PICTURES.keys() & output.get("data", {}).keys()):
                    known = output.metadata.setdefault(form, {})
                    known.setdefault("alt", f"Figure of the section: {heading}")
                    if not tag or tag in cell.metadata.get("tags", []):
                        yield self.shown(form, output.data[form], known, small=True)

    def shown(self, form: str, content: str, known: dict[str, Any], *, small: bool = False) -> str:
        raw = content.encode() if form == "image/svg+xml" else base64.b64decode(content)
        file = self.file(raw, _PICTURES[form], small)
        # A picture for a screen of double density states its width.
        width = Markup(' width="{}"').format(known["width"]) if "width" in known else Markup()
        picture = (
            '<a class="picture" href="{0}"><img class="dark-light" src="{0}" alt="{1}"{2}></a>'
        )
        place = f"{'' if small else '../'}_images/{file.name}"
        return str(Markup(picture).format(place, known["alt"], Markup() if small else width))

    def file(self, raw: bytes, suffix: str, small: bool) -> Path:
        stem = f"figure-{'small-' * small}{hashlib.sha256(raw).hexdigest()[:20]}"
        file = next(self.folder.glob(f"{stem}.*"), None)
        if file is None:
            raw, suffix = _smaller(raw, small) if suffix == "png" else (raw, suffix)
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"{stem}.{suffix}"
            with whole_file(file) as temporary:
                temporary.write_bytes(raw)
        self.used.add(file)
        return file

    def drop_others(self) -> None:
        for file in set(self.folder.glob("figure-*")) - self.used:
            file.unlink()


def _smaller(png: bytes, small: bool) -> tuple[bytes, str]:
    """Give the very same picture in fewer bytes, a photo nearly the same; a thumbnail if small."""

    def webp(**options: Any) -> tuple[bytes, str]:
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", **options)
        return buffer.getvalue(), "webp"

    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGBA")
    if small:
        picture.thumbnail((_THUMBNAIL_WIDTH, _THUMBNAIL_WIDTH))
        return webp(quality=82)
    forms = [(png, "png"), webp(lossless=True, method=1, quality=0)]
    if min(len(one) for one, _ in forms) > _EXACT_BYTES:
        forms.append(webp(quality=90))
    return min(forms, key=lambda form: len(form[0]))


def _link_papers(app: Any, what: str, name: str, it: Any, options: Any, lines: list[str]) -> None:
    for pattern, link in _PAPERS:
        lines[:] = [pattern.sub(link, line) for line in lines]


def _mend(app: Any, name: str, template: str, context: dict[str, Any], tree: Any) -> None:
    if "body" in context:
        body = _INTERVAL.sub(r"\1&nbsp;\2", context["body"])
        context["body"] = _USES.sub("<summary>Where it is used</summary>", body)


def _keep_inside(app: Any) -> None:
    """MyST-NB leaves copies of the notebooks beside the folder of the pages."""
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=str(app.doctreedir))


def setup(app: Any) -> dict[str, Any]:
    """Let Sphinx, which calls this for its extensions, do the rest of it."""
    app.connect("builder-inited", _keep_inside)
    app.connect("autodoc-process-docstring", _link_papers)
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True}


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the site of the folder that the options of `python -m pdutils run` name."""
    parser = argparse.ArgumentParser(prog="python -m tools.site", allow_abbrev=False)
    parser.add_argument("--output", metavar="DIR", type=Path, default=results_folder())
    folder = parser.parse_known_args(arguments)[0].output.resolve()
    status = build(folder)
    print(f"open {os.path.relpath(folder / 'index.html')}")
    return status


if __name__ == "__main__":
    sys.exit(main())
