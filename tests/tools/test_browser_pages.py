import base64
import io
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from browser import axe_violations, chromium, watched
from conftest import photo
from nbformat import from_dict
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from pdutils import published, tables
from pdutils.stats import PairedDifference
from tools import pages

pytestmark = pytest.mark.slow

browser = pytest.fixture(chromium, scope="module")

NAMES = ["01_one", "02_two", "10_ten"]

#: Neither in order as they stand, nor as texts.
RATES = ["0.5 [0.38, 0.62]", "-", "0.10 [0.06, 0.17]", "-0.2 [-0.30, -0.10]", "1.00 [0.96, 1.00]"]
COUNTS = ["200", "9", "1500", "30", "4"]
STEPS = ["PD 600", "WD", "PD 1500", "PD 200", "none"]

CODE = 'def share(n: int) -> float:\n    return sum(x > 0.5 for x in range(n)) / n  # "of all"'


def picture(seed: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(photo(90, 160, seed).astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shows(data: dict, source: str = CODE, tag: str = ""):
    output = new_output("display_data", data=data)
    if "image/png" in data:
        output.metadata["image/png"] = {"alt": f"what stands in {source[-2:]}"}
    return new_code_cell(source, outputs=[output], metadata={"tags": [tag] if tag else []})


def notebook(number: int, title: str, intro: str, **record):
    table = pd.DataFrame({"rate (n = 100)": RATES, "counts": COUNTS}, index=STEPS)
    raised = new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
    cells = [
        new_markdown_cell(f"# {number}. {title}\n\n{intro}"),
        new_markdown_cell("## Parameters\n\nSome `code`, and [a paper](https://arxiv.org/abs/1)."),
        new_code_cell(f"seed = {number}\nwindow = 10", metadata={"tags": ["parameters"]}),
        shows({"image/png": picture(number)}, f"draw()  # A{number}", tag="main-figure"),
        shows({"image/png": picture(number + 20)}, f"draw()  # B{number}"),
        new_markdown_cell(f"## Numbers\n\n![drawn](data:image/png;base64,{picture(9)})"),
        shows({"text/html": table.rename_axis("step")._repr_html_()}),
        new_code_cell("print('x' * 400)\n" + "x = " + "1 + " * 60 + "1"),
        new_code_cell("fail()", outputs=[raised] if "error" in record else []),
        shows({"application/json": {"headline": f"finding number {number}"}}),
    ]
    made = new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    made.metadata.papermill = from_dict({"duration": 3.2, **record})
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    made = [
        notebook(1, "Badgers", "How a badger is seen.", parameters={"seed": 7}),
        notebook(2, "Wavelets", "How a picture is smoothed."),
        notebook(10, "Many badgers", "A hundred of them.", error="ValueError: no"),
    ]
    for name, one in zip(NAMES, made, strict=True):
        nbformat.write(one, folder / f"{name}.ipynb")
    pages.build(folder)
    return folder


@pytest.fixture
def visit(browser, folder):
    """A function that opens one of the pages; the test fails if a page complains or asks out."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    with watched(page) as seen:

        def go(name: str):
            page.goto((folder / f"{name}.html").as_uri())
            return page

        yield go
    assert seen.errors == []
    assert seen.foreign == []
    context.close()


def is_dark(page) -> bool:
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return int(color.partition("(")[2].partition(",")[0]) < 128


@pytest.mark.parametrize("name", ["index", "10_ten"])
def test_a_page_can_be_read_by_everybody_and_is_no_wider_than_its_window(visit, name):
    page = visit(name)
    for width, theme in ((1280, "light"), (800, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        assert is_dark(page) == (theme == "dark")
        assert axe_violations(page) == []
    for width in (1280, 800, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_tables_of_the_notebooks_lie_within_the_page(visit, folder):
    draws = np.full((20, 3), 0.5)
    found = {"adversary": draws[0], "PD 1500": draws, "PD 1500 + R-CAM + WD": draws}
    names = ("Egyptian_cat", "American_egret", "tiger_cat")
    steps = published.step_table(found, label=0, attacked_label=1, names=names)
    drop = PairedDifference(20, 5, 60, 15)
    columns = dict.fromkeys(("clean", "stops at success", "goes on"), drop)
    rates = tables.rate_table({"PD 1500 + R-CAM + WD against PD 200 + WD": columns})
    shown = [shows({"text/html": table._repr_html_()}) for table in (steps, rates)]
    cells = [new_markdown_cell("# 3. Tables"), new_markdown_cell("## Two"), *shown]
    made = new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    made.metadata.papermill = from_dict({"duration": 1.0})
    html = pages.page("03_tables", made, [*NAMES, "03_tables"])
    (folder / "03_tables.html").write_text(html, encoding="utf-8")
    wide = """tables => tables.map(t => t.offsetWidth - t.parentElement.clientWidth)"""
    over = visit("03_tables").locator("table").evaluate_all(wide)
    assert len(over) == 2
    assert max(over) <= 0


def test_the_search_leaves_the_cards_that_have_all_the_words(visit):
    page = visit("index")

    def found(words: str) -> list[str]:
        page.get_by_role("searchbox").fill(words)
        return page.locator("article:visible h3").all_inner_texts()

    one, two, ten = "1. Badgers", "2. Wavelets", "10. Many badgers"
    assert found("") == [one, two, ten]
    assert found("BADGER") == [one, ten]
    assert found("badger hundred") == [ten]
    assert page.get_by_role("heading", level=2).all_inner_texts() == ["Beyond the blog"]
    assert found("smoothed") == [two]
    assert page.get_by_role("status").inner_text() == "1 of 3 notebooks"
    assert found("number 2") == [two]
    assert found("failed") == [ten]
    assert found("zebra") == []
    assert page.get_by_role("status").inner_text() == "None of 3 notebooks"
    assert found("") == [one, two, ten]
    # Settings are found too, and unfold.
    settings = page.locator("article:visible .settings dl")
    assert not settings.first.is_visible()
    assert found("seed = 7") == [one]
    assert settings.is_visible()
    assert settings.locator(".passed").inner_text().split() == ["seed", "7"]
    assert found("") == [one, two, ten]
    assert not settings.first.is_visible()


def test_a_card_leads_to_its_page_and_pages_to_their_neighbours(visit):
    page = visit("index")
    # On the figure, over which the link of the title reaches.
    figure = page.locator("article .picture").first
    figure.scroll_into_view_if_needed()
    box = figure.bounding_box()
    page.mouse.click(box["x"] + 60, box["y"] + 60)
    page.wait_for_url("**/01_one.html")
    for rel, name in (("next", "02_two"), ("next", "10_ten"), ("prev", "02_two")):
        page.locator(f"header [rel={rel}]").click()
        assert page.url.endswith(f"{name}.html")
    page.locator("footer").get_by_role("link", name="All notebooks").click()
    assert page.url.endswith("index.html")


def column(page, place: int) -> list[str]:
    return page.locator(f"tbody tr > :nth-child({place})").all_inner_texts()


def test_a_table_sorts_numbers_as_numbers_and_comes_back(visit):
    page = visit("01_one")
    by_rate = ["-0.2 [-0.30, -0.10]", "0.10 [0.06, 0.17]", "0.5 [0.38, 0.62]", "1.00 [0.96, 1.00]"]
    head = page.locator("thead th").nth(1)
    button = head.get_by_role("button")
    button.click()
    assert (head.get_attribute("aria-sort"), column(page, 2)) == ("ascending", [*by_rate, "-"])
    assert column(page, 3) == ["30", "1500", "200", "4", "9"]
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, 2) == [*by_rate[::-1], "-"]
    page.keyboard.press("Enter")
    assert (head.get_attribute("aria-sort"), column(page, 2)) == ("none", RATES)
    page.get_by_role("button", name="counts").click()
    assert column(page, 3) == ["4", "9", "30", "200", "1500"]
    # Names sort by the numbers in them.
    page.get_by_role("button", name="step").click()
    assert column(page, 1) == ["none", "PD 200", "PD 600", "PD 1500", "WD"]
    assert page.locator("[aria-sort]:not([aria-sort=none])").all_inner_texts() == ["step"]
    # An interval stays on one line.
    cell = page.locator("tbody td", has_text="[0.06, 0.17]").first
    cell.evaluate("cell => { cell.style.maxWidth = cell.style.width = '1px' }")
    interval = cell.get_by_text("[0.06, 0.17]", exact=True)
    assert interval.evaluate("part => part.getClientRects().length") == 1


@pytest.mark.parametrize("name", ["index", "01_one"])
def test_a_figure_enlarges_by_keyboard_and_escape_leads_back(visit, name):
    page = visit(name)
    viewer = page.get_by_role("dialog")
    button = page.get_by_role("button", name="Enlarge figure 1")
    assert not viewer.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    assert viewer.is_visible()
    assert axe_violations(page) == []
    shown, small = viewer.locator("img"), page.locator(".picture img").first
    assert shown.get_attribute("src") == small.get_attribute("src")
    assert shown.bounding_box()["width"] > 800
    assert viewer.locator("p").inner_text() == "what stands in A1"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert shown.get_attribute("src") == page.locator(".picture img").nth(1).get_attribute("src")
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert button.evaluate("button => button === document.activeElement")


def test_a_figure_enlarges_by_a_click_and_one_beside_it_closes(visit):
    page = visit("01_one")
    page.locator(".picture img").nth(1).click()
    viewer = page.get_by_role("dialog")
    assert viewer.locator("p").inner_text() == "what stands in B1"
    page.mouse.click(3, 3)
    assert not viewer.is_visible()
    page.get_by_role("img", name="drawn").click()
    assert viewer.locator("p").inner_text() == "drawn"


def test_the_colours_that_were_chosen_hold_on_the_next_page(visit):
    page = visit("index")
    switch = page.get_by_role("button", name="Dark")
    assert (is_dark(page), switch.get_attribute("aria-pressed")) == (False, "false")
    switch.click()
    assert (is_dark(page), switch.get_attribute("aria-pressed")) == (True, "true")
    for _ in range(600):
        # What a page stores reaches the process of the next one a moment later.
        page.wait_for_timeout(100)
        if is_dark(visit("02_two")):
            break
    assert (is_dark(page), switch.get_attribute("aria-pressed")) == (True, "true")
    assert axe_violations(page) == []
    switch.click()
    assert not is_dark(page)
    page.emulate_media(color_scheme="dark")
    assert is_dark(page)


def test_the_first_step_of_the_keyboard_leads_past_the_links(visit):
    page = visit("01_one")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_print_is_light_and_without_controls(visit):
    page = visit("01_one")
    page.get_by_role("button", name="Dark").click()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(31, 35, 40)"
    assert page.locator("button:visible:not(.sort)").count() == 0
    assert page.locator("nav:visible").count() == 0
    page.set_viewport_size({"width": 700, "height": 1000})
    table = page.locator("table").bounding_box()
    assert table["x"] + table["width"] <= 700


def test_without_a_script_everything_can_be_read_and_nothing_pretends(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for name, shown in (("index", "article"), ("01_one", "table")):
        page.goto((folder / f"{name}.html").as_uri())
        assert page.locator(shown).first.is_visible()
        assert page.locator("button:visible, input:visible").count() == 0
    context.close()
