"""The shape of the package: a core that imports no room, and rooms that import only downward."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pdutils

PACKAGE = Path(pdutils.__file__).parent

#: From the lowest to the highest; the core, which is the top floor of files, lies below them all.
ROOMS = ("defenses", "attacks", "demo", "evaluation", "explorer", "cli")

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are written out in full"
            module = node.module or ""
            found |= {name for a in node.names if (name := f"{module}.{a.name}") in MODULES}
            found.add(module)
    return {name for name in found if name in MODULES or f"{name}.__init__" in MODULES}


ARROWS = {name: imported(path) - {"pdutils", name} for name, path in MODULES.items()}


def room(module: str) -> str:
    """The room that a module lies in, or the empty text for the core."""
    _, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return first if (PACKAGE / first).is_dir() else ""


def height(module: str) -> int:
    return -1 if not room(module) else ROOMS.index(room(module))


@pytest.mark.parametrize("module", [m for m in MODULES if m != "pdutils.__main__"])
def test_a_module_imports_only_from_its_own_room_or_below(module):
    above = {name for name in ARROWS[module] if height(name) > height(module)}
    assert not above


def test_no_module_imports_itself_by_way_of_others():
    arrows = {name: {n for n in found if n in MODULES} for name, found in ARROWS.items()}
    list(TopologicalSorter(arrows).static_order())


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_it_is_for_and_what_it_offers_is_there(room):
    module = importlib.import_module(f"pdutils.{room}")
    assert module.__doc__
    for name in getattr(module, "__all__", []):
        assert getattr(getattr(module, name), "__doc__", None), name


def test_what_the_package_offers_is_there():
    for name in pdutils.__all__:
        assert getattr(pdutils, name).__doc__, name


def test_one_name_of_a_room_does_not_load_the_rest():
    program = (
        "import sys\n"
        "import pdutils\n"
        "print(sorted(m for m in sys.modules if m.startswith('pdutils.')))\n"
        "from pdutils.attacks import igsm\n"
        "from pdutils.defenses import Defense\n"
        "heavy = ('tensorflow', 'keras', 'art', 'matplotlib', 'pandas', 'distributed')\n"
        "print([m for m in heavy if m in sys.modules])\n"
        "print([m for m in sys.modules if m.startswith('pdutils.evaluation')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]"] * 3, done.stderr
