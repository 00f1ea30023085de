"""Chromium through Playwright, and what tests in it have in common."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pdutils.demo.examples import demo_root

#: Nothing of its own over the network, and no sandbox, which containers lack.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

#: Milliseconds until a page, or the kernel behind it, must have answered on a busy machine.
PATIENCE = 300_000

#: Addresses that lead to no other machine.
OWN = ("file:", "data:", "blob:", "about:")


def chromium() -> Iterator[Browser]:
    """Start Chromium and end it, or skip; `pytest.fixture(chromium, scope="module")` in a module.

    No wider scope, since Playwright leaves its event loop running in the thread, where other tests
    start their own.
    """
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on the path")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET, timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(command: list[str], address: str, environment: dict[str, str]) -> Iterator[str]:
    """Run a server until the block ends, and then all that it started."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=demo_root(), env=os.environ | environment, **pipes)
    host, port = re.fullmatch(r"http://(\w+):(\d+).*", address).groups()
    try:
        for _ in range(PATIENCE // 200):
            if process.poll() is not None:
                pytest.fail(f"the server ended:\n{process.communicate()[0]}")
            # Only asking for the page would start a kernel.
            with suppress(OSError), socket.create_connection((host, int(port)), 1):
                break
            time.sleep(0.2)
        yield address
    finally:
        # Killed at once: a server that may say farewell to its kernels takes seconds.
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def made(target: str, address: str, options: str) -> list[str]:
    """Give the command of `make` that starts a server with this interpreter, or skip."""
    if shutil.which("make") is None:
        pytest.skip("no make on the path")
    arguments = f"ARGS=--port={address.rpartition(':')[2]} --no-browser {options}"
    return ["make", "--old-file=.venv/.installed", f"RUN={sys.executable}", target, arguments]


def lab_settings(home: Path) -> dict[str, str]:
    """Give the environment in which JupyterLab keeps its settings in a folder, and asks nobody."""
    # JupyterLab's news are asked for at another server.
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (home / "config" / "labconfig").mkdir(parents=True)
    (home / "config" / "labconfig" / "page_config.json").write_text(json.dumps(news))
    names = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    names |= {f"JUPYTERLAB_{name.upper()}_DIR": name for name in ("settings", "workspaces")}
    return {name: str(home / folder) for name, folder in names.items()}


class Seen:
    """What a page did that it should not: errors that nobody caught, calls of other machines."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.foreign: list[str] = []


@contextmanager
def watched(page: Page, *own: str) -> Iterator[Seen]:
    """Record the errors and the foreign requests of a page, and be patient with it.

    Addresses that begin like one of `own`, the server of the test, are no foreign ones.
    """
    seen = Seen()
    page.set_default_timeout(PATIENCE)

    def note(address: str) -> None:
        if not address.replace("ws", "http", 1).startswith(own) and not address.startswith(OWN):
            seen.foreign.append(address)

    listeners = {
        "console": lambda said: said.type == "error" and seen.errors.append(said.text),
        "pageerror": lambda error: seen.errors.append(str(error)),
        "request": lambda request: note(request.url),
        "websocket": lambda socket: note(socket.url),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    try:
        yield seen
    finally:
        for event, listener in listeners.items():
            page.remove_listener(event, listener)


def axe_violations(page: Page, context: str | None = None) -> list[str]:
    """List what axe finds serious or critical in a page, or what a selector gives of it."""
    # A page from the file system could not be asked for its style sheets once more.
    return [
        f"{one['id']} ({one['impact']}, {len(one['nodes'])} times): {one['help']}; first: "
        f"{one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary']}"
        for one in Axe()
        .run(page, context=context, options={"preload": False})
        .response["violations"]
        if one["impact"] in ("serious", "critical")
    ]
