import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import PATIENCE, chromium, watched

from pdutils.cli import runner
from pdutils.demo.shipped import demo_root

browser = pytest.fixture(chromium, scope="module")


def rows(path: Path) -> list[str]:
    return re.findall(r"^\| \d+ \|.*ipynb.*\|$", path.read_text("utf-8"), flags=re.MULTILINE)


def test_the_start_page_has_the_table_of_the_readme():
    ours = rows(demo_root() / "notebooks" / "README.md")
    assert ours == [row.replace("](notebooks/", "](") for row in rows(demo_root() / "README.md")]


def test_the_start_page_leads_to_every_notebook_in_order():
    text = "\n".join(rows(demo_root() / "notebooks" / "README.md"))
    assert re.findall(r"\]\((.+?)\)", text) == [path.name for path in runner.find_notebooks()]
    assert re.findall(r"^\| (\d+) ", text, flags=re.MULTILINE) == [
        str(int(path.name[:2])) for path in runner.find_notebooks()
    ]


@pytest.fixture
def lab(tmp_path):
    """JupyterLab as `make lab` starts it, with no settings of whoever runs the test."""
    if shutil.which("make") is None:
        pytest.skip("no make on the path")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = "--no-browser --allow-root --ip=127.0.0.1 --ServerApp.port_retries=0"
    options += f" --port={port} --IdentityProvider.token="
    folders = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    own = {f"JUPYTER_{name}": str(tmp_path / name) for name in folders}
    own |= {f"JUPYTERLAB_{name}_DIR": str(tmp_path / name) for name in ("SETTINGS", "WORKSPACES")}
    process = subprocess.Popen(
        ["make", "--old-file=.venv/.installed", "lab", f"RUN={sys.executable}", f"ARGS={options}"],
        cwd=demo_root(),
        env=os.environ | own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def wait_for(port: int, process: subprocess.Popen) -> None:
    for _ in range(PATIENCE // 200):
        assert process.poll() is None, "JupyterLab ended before it answered"
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not answer within {PATIENCE} ms")


def end(process: subprocess.Popen) -> None:
    """End make and the server, which may hang when its kernels have ended: then by force."""
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(PATIENCE / 1000)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(20):
            os.killpg(process.pid, 0)
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)


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
