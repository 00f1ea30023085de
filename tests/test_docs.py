"""What README and docs say: links lead somewhere, snippets run, the drawing is what is imported."""

import linecache
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from conftest import photo

from pdutils.images import save_image

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PATHS = (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "notebooks" / "README.md")
PAGES = {page: page.read_text("utf-8") for page in PATHS}
WITH_CODE = [page for page in PAGES if "```python" in PAGES[page]]


@cache
def without_code(page: Path) -> str:
    code = r"^```.*?^```$|`[^`\n]+`"
    return re.sub(code, "", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The places of a page's headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", without_code(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere_and_every_page_is_reached_from_the_short_readme():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            found = file.exists() and (not anchor or anchor in anchors(file))
            if not target.startswith("https://") and not found:
                broken.append((page.name, target))
    assert broken == []
    docs = [page for page in PAGES if ROOT / "docs" in page.parents]
    text = "".join(PAGES[page] for page in (README, *docs))
    assert [page.name for page in docs if page.name not in text] == []
    assert README.stat().st_size <= 8 * 1024


def run_snippets(page: Path, *, torch: bool = False) -> None:
    found = re.findall(r"^```python\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    # ART would close the handlers of these tests if a page were the first to load it.
    import_module("pdutils.defenses.art")
    names: dict[str, object] = {}
    # Fewer images and runs show as well that it works.
    found = [code.replace("network, 10", "network, 3").replace("s=10", "s=2") for code in found]
    for number, code in enumerate(code for code in found if ("import torch" in code) is torch):
        # Where a function of the snippet asks for its own source, it must be found.
        name = f"<{page.name}, snippet {number}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        exec(compile(code, name, "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run_in_their_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_image("photo.png", photo(80, 80))
    run_snippets(page)
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_snippet_for_pytorch_runs_by_itself(capsys):
    pytest.importorskip("torch")
    run_snippets(ROOT / "docs" / "your_own_model.md", torch=True)
    assert capsys.readouterr().out


def test_the_chapter_on_architecture_names_and_draws_every_room_and_all_of_the_core():
    text, drawing = ((ROOT / "docs" / f"architecture.{kind}").read_text() for kind in ("md", "svg"))
    paths = [*ROOT.glob("pdutils/[a-z]*.py"), *ROOT.glob("pdutils/[a-z]*/__init__.py")]
    names = [path.parent.name if path.stem == "__init__" else path.stem for path in paths]
    assert [name for name in names if f"`{name}`" not in text] == []
    assert [name for name in names if not re.search(rf"[>\s]{name}[<:\s]", drawing)] == []


def test_the_terms_of_the_glossary_stand_in_their_order_each_once_and_with_a_meaning():
    _, *terms = (ROOT / "docs" / "glossary.md").read_text("utf-8").split("\n## ")
    titles = [re.sub(r"\W", "", term.partition("\n")[0]).lower() for term in terms]
    assert titles == sorted(set(titles))
    assert all(term.partition("\n")[2].strip() for term in terms)
