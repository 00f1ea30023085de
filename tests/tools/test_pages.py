import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import photo
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from tools import pages

RED, BLUE = (200, 0, 0), (0, 0, 200)


def png(color=RED, size: int = 8) -> str:
    return png_of(np.random.default_rng(0).integers(0, 40, (size, size, 3)) + np.array(color))


def png_of(pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2])))


def shows(data, *tags: str, source: str = "draw()", **metadata):
    output = new_output("display_data", data=data)
    return new_code_cell(source, outputs=[output], metadata={"tags": list(tags), **metadata})


def notebook(*cells, title: str = "1. A *first* one", **record):
    opening = new_markdown_cell(f"# {title}\n\nThe prose, with `code`.\n\nMore.")
    made = new_notebook(cells=[opening, *cells], metadata={"language_info": {"name": "python"}})
    made.metadata.papermill = nbformat.from_dict(record)
    return made


def write_result(folder, name, made) -> None:
    nbformat.write(made, folder / f"{name}.ipynb")
    pages.build(folder)


class _Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def tags(html: str, name: str) -> list[dict]:
    return [attributes for tag, attributes in _Tags(html).found if tag == name]


@pytest.fixture
def rich():
    """A notebook with all kinds of output that pages know, and scripts, which they do not."""
    made = notebook(
        new_markdown_cell("## Looks\n\n[other](02_two.ipynb), [paper](https://arxiv.org/abs/1)"),
        shows({"image/png": png(), "text/plain": "<Figure>"}),
        shows({"image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg'/>"}),
        shows({"text/html": "<table class='dataframe'><tr><td>0.5</td></tr></table>"}),
        shows({"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "w"}),
        shows({"application/javascript": "alert(1)", "text/plain": "script"}),
        shows({"text/latex": "$x$", "text/plain": "x"}),
        shows({"application/json": {"headline": "a < b", "n": 1}, "text/plain": "<JSON>"}),
    )
    made.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    return made


def test_a_page_needs_no_network_and_runs_no_script_of_a_notebook(rich):
    html = pages.page("01_one", rich, ["01_one", "02_two"])
    for name in ("link", "iframe", "object"):
        assert tags(html, name) == []
    assert tags(html, "script") == [{}, {}]
    assert "alert(1)" not in html
    assert all(image["src"].startswith("data:") for image in tags(html, "img"))
    assert "@import" not in html
    assert "In\xa0[" not in html
    assert "url(" not in html


def test_every_picture_has_its_words(rich):
    rich.cells.append(shows({"image/png": png()}, alt="two badgers"))
    html = pages.page("01_one", rich, ["01_one"])
    words = [image["alt"] for image in tags(html, "img")]
    assert words == ["Figure of the section: Looks"] * 2 + ["two badgers"]


def test_the_words_that_come_with_a_picture_go_before_those_of_its_section(tmp_path):
    cell = shows({"image/png": png()}, "main-figure")
    cell.outputs[0].metadata["image/png"] = {"alt": "a badger <0.9>"}
    write_result(tmp_path, "01", notebook(cell))
    for name in ("01", "index"):
        html = (tmp_path / f"{name}.html").read_text()
        assert {image["alt"] for image in tags(html, "img")} == {"a badger <0.9>"}


def test_the_name_of_the_rows_stands_in_the_one_head_of_a_table():
    rows = pd.DataFrame({"clean": ["0.50"], "attacked": ["0.25"]}, index=["PD"])
    for name, first in (("step", "step"), (None, "")):
        frame = rows.rename_axis(name)
        html = pages.page("01", notebook(shows({"text/html": frame._repr_html_()})), ["01"])
        table = html.partition("<thead>")[2].partition("</table>")[0]
        cells = [re.findall(r"<t[hd]>([^<]*)<", row) for row in table.split("</tr>")[:-1]]
        assert cells == [[first, "clean", "attacked"], ["PD", "0.50", "0.25"]]


@pytest.mark.parametrize("of_a_photo", [False, True])
def test_a_picture_is_smaller_on_a_page_and_exact_unless_it_is_a_photo(of_a_photo):
    source = png_of(photo(300, 300)) if of_a_photo else png(size=64)
    (image,) = tags(pages.page("01", notebook(shows({"image/png": source})), ["01"]), "img")
    assert len(image["src"]) < (0.4 if of_a_photo else 1) * len(source)
    shown, drawn = (
        np.asarray(opened(address).convert("RGB"), dtype=float)
        for address in (image["src"], f"base64,{source}")
    )
    assert np.abs(shown - drawn).mean() < 5
    assert of_a_photo or (shown == drawn).all()


def test_results_are_readable_on_the_page(rich):
    html = pages.page("01_one", rich, ["01_one"])
    assert "&#34;headline&#34;: &#34;a &lt; b&#34;" in html or '"headline": "a &lt; b"' in html
    assert "&lt;JSON&gt;" not in html


def test_links_to_notebooks_lead_to_their_pages(rich):
    def links(names: list[str]) -> list[str]:
        main = pages.page("01", rich, names).partition("<h1")[2].partition("</main>")[0]
        return [link["href"] for link in tags(main, "a") if not link["href"].startswith("#")]

    assert links(["01", "02_two"]) == ["02_two.html", "https://arxiv.org/abs/1"]
    assert links(["01"]) == ["02_two.ipynb", "https://arxiv.org/abs/1"]


def test_pictures_in_prose_are_inside_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_SOURCES", tmp_path)
    (tmp_path / "badger.png").write_bytes(base64.b64decode(png()))
    prose = notebook(new_markdown_cell("![a badger](badger.png)"))
    (image,) = tags(pages.page("01", prose, ["01"]), "img")
    assert image["alt"] == "a badger"
    assert image["src"].startswith("data:image/")


def test_pages_lead_to_their_neighbours_and_the_index(tmp_path):
    for name in ("01_one", "02_two", "03_three"):
        nbformat.write(notebook(), tmp_path / f"{name}.ipynb")
    pages.build(tmp_path)
    hrefs = [link["href"] for link in tags((tmp_path / "02_two.html").read_text(), "a")]
    assert {"01_one.html", "03_three.html", "index.html", "02_two.ipynb"} <= set(hrefs)
    for html in (path.read_text() for path in tmp_path.glob("*.html")):
        targets = [link["href"] for link in tags(html, "a") if not link["href"].startswith("#")]
        assert targets
        assert all((tmp_path / target.partition("#")[0]).is_file() for target in targets)


def test_only_what_is_older_or_leads_elsewhere_is_written_again(tmp_path):
    def times():
        return [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("0*.html"))]

    for name in ("01_one", "05_five"):
        write_result(tmp_path, name, notebook())
    before = times()
    write_result(tmp_path, "03_three", notebook())
    assert 'rel="next" href="03_three.html"' in (tmp_path / "01_one.html").read_text()
    after = times()
    assert after[0] != before[0]
    pages.build(tmp_path)
    assert times() == after
    write_result(tmp_path, "01_one", notebook(title="1. Another"))
    assert "Another" in (tmp_path / "01_one.html").read_text()
    assert times()[1:] == after[1:]


def test_the_command_builds_the_folder_that_the_run_was_told(tmp_path, capsys):
    nbformat.write(notebook(), tmp_path / "01_one.ipynb")
    pages.main(["03", "-p", "seed", "1", "--output", str(tmp_path)])
    assert (tmp_path / "01_one.html").is_file()
    assert capsys.readouterr().out.endswith("index.html\n")


def mean_color(address: str) -> np.ndarray:
    return np.asarray(opened(address).convert("RGB"), dtype=float).mean(axis=(0, 1))


def test_the_main_figure_is_the_tagged_one_else_the_first():
    first, tagged = shows({"image/png": png(RED)}), shows({"image/png": png(BLUE)}, "main-figure")
    blue = pages.card("01", notebook(first, tagged)).figure
    assert mean_color(blue.source)[2] > 150
    red = pages.card("01", notebook(first, shows({"text/plain": "x"}, "main-figure"))).figure
    assert mean_color(red.source)[0] > 150
    assert pages.card("01", notebook()).figure is None


def test_a_thumbnail_is_no_wider_than_the_index_needs():
    large = png_of(np.zeros((1000, 1000, 3)))
    figure = pages.card("01", notebook(shows({"image/png": large}))).figure
    assert opened(figure.source).size == (900, 900)


def test_a_card_says_what_the_notebook_is_and_found():
    made = notebook(
        shows({"application/json": {"headline": "old"}}),
        shows({"application/json": {"headline": "badger 0.15 to 0.97"}}),
        duration=12.4,
        start_time="2025-11-23T05:40:12.123+00:00",
        parameters={"seed": 7},
    )
    card = pages.card("01_one", made)
    assert card.title == "1. A first one"
    assert card.intro.striptags() == "The prose, with code."
    assert card.headline == "badger 0.15 to 0.97"
    assert (card.seconds, card.started) == (12.4, "2025-11-23 05:40")
    assert card.parameters == {"seed": 7}
    assert card.error is None


def test_a_card_lists_all_settings_and_which_were_passed():
    cell = new_code_cell(
        'seed = 0  # its own\nwindow = 10\nweights = ""\nsizes = [1, 2]\nsum = 1 + seed',
        metadata={"tags": ["parameters"]},
    )
    card = pages.card("01", notebook(cell, parameters={"seed": 7, "folder": "/home/me/photos"}))
    assert card.settings == {"seed": "7", "window": "10", "sizes": "[1, 2]", "folder": "photos"}
    assert list(card.parameters) == ["seed", "folder"]
    cell.source = "%magic"
    assert pages.card("01", notebook(cell)).settings == {}


def test_the_notebooks_of_the_blog_stand_apart_from_those_beyond(tmp_path):
    for name in ("09_nine", "10_ten"):
        nbformat.write(notebook(), tmp_path / f"{name}.ipynb")
    html = pages.index(tmp_path)
    order = ["The blog</h2>", "09_nine.html", "Beyond the blog</h2>", "10_ten.html"]
    assert sorted(map(html.index, order)) == list(map(html.index, order))
    (tmp_path / "10_ten.ipynb").unlink()
    assert "Beyond the blog" not in pages.index(tmp_path)


def test_a_cell_whose_source_is_hidden_is_folded_and_its_output_is_not():
    hidden = new_code_cell(
        "gather = 1",
        metadata={"jupyter": {"source_hidden": True}},
        outputs=[new_output("stream", text="shown")],
    )
    html = pages.page("01", notebook(new_code_cell("seen = 2"), hidden), ["01"])
    (folded,) = re.findall(r'<details class="folded">(.*?)</details>', html, flags=re.DOTALL)
    assert "gather" in folded
    assert "seen" not in folded
    assert "shown" not in folded
    assert "shown" in html


def test_a_page_lists_its_sections():
    made = notebook(new_markdown_cell("## What *is* it?\n\n### Not this\n\n## Summary"))
    html = pages.page("01", made, ["01"])
    assert 'id="terms"' not in html
    nav = html.partition("On this page")[2].partition("</nav>")[0]
    assert [link["href"] for link in tags(nav, "a")] == ["#What-is-it?", "#Summary"]
    assert "What is it?" in nav


def test_results_without_a_headline_are_no_obstacle():
    for results in ([1, 2], "text", {"other": 1}, None):
        made = notebook(shows({"application/json": results}))
        assert pages.card("01", made).headline is None


def test_the_index_has_a_card_for_each_notebook(tmp_path):
    good = notebook(
        shows({"image/png": png(RED)}),
        shows({"application/json": {"headline": "a <b> & c"}}),
        duration=3.2,
    )
    good.cells[0].source = "# 1. A first one\n\nAfter [two](02_two.ipynb)."
    bad = notebook(title="2. Bad", duration=1.0, exception=True, error="ValueError: <no>")
    for name, made in (("01_one", good), ("02_two", bad)):
        nbformat.write(made, tmp_path / f"{name}.ipynb")
    html = pages.index(tmp_path)
    assert len(tags(html, "article")) == 2
    assert [image["alt"] for image in tags(html, "img")] == [
        "Figure of the section: 1. A first one"
    ] * 2
    assert "a &lt;b&gt; &amp; c" in html
    assert "ValueError: &lt;no&gt;" in html
    assert len(re.findall(r'class="state failed"', html)) == 1
    assert "3 s" in html
    # Links on a card lead to pages.
    assert tags(html.split('class="intro"')[1], "a")[0] == {"href": "02_two.html"}


def test_the_picture_at_the_top_can_be_chosen(tmp_path):
    red, blue = shows({"image/png": png(RED)}), shows({"image/png": png(BLUE)}, "cover-figure")
    for name, made, color in (("01", notebook(red), 0), ("02", notebook(red, blue), 2)):
        nbformat.write(made, tmp_path / f"{name}.ipynb")
        assert mean_color(tags(pages.index(tmp_path), "img")[0]["src"])[color] > 150


def test_an_error_is_at_the_top_and_in_its_place():
    raised = new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
    cell = new_code_cell("fail()", outputs=[raised])
    html = pages.page("01", notebook(cell, error="ValueError: no"), ["01"])
    assert {"href": "#failed"} in tags(html, "a")
    assert html.index('href="#failed"') < html.index("<h1") < html.index('id="failed"')


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path):
    target = tmp_path / "index.html"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        pages._write(target, "new" * 10_000 + "\ud800")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
