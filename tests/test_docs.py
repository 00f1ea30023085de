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
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "notebooks" / "README.md"]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """The places of a page's headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", without_code(page.read_text("utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        found = file.exists() and (not anchor or anchor in anchors(file))
        if not target.startswith("https://") and not found:
            broken.append(target)
    assert broken == []


def test_every_page_is_reached_from_the_readme():
    text = "".join(
        page.read_text("utf-8") for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
    )
    assert [page.name for page in ROOT.glob("docs/*.md") if page.name not in text] == []


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8 * 1024


def snippets(page: Path, *, torch: bool = False) -> list[str]:
    found = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [snippet for snippet in found if ("import torch" in snippet) is torch]


def run(page: Path, codes: list[str]) -> None:
    names: dict[str, object] = {}
    for number, code in enumerate(codes):
        # Where a function of the snippet asks for its own source, it must be found.
        name = f"<{page.name}, snippet {number}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        exec(compile(code, name, "exec"), names)


@pytest.fixture
def quiet_art() -> None:
    """ART, which would close the handlers of these tests if a page were the first to load it."""
    import_module("pdutils.defenses.art")


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_art")
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda p: p.stem)
def test_the_snippets_of_a_page_run_in_their_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_image("photo.png", photo(80, 80))
    run(page, snippets(page))
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_art")
@pytest.mark.filterwarnings("ignore")
def test_the_snippet_for_pytorch_runs_by_itself(capsys):
    pytest.importorskip("torch")
    page = ROOT / "docs" / "your_own_model.md"
    run(page, snippets(page, torch=True))
    assert capsys.readouterr().out


def test_the_chapter_on_architecture_names_and_draws_every_room_and_all_of_the_core():
    text, drawing = ((ROOT / "docs" / f"architecture.{kind}").read_text() for kind in ("md", "svg"))
    paths = [*ROOT.glob("pdutils/[a-z]*.py"), *ROOT.glob("pdutils/[a-z]*/__init__.py")]
    names = [path.parent.name if path.stem == "__init__" else path.stem for path in paths]
    assert [name for name in names if f"`{name}`" not in text] == []
    assert [name for name in names if not re.search(rf"[>\s]{name}[<:\s]", drawing)] == []
