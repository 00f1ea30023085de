"""`make run` finds a Python that TensorFlow has builds for; `.ci/environment` is what looks."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pdutils.demo.examples import demo_root

SCRIPT = demo_root() / ".ci" / "environment"

#: Answers as a Python of that version does, and notes which environment it was to make.
FAKE = """#!/bin/sh
case "$*" in
  *version_info*) echo {version} ;;
  --version) echo "Python {version}.0" ;;
  *ensurepip*) exit {lacks_venv} ;;
  "-m venv"*) echo "{name} $*" ;;
esac
"""

#: As pyenv leaves one for a Python that is not chosen.
SHIM = """#!/bin/sh
echo "pyenv: {name}: command not found" >&2
exit 127
"""

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="no sh in the path")


class Machine:
    """A search path that leads to nothing but what a test puts there."""

    def __init__(self, home: Path) -> None:
        self.home, self.path = home, home / "bin"
        self.path.mkdir()
        (self.path / "head").symlink_to(shutil.which("head"))

    def put(self, name: str, text: str, folder: Path | None = None) -> Path:
        file = (folder or self.path) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
        return file

    def python(self, name: str, version: str, *, venv: bool = True, folder=None) -> Path:
        text = FAKE.format(name=name, version=version, lacks_venv=int(not venv))
        return self.put(name, text, folder)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [shutil.which("sh"), str(SCRIPT), str(self.home / "env"), *arguments]
        environment = {"PATH": str(self.path), "HOME": str(self.home)}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    def made(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip().replace(str(self.home / "env"), "env")

    def refusal(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        return line


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_python3_is_taken_where_it_fits(machine, version):
    machine.python("python3", version)
    machine.python("python3.13", "3.13")
    assert machine.made() == "python3 -m venv --clear env"


@pytest.mark.parametrize("version", ["3.10", "3.14", "3.9", "2.7", None])
def test_another_python3_or_none_leads_to_one_beside_it_that_works(machine, version):
    if version:
        machine.python("python3", version)
    machine.put("python3.13", SHIM.format(name="python3.13"))
    machine.python("python3.12", "3.12", venv=False)
    machine.python("python3.11", "3.11")
    # Nobody is asked to fetch one.
    machine.put("uv", "#!/bin/sh\necho asked >&2\nexit 1\n")
    assert machine.made() == "python3.11 -m venv --clear env"


def test_what_pyenv_has_installed_is_found_without_its_shim(machine):
    machine.python("python3", "3.14")
    folder = machine.home / ".pyenv" / "versions" / "3.12.1" / "bin"
    machine.python("python", "3.12", folder=folder)
    assert machine.made() == "python -m venv --clear env"


def test_uv_fetches_one_where_there_is_none(machine):
    machine.python("python3", "3.14")
    fetched = machine.python("fetched", "3.13", folder=machine.home / "uv")
    find = '"$UV_PYTHON_PREFERENCE $*" = "only-managed python find --system 3.13"'
    machine.put(
        "uv",
        f'#!/bin/sh\n[ "$*" = "python install 3.13" ] && echo fetching && : > {machine.home}/done\n'
        f"[ {find} ] && [ -e {machine.home}/done ] && echo {fetched}\n"
        f"[ -e {machine.home}/done ]",
    )
    done = machine.run()
    assert done.stdout.strip() == f"fetched -m venv --clear {machine.home / 'env'}"
    # What uv says is shown, but is not taken for the name of a Python.
    assert done.stderr == "fetching\n"


@pytest.mark.parametrize(("python3", "found"), [("3.14", "Python 3.14.0"), (None, "none")])
@pytest.mark.parametrize("uv", [False, True])
def test_none_at_all_is_one_sentence_that_says_what_to_install(machine, uv, python3, found):
    if python3:
        machine.python("python3", python3)
    machine.python("python3.12", "3.12", venv=False)
    if uv:
        machine.put("uv", "#!/bin/sh\nexit 2\n")
    assert machine.refusal() == (
        "error: expected Python 3.11, 3.12 or 3.13, for which TensorFlow has builds, and found "
        f"none that makes environments (python3: {found}): install one (on Debian and Ubuntu "
        "its -venv package too), or uv, which fetches one"
    )


def test_the_python_that_is_named_is_taken(machine):
    machine.python("python3", "3.13")
    other = machine.python("mine", "3.12", folder=machine.home / "elsewhere")
    assert machine.made(str(other)) == "mine -m venv --clear env"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("3.10", "got Python 3.10.0; leave PYTHON out, and one is looked for"),
        ("3.14", "got Python 3.14.0; leave PYTHON out, and one is looked for"),
        ("shim", "got pyenv: mine: command not found; leave"),
        (None, "mine: not found; leave"),
        ("3.12", "error: mine cannot make environments; on Debian and Ubuntu: apt install python3"),
    ],
)
def test_a_named_python_that_does_not_fit_is_refused_though_another_would_fit(machine, named, said):
    machine.python("python3", "3.13")
    if named == "shim":
        machine.put("mine", SHIM.format(name="mine"))
    elif named:
        machine.python("mine", named, venv=False)
    assert said in machine.refusal("mine")


def test_an_environment_keeps_its_python_if_that_fits_and_is_made_afresh_if_not(machine):
    inside = machine.home / "env" / "bin"
    machine.python("python3", "3.13")
    machine.python("python", "3.12", folder=inside)
    assert machine.made() == "python -m venv env"
    assert machine.made("python3") == "python3 -m venv --clear env"
    machine.python("python", "3.14", folder=inside)
    assert machine.made() == "python3 -m venv --clear env"
    machine.put("python", SHIM.format(name="python"), inside)
    assert machine.made() == "python3 -m venv --clear env"
