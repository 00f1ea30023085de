"""The shape of the package: a core that imports no room, and rooms that import only downward."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

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


def height(module: str) -> int:
    """How high the room of a module lies; -1 is the core."""
    first = (module + ".").split(".")[1]
    return ROOMS.index(first) if first and (PACKAGE / first).is_dir() else -1


def test_a_module_imports_only_from_its_own_room_or_below():
    above = {
        (module, name)
        for module, found in ARROWS.items()
        for name in found
        if height(name) > height(module) and module != "pdutils.__main__"
    }
    assert not above


def test_no_module_imports_itself_by_way_of_others():
    arrows = {name: {n for n in found if n in MODULES} for name, found in ARROWS.items()}
    list(TopologicalSorter(arrows).static_order())


def test_the_package_and_every_room_say_what_they_are_for_and_what_they_offer_is_there():
    for room in ("pdutils", *(f"pdutils.{name}" for name in ROOMS)):
        module = importlib.import_module(room)
        assert module.__doc__
        for name in getattr(module, "__all__", []):
            assert getattr(getattr(module, name), "__doc__", None), name


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
