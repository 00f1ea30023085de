"""The terms of the notebooks: `docs/glossary.md`, and what a page shows of it."""

import re
from functools import cache
from typing import NamedTuple

from markupsafe import Markup
from nbconvert.filters import markdown2html_mistune

from pdutils.demo.examples import demo_root

_PATH = demo_root() / "docs" / "glossary.md"

#: A link of a notebook to a term.
_LINK = re.compile(r'<a href="(?:\.\./)*docs/glossary\.md(?:#([^"]*))?"[^>]*>(.*?)</a>', re.DOTALL)

_OWN_LINK = re.compile(r'href="#([^"]+)"')


class Term(NamedTuple):
    """A term, and what it means.

    Attributes
    ----------
    anchor, title : str
        Where it stands, as GitHub names the places of headings, and what it is called.
    meaning : Markup
        HTML; its links to other terms lead to `#` and their anchors.
    """

    anchor: str
    title: str
    meaning: Markup


@cache
def glossary() -> dict[str, Term]:
    """Read the glossary.

    Returns
    -------
    dict of str to Term
        By anchor, in its order; none where the package is installed without it.
    """
    if not _PATH.exists():
        return {}
    _, *parts = re.split(r"^## ", _PATH.read_text("utf-8"), flags=re.MULTILINE)
    read = [part.partition("\n") for part in parts]
    terms = [
        Term(_anchor(title), title.strip(), Markup(markdown2html_mistune(text)))
        for title, _, text in read
    ]
    return {term.anchor: term for term in terms}


def _anchor(title: str) -> str:
    """Name the place of a heading as GitHub does."""
    return re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-")


def terms_of(html: str) -> list[Term]:
    """List the terms that a text links to, and those that these link to in turn.

    Parameters
    ----------
    html : str
        With links to `docs/glossary.md#anchor`.

    Returns
    -------
    list of Term
        In the glossary's order.
    """
    known = glossary()
    open_ones = [anchor for anchor, _ in _LINK.findall(html)]
    found: set[str] = set()
    while open_ones:
        anchor = open_ones.pop()
        if anchor in known and anchor not in found:
            found.add(anchor)
            open_ones += _OWN_LINK.findall(known[anchor].meaning)
    return [
        # What is put into Markup would be escaped.
        term._replace(meaning=Markup(_OWN_LINK.sub(r'href="#term-\1"', str(term.meaning))))
        for anchor, term in known.items()
        if anchor in found
    ]


def with_terms_on(html: str, page: str = "") -> str:
    """Lead the links to terms to a page that shows them.

    Parameters
    ----------
    html : str
        With links to `docs/glossary.md#anchor`.
    page : str
        The page's file; empty: the very page that the text is on.

    Returns
    -------
    str
        A link to no term is left as mere text.
    """

    def link(match: re.Match[str]) -> str:
        anchor, text = match.groups()
        return f'<a href="{page}#term-{anchor}">{text}</a>' if anchor in glossary() else text

    return _LINK.sub(link, str(html))
