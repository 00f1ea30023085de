"""With each extra alone: what it brings works, and what it lacks is one sentence.

Nothing is installed: run as a script, this file imports, of what its environment has, from those
distributions alone that the extra would bring.
"""

import contextlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tomllib
from functools import partial
from importlib import import_module, metadata
from itertools import product
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"] | {"": []}
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.glob("pdutils/**/*.py"))
    if "_shipped" not in path.parts
]
EXTRAS = ("", "notebooks", "evaluation", "cluster", "art", "app")

#: Commands that say whether they can do their work; the picture is one of the demo's.
COMMANDS = {
    "defend": ["defend", str(ROOT / "data/adversaries/badger_000.png"), "--classifier", "demo"],
    "run": ["run", "01"],
    "evaluate": ["evaluate", "drawings:1", "--attacks", "fgsm", "--output", "records.sqlite"],
    "app": ["app", "--no-browser"],
}


def brought(extra: str) -> set[str]:
    """Name the distributions that pip would install, by what those that are here require."""
    known, waiting = set(), [Requirement(f"pdutils[{extra}]")]
    while waiting:
        one = waiting.pop()
        name, extras = canonicalize_name(one.name), ("", *one.extras)
        if (name, extras) not in known:
            known.add((name, extras))
            # What is installed may be of another time than pyproject.toml.
            if name == "pdutils":
                texts = PROJECT["dependencies"] + [t for e in extras for t in OPTIONAL[e]]
            else:
                texts = metadata.requires(name) or []
            waiting += [
                each
                for each in map(Requirement, texts)
                if not each.marker or any(each.marker.evaluate({"extra": e}) for e in extras)
            ]
    return {name for name, _ in known}


def folder_of(extra: str) -> str:
    """Make a folder that leads to nothing but what the extra brings."""
    folder, names = Path(f"only-{extra}").resolve(), brought(extra)
    folder.mkdir()
    for each in metadata.distributions():
        if canonicalize_name(each.name) in names:
            for top in {file.parts[0] for file in each.files} - {".."}:
                if not (folder / top).exists():
                    (folder / top).symlink_to(each.locate_file(top))
    return str(folder)


def defence() -> None:
    """Put the defence in front of a Keras model, and attack it: what a base install is for."""
    import keras
    import numpy as np

    from pdutils.attacks import igsm
    from pdutils.classifiers import Classifier
    from pdutils.defenses import Defense

    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3), *head])
    network = Classifier(model, preprocess=lambda x: x / 255)
    image = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype(np.float32)
    adversary = igsm(network, image, 0, eps=2, iterations=1)
    answer = Defense(deflections=5, activation="rcam").predict(network, adversary, rng=0)
    assert abs(answer.sum() - 1) < 1e-5


def command(name: str) -> str:
    """Give what a command says on stderr, after its exit status."""
    from pdutils.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(COMMANDS[name])
    return f"{status} {said.getvalue()}"


def report(extra, path, answer) -> None:
    """Answer what becomes of every module, of commands and of the defence."""
    sys.path[:] = path
    # A program that takes the place of this one would know nothing of what is hidden.
    del os.execve
    works = {"defence": defence} | {name: partial(import_module, name) for name in MODULES}
    for name in {"": COMMANDS, "evaluation": ["evaluate"]}.get(extra, ()):
        works[name] = partial(command, name)
    seen = {}
    for name, work in works.items():
        try:
            seen[name] = found if isinstance(found := work(), str) else ""
        except Exception as error:
            seen[name] = f"{type(error).__name__}: {error}"
    answer.send(seen)


def main() -> None:
    """Print what works with each extra alone: TensorFlow loads once, each extra gets a fork."""
    own = [str(ROOT), *(place for place in sys.path if "site-packages" not in place)]
    paths = {extra: [*own, folder_of(extra)] for extra in EXTRAS}
    sys.path[:] = paths[""]
    import pdutils  # noqa: F401, I001  it quietens what comes next
    import keras  # noqa: F401

    context, seen = multiprocessing.get_context("fork"), {}
    for extra, path in paths.items():
        here, there = context.Pipe()
        process = context.Process(target=report, args=(extra, path, there))
        process.start()
        there.close()
        seen[extra] = here.recv()
        process.join()
    print(json.dumps(seen))


SENTENCE = re.compile(r"\w+ is not installed; bring it with: pip install 'pdutils\[(\w+)\]'")

#: What the extras are for: with these, and with no others, a module can be imported.
FOR = {
    "pdutils.defenses.pipeline": set(EXTRAS),
    "pdutils.attacks.gradient": set(EXTRAS),
    "pdutils.defenses.layers": set(EXTRAS),
    "pdutils.evaluation.report": {"evaluation", "cluster", "notebooks"},
    "pdutils.plots": {"notebooks", "app"},
    "pdutils.tables": {"evaluation", "cluster", "notebooks"},
    "pdutils.cli.runner": {"notebooks"},
    "pdutils.explorer.widget": {"notebooks"},
    "pdutils.explorer.page": {"notebooks", "app"},
    "pdutils.defenses.art": {"art", "notebooks"},
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What became of each module and use, by extra: "" where it worked."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    options = {"cwd": tmp_path_factory.mktemp("extras"), "timeout": 400, "text": True}
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_module_works_or_says_which_extra_brings_what_it_lacks(seen):
    for extra, name in product(EXTRAS, MODULES):
        error = seen[extra][name].removeprefix("ModuleNotFoundError: ")
        if error:
            sentence = SENTENCE.fullmatch(error)
            assert sentence, f"{name}: {error}"
            assert seen[sentence[1]][name] == "", f"{name} asks for {sentence[1]}"


def test_each_extra_brings_what_it_is_for(seen):
    for name, extras in FOR.items():
        assert {extra for extra in EXTRAS if not seen[extra][name]} == extras, name
    assert brought("all") == set().union(*map(brought, EXTRAS))


def test_a_base_install_defends_and_a_command_that_lacks_an_extra_says_so_in_a_line(seen):
    assert {seen[extra]["defence"] for extra in EXTRAS} == {""}
    assert (seen[""]["defend"], seen["evaluation"]["evaluate"]) == ("0 ", "0 ")
    for name, extra in (("run", "notebooks"), ("evaluate", "evaluation"), ("app", "app")):
        assert SENTENCE.sub(r"needs \1", seen[""][name]) == f"1 error: needs {extra}\n"


if __name__ == "__main__":
    main()
