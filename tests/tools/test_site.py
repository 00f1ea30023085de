import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import photo
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from pdutils.demo.examples import demo_root
from tools import site

GLOSSARY = "../docs/glossary.md"


def png(pixels=None, *, size: int = 8, color=(200, 0, 0)) -> str:
    noise = np.random.default_rng(0).integers(0, 40, (size, size, 3)) + np.array(color)
    buffer = io.BytesIO()
    Image.fromarray((noise if pixels is None else pixels).astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shows(data, *tags: str, source: str = "draw()", **metadata):
    output = new_output("display_data", data=data, metadata=metadata)
    return new_code_cell(source, outputs=[output], metadata={"tags": list(tags)})


def notebook(*cells, intro: str = "The prose.", **record):
    opening = new_markdown_cell(f"# 1. A *first* one\n\n{intro}\n\nMore.")
    return new_notebook(cells=[opening, *cells], metadata={"papermill": record})


@pytest.fixture
def laid(tmp_path):
    """A function that gives what Sphinx builds from, of notebooks by their names."""

    def lay(**notebooks) -> dict[str, str]:
        for name, made in notebooks.items():
            nbformat.write(made, tmp_path / f"{name[1:]}.ipynb")
        files = site._sources(tmp_path, demo_root() / "docs")
        return {str(p): c.decode() for p, c in files.items() if p.suffix in (".md", ".ipynb")}

    return lay


def card(files: dict[str, str], name: str = "01_classify") -> str:
    head = rf"::::\{{grid-item-card\}} \[[^\n]*\]\(notebooks/{name}\.ipynb\).*?\n::::"
    return re.search(head, files["index.md"], re.DOTALL)[0]


def test_a_card_says_what_the_notebook_is_what_it_found_and_how_it_ran(laid):
    parameters = new_code_cell(
        'seed = 0\nwindow = 10  # its own\nweights = ""\nsum = 1 + seed',
        metadata={"tags": ["parameters"]},
    )
    made = notebook(
        parameters,
        shows({"application/json": {"headline": "old"}}),
        shows({"application/json": {"headline": "a <b> & c (n = 3)"}}),
        intro=f"After [two](02_two.ipynb), an [L2]({GLOSSARY}#l2).",
        duration=12.4,
        start_time="2025-11-23T05:40:12.123+00:00",
        parameters={"seed": 7, "folder": "/home/me/photos"},
    )
    text = card(laid(_01_classify=made))
    assert text.startswith("::::{grid-item-card} [1. A *first* one]")
    assert "After [two](notebooks/02_two.ipynb), an [L2](glossary.md#l2)." in text
    assert "a &lt;b&gt; &amp; c (n = 3)" in text
    assert "ok · 12 s · 2025-11-23 05:40 UTC · " in text
    settings = re.findall(r'class="(\w+)"><dt>(\w+)</dt><dd>(\w+)', text)
    assert settings == [
        ("passed", "seed", "7"), ("own", "window", "10"), ("passed", "folder", "photos"),
    ]  # fmt: skip


@pytest.mark.parametrize("results", [[1, 2], "text", {"other": 1}, None])
def test_results_without_a_headline_and_parameters_that_are_no_python_are_no_obstacle(
    laid, results
):
    magic = new_code_cell("%magic", metadata={"tags": ["parameters"]})
    text = card(laid(_01_classify=notebook(magic, shows({"application/json": results}))))
    assert "headline" not in text
    assert "Settings" not in text


def test_a_notebook_that_was_not_executed_says_so_and_those_beyond_the_blog_stand_apart(laid):
    files = laid(_01_classify=notebook(duration=1.0))
    assert "not executed yet" not in card(files)
    assert "not executed yet" in card(files, "02_pixel_deflection")
    blog, beyond = files["index.md"].split("## Beyond the blog")
    assert "notebooks/09_explorer.ipynb" in blog
    assert "notebooks/10_many_images.ipynb" in beyond
    assert "not executed yet" in files["notebooks/02_pixel_deflection.ipynb"]


def test_a_notebook_of_one_s_own_has_its_name_for_a_title(laid):
    files = laid(_mine=new_notebook(cells=[new_code_cell("# what\nx = 1")]))
    cells = nbformat.reads(files["notebooks/mine.ipynb"], 4).cells
    assert (cells[0].source, cells[-1].source) == ("# mine", "# what\nx = 1")
    assert card(files, "mine").startswith("::::{grid-item-card} [mine]")


def test_an_error_is_on_the_card_at_the_top_of_the_page_and_in_its_place(laid):
    raised = new_output("error", ename="ValueError", evalue="<no>", traceback=["ValueError: <no>"])
    made = notebook(new_code_cell("fail()", outputs=[raised]), error="ValueError:\n<no>")
    files = laid(_01_classify=made)
    assert 'href="notebooks/01_classify.html#failed"' in card(files)
    assert "<code>ValueError: &lt;no&gt;</code>" in card(files)
    page = nbformat.reads(files["notebooks/01_classify.ipynb"], 4)
    sources = [cell.source for cell in page.cells]
    assert sources[0] == "# 1. A *first* one"
    assert 'href="#failed"' in sources[1]
    assert sources[-2:] == ['<div id="failed"></div>', "fail()"]


def shown(files: dict[str, str]) -> list[dict]:
    cells = nbformat.reads(files["notebooks/01_classify.ipynb"], 4).cells
    return [output.data for cell in cells for output in cell.get("outputs", [])]


def test_a_page_shows_the_richest_form_that_needs_no_script_and_each_picture_has_its_words(laid):
    made = notebook(
        new_markdown_cell("## Looks"),
        shows({"image/png": png(), "text/plain": "<Figure>"}),
        shows({"image/png": png()}, **{"image/png": {"alt": "a <badger>", "width": 40}}),
        shows({"image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg'/>"}),
        shows({"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "w"}),
        shows({"application/javascript": "alert(1)", "text/plain": "script"}),
        shows({"application/json": {"a": "<b>"}, "text/plain": "<JSON>"}),
        shows({"text/html": "<b>x</b>", "text/markdown": "x"}),
    )
    made.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    files = laid(_01_classify=made)
    first, second, svg, *others = shown(files)
    assert 'alt="Figure of the section: Looks"' in first["text/html"]
    assert 'alt="a &lt;badger&gt;" width="40"' in second["text/html"]
    assert re.search(r'src="\.\./_images/figure-\w+\.svg"', svg["text/html"])
    assert others[:2] == [{"text/plain": "w"}, {"text/plain": "script"}]
    assert "&lt;b&gt;" in others[2]["text/html"]
    assert others[3] == {"text/html": "<b>x</b>"}
    assert "widget-state" not in files["notebooks/01_classify.ipynb"]


def test_the_name_of_the_rows_stands_in_the_one_head_of_a_table(laid):
    rows = pd.DataFrame({"clean": ["0.50"], "attacked": ["0.25"]}, index=["PD"])
    for name, first in (("step", "step"), (None, "")):
        html = rows.rename_axis(name)._repr_html_()
        (data,) = shown(laid(_01_classify=notebook(shows({"text/html": html}))))
        table = data["text/html"].partition("<thead>")[2].partition("</table>")[0]
        cells = [re.findall(r"<t[hd]>([^<]*)<", row) for row in table.split("</tr>")[:-1]]
        assert cells == [[first, "clean", "attacked"], ["PD", "0.50", "0.25"]]


def test_a_cell_whose_source_is_hidden_is_folded(laid):
    hidden = new_code_cell("gather = 1", metadata={"jupyter": {"source_hidden": True}})
    files = laid(_01_classify=notebook(new_code_cell("seen = 2"), hidden))
    seen, folded = nbformat.reads(files["notebooks/01_classify.ipynb"], 4).cells[-2:]
    assert (seen.metadata.get("tags"), folded.metadata.tags) == (None, ["hide-input"])


def opened(folder: Path, html: str) -> np.ndarray:
    with Image.open(folder / re.search(r'_images/[^"]+', html)[0]) as picture:
        return np.asarray(picture.convert("RGB"), dtype=float)


@pytest.mark.parametrize("of_a_photo", [False, True])
def test_a_picture_is_smaller_on_a_page_and_exact_unless_it_is_a_photo(laid, tmp_path, of_a_photo):
    source = png(photo(300, 300)) if of_a_photo else png(size=64)
    (data,) = shown(laid(_01_classify=notebook(shows({"image/png": source}))))
    (file,) = (path for path in (tmp_path / "_images").iterdir() if "small" not in path.name)
    assert file.stat().st_size < (0.3 if of_a_photo else 0.8) * len(source)
    raw = base64.b64decode(source)
    drawn = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"), dtype=float)
    apart = np.abs(opened(tmp_path, data["text/html"]) - drawn)
    assert apart.mean() < 5 if of_a_photo else apart.max() == 0


def test_the_main_figure_is_on_the_card_and_the_cover_is_chosen(laid, tmp_path):
    red, blue = png(), png(np.full((1000, 1000, 3), (0, 0, 200)))
    cells = [shows({"image/png": red}), shows({"image/png": blue}, "main-figure")]
    files = laid(_01_classify=notebook(*cells), _02_two=notebook(cells[0]))
    thumbnail = opened(tmp_path, card(files))
    assert thumbnail.shape == (900, 900, 3)
    assert thumbnail.mean(axis=(0, 1)).argmax() == 2
    assert opened(tmp_path, card(files, "02_two")).mean(axis=(0, 1)).argmax() == 0
    files = laid(_03_three=notebook(shows({"image/png": red}, "cover-figure")))
    cover = re.search(r'<div class="cover">.*?</div>', files["index.md"])[0]
    assert opened(tmp_path, cover).mean(axis=(0, 1)).argmax() == 0


def test_pictures_that_no_page_shows_any_more_are_dropped(laid, tmp_path):
    laid(_01_classify=notebook(shows({"image/png": png()})))
    before = {path.name for path in (tmp_path / "_images").iterdir()}
    laid(_01_classify=notebook(shows({"image/png": png(size=9)})))
    after = {path.name for path in (tmp_path / "_images").iterdir()}
    assert len(before) == len(after) == 2
    assert not before & after


def test_the_same_notebooks_give_the_same_sources_so_that_no_page_is_built_again(laid):
    assert laid(_01_classify=notebook(shows({"image/png": png()}))) == laid()


def test_only_what_changed_is_written_and_what_is_no_more_is_dropped(tmp_path):
    site._write({Path("a.md"): b"1", Path("b/c.md"): b"2", Path("d.md"): b"3"}, tmp_path)
    before = (tmp_path / "a.md").stat().st_mtime_ns
    site._write({Path("a.md"): b"1", Path("b/c.md"): b"4"}, tmp_path)
    assert (tmp_path / "a.md").stat().st_mtime_ns == before
    assert (tmp_path / "b/c.md").read_bytes() == b"4"
    assert not (tmp_path / "d.md").exists()


def test_papers_are_links_in_the_reference():
    lines = ["FGSM 2015, arXiv 1412.6572; Zhou 2016, DOI 10.1109/CVPR.2016.319."]
    site._link_papers(None, "function", "pgd", None, None, lines)
    assert "`arXiv 1412.6572 <https://arxiv.org/abs/1412.6572>`__;" in lines[0]
    assert "`DOI 10.1109/CVPR.2016.319 <https://doi.org/10.1109/CVPR.2016.319>`__." in lines[0]
