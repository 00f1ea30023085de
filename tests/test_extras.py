"""With each extra alone: what it brings works, and what it lacks is one sentence."""

import json
import os
import re
import subprocess
import sys

import extras
import pytest

pytestmark = pytest.mark.slow

SENTENCE = re.compile(r"\w+ is not installed; bring it with: pip install 'pdutils\[(\w+)\]'")

#: What the extras are for: with these, and with no others, a module can be imported.
FOR = {
    "pdutils.defenses.pipeline": set(extras.EXTRAS),
    "pdutils.attacks.gradient": set(extras.EXTRAS),
    "pdutils.defenses.layers": set(extras.EXTRAS),
    "pdutils.evaluation.report": {"evaluation", "cluster", "notebooks"},
    "pdutils.plots": {"notebooks", "app"},
    "pdutils.tables": {"evaluation", "cluster", "notebooks"},
    "pdutils.cli.runner": {"notebooks"},
    "pdutils.explorer.widget": {"notebooks", "app"},
    "pdutils.defenses.art": {"art", "notebooks"},
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What became of each module and use, by extra: "" where it worked."""
    environment = os.environ | {"PYTHONPATH": str(extras.ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, extras.__file__],
        cwd=tmp_path_factory.mktemp("extras"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_the_defence_stands_in_front_of_a_keras_model_whatever_was_installed(seen, extra):
    assert seen[extra]["defence"] == ""


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_a_module_works_or_says_which_extra_brings_what_it_lacks(seen, extra):
    for name in extras.modules():
        error = seen[extra][name].removeprefix("ModuleNotFoundError: ")
        if error:
            sentence = SENTENCE.fullmatch(error)
            assert sentence, f"{name}: {error}"
            assert seen[sentence[1]][name] == "", f"{name} asks for {sentence[1]}"


@pytest.mark.parametrize("name", FOR)
def test_each_extra_brings_what_it_is_for(seen, name):
    assert {extra for extra in extras.EXTRAS if not seen[extra][name]} == FOR[name]


@pytest.mark.parametrize(
    ("command", "extra"), [("run", "notebooks"), ("evaluate", "evaluation"), ("app", "app")]
)
def test_a_command_that_lacks_an_extra_says_so_in_a_line(seen, command, extra):
    said = SENTENCE.sub(r"needs \1", seen[""][command])
    assert said == f"1 error: needs {extra}\n"


def test_a_base_install_defends_a_picture_from_the_command_line(seen):
    assert seen[""]["defend"] == "0 "


def test_the_extra_for_evaluations_evaluates(seen):
    assert seen["evaluation"]["evaluate"] == "0 "


def test_all_is_every_extra():
    every = set().union(*(extras.brought(extra) for extra in extras.EXTRAS))
    assert extras.brought("all") == every
