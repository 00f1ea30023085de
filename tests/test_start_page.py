import re
from pathlib import Path

import pytest
from browser import chromium, free_port, lab_settings, made, served, watched

from pdutils.cli import runner
from pdutils.demo.examples import demo_root

browser = pytest.fixture(chromium, scope="module")


def rows(path: Path) -> list[str]:
    return re.findall(r"^\| \d+ \|.*ipynb.*\|$", path.read_text("utf-8"), flags=re.MULTILINE)


def test_the_start_page_has_the_table_of_the_readme():
    ours = rows(demo_root() / "notebooks" / "README.md")
    assert ours == [row.replace("](notebooks/", "](") for row in rows(demo_root() / "README.md")]


def test_the_start_page_leads_to_every_notebook_in_order():
    text = "\n".join(rows(demo_root() / "notebooks" / "README.md"))
    names = [path.name for path in runner.find_notebooks()]
    assert re.findall(r"\]\((.+?)\)", text) == names
    assert re.findall(r"^\| (\d+) ", text, flags=re.MULTILINE) == [str(int(n[:2])) for n in names]


@pytest.fixture
def lab(tmp_path):
    """JupyterLab as `make lab` starts it, with no settings of whoever runs the test."""
    address = f"http://localhost:{free_port()}"
    options = "--allow-root --ServerApp.port_retries=0 --IdentityProvider.token="
    with served(made("lab", address, options), address, lab_settings(tmp_path)):
        yield address


@pytest.mark.slow
def test_make_lab_opens_on_the_table_and_a_click_leads_to_a_notebook(browser, lab):
    page = browser.new_page()
    with watched(page, lab) as seen:
        page.goto(lab)
        table = page.locator(".jp-RenderedMarkdown table")
        table.wait_for()
        assert table.locator("tbody tr").count() == len(runner.find_notebooks())
        table.get_by_role("link", name="where attacks act").click()
        page.locator(".jp-NotebookPanel").get_by_role("heading", level=1).wait_for()
        assert page.url.endswith("04_where_attacks_act.ipynb")
        # The glossary lies beside the notebooks' folder, and opens too.
        page.locator(".jp-NotebookPanel").get_by_role("link", name="FGSM").first.click()
        page.get_by_role("tab", name="glossary.md").wait_for(timeout=30_000)
    assert seen.foreign == []
    page.close()
