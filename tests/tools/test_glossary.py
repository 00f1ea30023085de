import re

import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook

from pdutils.cli import runner
from pdutils.demo.examples import demo_root
from tools import glossary as module
from tools import pages
from tools.glossary import glossary, terms_of, with_terms_on

LINK = "../docs/glossary.md#"


def link(anchor: str, text: str = "it") -> str:
    return f'<a href="{LINK}{anchor}">{text}</a>'


def prose(path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_the_terms_stand_in_their_order_each_once_and_with_a_meaning():
    titles = [term.title for term in glossary().values()]
    plain = [re.sub(r"\W", "", title).lower() for title in titles]
    assert plain == sorted(set(plain))
    assert all(term.meaning.striptags() for term in glossary().values())


def test_anchors_are_those_that_github_gives_headings():
    for title, anchor in (("C&W", "cw"), ("R-CAM", "r-cam"), ("Grey level", "grey-level")):
        assert glossary()[anchor].title == title


def test_the_glossary_s_own_links_lead_to_terms():
    text = (demo_root() / "docs" / "glossary.md").read_text("utf-8")
    own = re.findall(r"\]\(#([^)]+)\)", text)
    assert own
    assert set(own) <= set(glossary())


def test_links_to_the_glossary_lead_to_terms():
    for path in runner.find_notebooks():
        linked = re.findall(r"docs/glossary\.md(#?[^)\s]*)", prose(path))
        assert {anchor.removeprefix("#") for anchor in linked} <= set(glossary()), path


def test_a_page_shows_the_terms_that_it_links_to_and_those_that_they_need():
    html = link("igsm") + link("l2") + link("nothing")
    assert [term.anchor for term in terms_of(html)] == ["fgsm", "igsm", "l2"]
    (igsm,) = [term for term in terms_of(html) if term.anchor == "igsm"]
    assert 'href="#term-fgsm"' in igsm.meaning


def test_links_lead_to_the_page_s_own_terms_and_a_link_to_nothing_is_text():
    html = link("l2", "<em>L2</em>") + link("nothing", "this") + '<a href="docs/other.md#l2">x</a>'
    assert with_terms_on(html) == (
        '<a href="#term-l2"><em>L2</em></a>this<a href="docs/other.md#l2">x</a>'
    )
    assert with_terms_on(link("l2"), "04.html") == '<a href="04.html#term-l2">it</a>'


def test_without_its_file_there_are_no_terms_and_no_dead_links(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_PATH", tmp_path / "glossary.md")
    glossary.cache_clear()
    try:
        assert (terms_of(link("l2")), with_terms_on(link("l2"))) == ([], "it")
    finally:
        glossary.cache_clear()


def test_on_pages_and_cards_no_link_to_a_term_is_dead(tmp_path):
    source = f"# One\n\nA size in [L2]({LINK}l2), by [IGSM]({LINK}igsm)."
    made = new_notebook(cells=[new_markdown_cell(source)])
    nbformat.write(made, tmp_path / "01_one.ipynb")
    pages.build(tmp_path)
    html = (tmp_path / "01_one.html").read_text("utf-8")
    index = (tmp_path / "index.html").read_text("utf-8")
    targets = re.findall(r'href="#(term[^"]*)"', html)
    assert {"term-l2", "term-igsm", "term-fgsm"} <= set(targets)
    assert set(targets) <= set(re.findall(r'id="([^"]+)"', html))
    assert "relative" in html.partition('id="term-l2"')[2].partition("</dd>")[0]
    links = re.findall(r'href="01_one\.html#([^"]+)"', index)
    assert links == ["term-l2", "term-igsm"]
    assert "glossary.md" not in html + index
