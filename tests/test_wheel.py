"""The package as a wheel brings it, in an environment of its own, away from any checkout."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import nbformat
import pytest

from pdutils.demo.examples import demo_root

pytestmark = pytest.mark.slow

#: Seconds; a machine that is busy is slow, not broken.
PATIENCE = 400


def call(command: list[object], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The files of a checkout that a build reads, and what an earlier build may have left."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(demo_root() / name, folder)
    for name in ("pdutils", "data", "maps", "app"):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(demo_root() / name, folder / name, ignore=leave)
    stale = folder / "build" / "lib" / "pdutils" / "_shipped" / "data"
    stale.mkdir(parents=True)
    (stale / "stale.txt").write_text("from an earlier build")
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = call([*command, "--no-index", "--wheel-dir", folder, source], folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


class Installed:
    """An environment with the wheel, which borrows what the package needs from that of the test."""

    def __init__(self, home: Path, wheel: Path) -> None:
        self.home = home
        venv = home / "venv"
        made = call([sys.executable, "-m", "venv", "--without-pip", venv], home)
        assert made.returncode == 0, made.stderr
        self.python = venv / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install"]
        done = call([*pip, "--no-index", "--no-deps", wheel], home)
        assert done.returncode == 0, done.stderr
        (self.packages,) = venv.glob("lib/python*/site-packages")
        # Of a folder that is named in such a file, the files of this kind are not read: the
        # checkout, which the test's environment knows by one, stays out of sight.
        (self.packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
        (venv / "share").mkdir(exist_ok=True)
        (venv / "share" / "jupyter").symlink_to(Path(sys.prefix) / "share" / "jupyter")

    def run(self, folder: Path, *arguments: object) -> subprocess.CompletedProcess:
        # Nothing is cached, and no server answers there.
        offline = {"PDUTILS_CACHE": str(folder / "cache"), "https_proxy": "http://127.0.0.1:9"}
        return call([self.python, *arguments], folder, **offline)

    def files(self) -> dict[str, str]:
        """Give what is installed, each file with its hash."""
        return {
            str(path.relative_to(self.packages)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((self.packages / "pdutils").rglob("*"))
            if path.is_file()
        }


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Iterator[Installed]:
    """The installation; after all that was done with it, not a byte of it may be another."""
    made = Installed(tmp_path_factory.mktemp("installed"), wheel)
    before = made.files()
    assert len(before) > 150
    yield made
    assert made.files() == before


def test_the_wheel_holds_the_package_what_the_demo_and_the_page_need_and_nothing_stale(
    wheel, source
):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    brought = {
        f"pdutils/_shipped/{path.relative_to(source)}"
        for folder in ("data", "maps", "app")
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    package = {str(path.relative_to(source)) for path in source.glob("pdutils/**/*.*")}
    assert names == brought | package


def test_a_wheel_of_a_source_distribution_holds_the_same(wheel, source, tmp_path):
    build = "from setuptools import build_meta; print(build_meta.build_sdist({!r}))"
    done = call([sys.executable, "-c", build.format(str(tmp_path))], source)
    assert done.returncode == 0, done.stderr
    (packed,) = tmp_path.glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = call([*command, "--no-index", "--wheel-dir", tmp_path, packed], tmp_path)
    assert done.returncode == 0, done.stderr
    (again,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as one, ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_it_evaluates_defends_and_finds_its_demo_in_any_folder(installed, tmp_path):
    picture = demo_root() / "data" / "adversaries" / "badger_000.png"
    program = (
        "import pdutils\n"
        "from pdutils.cli.main import main\n"
        "from pdutils.classifiers import load_classifier\n"
        "from pdutils.demo.examples import checkout, demo_images\n"
        "from pdutils.images import load_image\n"
        "words = ['evaluate', 'drawings:2', '--attacks', 'fgsm', '--defenses', 'pd+wd']\n"
        "assert main(words) == 0\n"
        f"words = ['defend', {str(picture)!r}, '--classifier', 'demo', '--save', 'defended.png']\n"
        "assert main(words) == 0\n"
        "print('---')\n"
        "print(pdutils.__file__, checkout(), len(demo_images()))\n"
        "shown = demo_images()[0]\n"
        "for name in ('demo', 'auto'):\n"
        "    print(load_classifier(name).name)\n"
        "network = load_classifier('demo')\n"
        "seen = network.top(network.predict(load_image(shown.image)))[0]\n"
        "print(seen.class_name, shown.label)\n"
    )
    done = installed.run(tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    said, _, found = done.stdout.partition("---\n")
    assert "badger" in said
    assert (tmp_path / "defended.png").is_file()
    first, *names, answer = found.splitlines()
    assert first == f"{installed.packages / 'pdutils' / '__init__.py'} None 20"
    # The weights of EfficientNet-Lite0 are installed here too.
    assert names == ["demo", "efficientnet_lite0"]
    seen, label = answer.split()
    assert seen == label
    (kept,) = (tmp_path / "results").glob("evaluation-*.sqlite")
    done = installed.run(tmp_path, "-m", "pdutils", "table", kept)
    assert done.returncode == 0, done.stderr


def test_run_says_where_it_finds_notebooks_and_takes_one_by_its_path(installed, tmp_path):
    program = (
        "from pdutils.cli.main import main\n"
        "for words in ([], ['03'], ['--all']):\n"
        "    try:\n"
        "        main(['run', *words])\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 2\n"
    )
    done = installed.run(tmp_path, "-c", program)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == 3 * (
        "error: the notebooks are not in the installed package but in its repository: run this "
        "in a clone of it, or name a notebook by its path; see python -m pdutils run --help\n"
    )
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "import pdutils.demo.examples\n"
                "print(len(pdutils.demo.examples.demo_images()), pdutils.__file__)"
            )
        ]
    )
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    done = installed.run(tmp_path, "-m", "pdutils", "run", "mine.ipynb")
    assert done.returncode == 0, done.stderr
    shown = nbformat.read(tmp_path / "results" / "mine.ipynb", as_version=4).cells[-1].outputs
    assert shown[0].text == f"20 {installed.packages / 'pdutils' / '__init__.py'}\n"


@pytest.fixture
def page(installed, tmp_path) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [installed.python, "-m", "pdutils", "app", f"--port={port}", "--no-browser"],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(PATIENCE):
            assert process.poll() is None, (tmp_path / "log").read_text()
            with socket.socket() as caller:
                if caller.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(1)
        yield f"http://localhost:{port}/"
    finally:
        process.terminate()
        process.wait(30)


def test_the_explorer_is_served(page):
    with urllib.request.urlopen(page, timeout=PATIENCE) as response:
        shown = response.read().decode()
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert "pdutils.explorer.widget.ExplorerWidget" in shown
    assert "There was an error" not in shown
