"""What works where pdutils is installed with one extra alone: a script, for test_extras.py.

Nothing is installed: of what this environment has, the modules of all distributions that the extra
would not bring are hidden. TensorFlow loads once, and each extra gets a fork of the process.
"""

import contextlib
import io
import json
import multiprocessing
import os
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib import import_module, metadata
from multiprocessing.connection import Connection
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
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
    known: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(f"pdutils[{extra}]")]
    while waiting:
        one = waiting.pop()
        name, extras = canonicalize_name(one.name), ("", *one.extras)
        if (name, frozenset(extras)) not in known:
            known.add((name, frozenset(extras)))
            requirements = map(Requirement, _requires(name, extras))
            waiting += [
                each
                for each in requirements
                if not each.marker or any(each.marker.evaluate({"extra": e}) for e in extras)
            ]
    return {name for name, _ in known}


def _requires(name: str, extras: Iterable[str]) -> list[str]:
    if name != "pdutils":
        return metadata.requires(name) or []
    # What is installed may be of another time than pyproject.toml.
    optional = PROJECT["optional-dependencies"]
    return PROJECT["dependencies"] + [text for e in extras for text in optional.get(e, ())]


class Only(metadata.DistributionFinder):
    """The one finder of modules: it finds those of some distributions, and those of none."""

    def __init__(self, distributions: set[str], owners: dict[str, list[str]]) -> None:
        self.distributions = distributions
        self.finders = list(sys.meta_path)
        self.hidden = {
            module
            for module, names in owners.items()
            if not distributions & {canonicalize_name(name) for name in names}
        }

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.hidden:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, context=None):
        context = context or metadata.DistributionFinder.Context()
        for each in metadata.MetadataPathFinder.find_distributions(context):
            if canonicalize_name(each.name) in self.distributions:
                yield each


def outcome(work: Callable[[], object]) -> str:
    """Tell what came of it: nothing if it worked, else the error."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def modules() -> list[str]:
    """Name all modules of the package."""
    paths = sorted(path.relative_to(ROOT).with_suffix("") for path in ROOT.glob("pdutils/**/*.py"))
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if "_shipped" not in name]


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


def command(words: list[str]) -> str:
    """Give what a command says on stderr, after its exit status."""
    from pdutils.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status: object = main(words)
        except Exception as error:
            status = repr(error)
    return f"{status} {said.getvalue()}"


def report(extra: str, owners: dict[str, list[str]], answer: Connection) -> None:
    """Answer what becomes of the defence, of every module, and of commands."""
    sys.meta_path[:] = [Only(brought(extra), owners)]
    # A program that takes the place of this one would know nothing of what is hidden.
    del os.execve
    seen = {"defence": outcome(defence)}
    seen |= {name: outcome(lambda name=name: import_module(name)) for name in modules()}
    names = {"": list(COMMANDS), "evaluation": ["evaluate"]}.get(extra, [])
    seen |= {name: command(COMMANDS[name]) for name in names}
    answer.send(seen)


def main() -> None:
    owners = dict(metadata.packages_distributions())
    finders = list(sys.meta_path)
    sys.meta_path[:] = [Only(brought(""), owners)]
    import pdutils  # noqa: F401, I001  it quietens what comes next
    import keras  # noqa: F401

    sys.meta_path[:] = finders
    context, seen = multiprocessing.get_context("fork"), {}
    for extra in EXTRAS:
        here, there = context.Pipe()
        process = context.Process(target=report, args=(extra, owners, there))
        process.start()
        there.close()
        seen[extra] = here.recv()
        process.join()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
