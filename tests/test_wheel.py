"""The package as a wheel brings it, in an environment of its own, away from any checkout."""

import asyncio
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen
from zipfile import ZipFile

import nbformat
import pytest

from benchmarks.visitors import Visitor
from pdutils.demo.examples import demo_root

pytestmark = pytest.mark.slow

#: Seconds; a machine that is busy is slow, not broken.
PATIENCE = 400

# Nothing is cached, and no server answers there.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
    "PDUTILS_CACHE": "cache", "https_proxy": "http://127.0.0.1:9"}  # fmt: skip


def call(folder, *command) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "text": True, "timeout": PATIENCE}
    done = subprocess.run([*map(str, command)], cwd=folder, env=ENVIRONMENT, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The files of a checkout that a build reads, and what an earlier build may have left."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(demo_root() / name, folder)
    for name in ("pdutils", "data", "maps"):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(demo_root() / name, folder / name, ignore=leave)
    stale = folder / "build" / "lib" / "pdutils" / "_shipped" / "data"
    stale.mkdir(parents=True)
    (stale / "stale.txt").write_text("from an earlier build")
    return folder


def build(source: Path, target: Path, kind: str) -> Path:
    program = f"from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})"
    call(source, sys.executable, "-c", program)
    (built,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of an environment with the wheel; what it lacks is borrowed from the tests'."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install"]
    call(home, *pip, "--no-index", "--no-deps", wheel)
    (packages,) = home.glob("lib/python*/site-packages")
    # Of a folder that is named in such a file, the files of this kind are not read: the
    # checkout, which the test's environment knows by one, stays out of sight.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    (home / "share").mkdir(exist_ok=True)
    (home / "share" / "jupyter").symlink_to(Path(sys.prefix) / "share" / "jupyter")

    def files() -> dict[Path, str]:
        paths = (path for path in (packages / "pdutils").rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    before = files()
    assert len(before) > 150
    yield home
    # After all that was done with it, not a byte of it is another.
    assert files() == before


def test_the_wheel_holds_the_package_what_the_demo_and_the_page_need_and_nothing_stale(
    wheel, source, tmp_path
):
    shipped = (path for name in ("data", "maps") for path in (source / name).rglob("*"))
    brought = {f"pdutils/_shipped/{p.relative_to(source)}" for p in shipped if p.is_file()}
    package = {str(path.relative_to(source)) for path in source.glob("pdutils/**/*.*")}
    names = ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == brought | package
    # So does a wheel of the source distribution.
    shutil.unpack_archive(build(source, tmp_path, "sdist"), tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("pdutils-*/")
    assert sorted(ZipFile(build(unpacked, tmp_path, "wheel")).namelist()) == sorted(names)


EVALUATION = """
from pathlib import Path
import pdutils
from pdutils.cli.main import main
from pdutils.classifiers import load_classifier
from pdutils.demo.examples import checkout, demo_images
from pdutils.images import load_image
assert main(["evaluate", "drawings:2", "--attacks", "fgsm", "--defenses", "pd+wd"]) == 0
(kept,) = Path("results").glob("evaluation-*.sqlite")
assert main(["table", str(kept)]) == 0
shown = demo_images()[0]
words = ["defend", str(shown.adversary), "--classifier", "demo", "--save", "defended.png"]
assert main(words) == 0
print("---")
print(pdutils.__file__, checkout(), len(demo_images()))
for name in ("demo", "auto"):
    print(load_classifier(name).name)
network = load_classifier("demo")
print(network.top(network.predict(load_image(shown.image)))[0].class_name, shown.label)
"""


def test_it_evaluates_defends_and_finds_its_demo_in_any_folder(installed, tmp_path):
    done = call(tmp_path, installed / "bin" / "python", "-c", EVALUATION)
    said, _, found = done.stdout.partition("---\n")
    assert "fgsm" in said
    assert (tmp_path / "defended.png").is_file()
    (package,) = installed.glob("lib/python*/site-packages/pdutils/__init__.py")
    first, *names, answer = found.splitlines()
    assert first == f"{package} None 20"
    # The weights of EfficientNet-Lite0 are installed here too.
    assert names == ["demo", "efficientnet_lite0"]
    seen, label = answer.split()
    assert seen == label
    assert label in said


RUNS = """
from pdutils.cli.main import main
for words in ([], ["03"], ["--all"]):
    try:
        main(["run", *words])
    except SystemExit as ended:
        assert ended.code == 2
assert main(["run", "mine.ipynb"]) == 0
"""


def test_run_says_where_it_finds_notebooks_and_takes_one_by_its_path(installed, tmp_path):
    code = (
        "import pdutils.demo.examples\n"
        "print(len(pdutils.demo.examples.demo_images()), pdutils.__file__)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    done = call(tmp_path, installed / "bin" / "python", "-c", RUNS)
    assert done.stderr.startswith(3 * (
        "error: the notebooks are not in the installed package but in its repository: run this "
        "in a clone of it, or name a notebook by its path; see python -m pdutils run --help\n"
    ))  # fmt: skip
    shown = nbformat.read(tmp_path / "results" / "mine.ipynb", as_version=4).cells[-1].outputs
    (package,) = installed.glob("lib/python*/site-packages/pdutils/__init__.py")
    assert shown[0].text == f"20 {package}\n"


def test_the_explorer_is_served(installed, tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    python, log = installed / "bin" / "python", tmp_path / "log"
    command = [python, "-m", "pdutils", "app", f"--port={port}", "--no-browser"]
    with log.open("w") as file:
        out = {"stdout": file, "stderr": file, "env": ENVIRONMENT}
        process = subprocess.Popen(command, cwd=tmp_path, **out)
    try:
        for _ in range(PATIENCE):
            assert process.poll() is None, log.read_text()
            with suppress(ConnectionError, URLError):
                with urlopen(f"http://localhost:{port}/page.js", timeout=PATIENCE) as script:
                    assert b"explorer.js" in script.read()
                break
            time.sleep(1)
        verdict = asyncio.run(first_look(port))
    finally:
        process.terminate()
        process.wait(30)
    assert verdict == "The network still sees consomme."
    lines = log.read_text().splitlines()
    assert f"The explorer is at http://localhost:{port}/ until Ctrl-C." in lines
    assert process.returncode == 0
    assert "Traceback" not in log.read_text()


async def first_look(port: int) -> str:
    visitor = await Visitor.opened(port)
    visitor.close()
    return visitor.state["shown"]["verdict"]
