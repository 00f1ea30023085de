import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdutils._utils import keras_home

DOORS = {
    "load_classifier": "from pdutils.classifiers import load_classifier; load_classifier('demo')",
    "layers": "import pdutils.defenses.layers",
    "defended": "import pdutils.defenses.keras_model",
    "art_bridge": "import pdutils.defenses.art",
    "demo_network": "from pdutils.demo.network import demo_network; demo_network()",
}


def run(program: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=240,
        env=kept | {"KERAS_HOME": str(home)} | environment,
    )


def refusal(program: str, home: Path, **environment: str) -> str:
    """Give the error that a program ends with."""
    done = run(program, home, **environment)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder of Keras's settings."""
    return tmp_path / "keras"


def write(home: Path, **settings: object) -> None:
    home.mkdir()
    (home / "keras.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("floatx", "float16", "float32"),
        ("floatx", "float64", "float32"),
        ("floatx", "nonsense", "float32"),
        ("image_data_format", "channels_first", "channels_last"),
        ("backend", "torch", "tensorflow"),
        ("backend", "theano", "tensorflow"),
    ],
)
def test_a_setting_in_keras_s_file_is_named_with_its_cure(home, name, wrong, right):
    write(home, **{name: wrong})
    assert refusal(DOORS["load_classifier"], home) == (
        f"ValueError: Keras's {name}: expected {right!r}, got {wrong!r}; "
        f'write "{name}": "{right}" in {home / "keras.json"}'
    )


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_whatever_loads_keras_looks_at_its_settings_first(home, door):
    write(home, backend="torch")
    assert refusal(DOORS[door], home).startswith("ValueError: Keras's backend: expected")


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy", "openvino"])
def test_a_backend_in_the_environment_is_named_with_its_cure(home, backend):
    write(home, backend="tensorflow")
    program = "from pdutils._network import load_tensorflow; load_tensorflow()"
    assert refusal(program, home, KERAS_BACKEND=backend) == (
        f"ValueError: Keras's backend: expected 'tensorflow', got {backend!r}; "
        "set the environment variable KERAS_BACKEND to tensorflow"
    )


def test_the_command_line_says_it_in_one_line(home):
    write(home, image_data_format="channels_first")
    program = (
        "import sys; from pdutils.cli.main import main; "
        "sys.exit(main(['evaluate', 'drawings:1', '--attacks', 'fgsm', '--defenses', 'pd']))"
    )
    done = run(program, home)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: Keras's image_data_format: expected 'channels_last', got 'channels_first'; "
        f'write "image_data_format": "channels_last" in {home / "keras.json"}\n'
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("floatx", "bfloat16", "float32"),
        ("image_data_format", "channels_first", "channels_last"),
    ],
)
def test_what_a_program_set_is_named_when_its_model_becomes_a_classifier(home, name, wrong, right):
    program = (
        "import keras; from pdutils.classifiers import Classifier; "
        f"keras.config.set_{name}({wrong!r}); "
        "inputs = keras.Input((8, 8, 3)); x = keras.layers.Flatten()(inputs); "
        "Classifier(keras.Model(inputs, keras.layers.Dense(3, 'softmax')(x)))"
    )
    assert refusal(program, home) == (
        f"ValueError: Keras's {name}: expected {right!r}, got {wrong!r}; "
        f"call keras.config.set_{name}({right!r})"
    )


@pytest.mark.slow
@pytest.mark.parametrize("content", ["{", '{"floatx": "float32", "backend": "torch"}'])
def test_settings_that_keras_does_not_heed_are_not_refused(home, content):
    # The environment goes before the file; a file that is no JSON counts for nothing.
    home.mkdir()
    (home / "keras.json").write_text(content)
    program = (
        "from pdutils._network import load_tensorflow; load_tensorflow(); "
        "from pdutils._utils import check_keras_settings; check_keras_settings()"
    )
    done = run(program, home, KERAS_BACKEND="tensorflow")
    assert (done.returncode, done.stderr) == (0, "")


def test_keras_s_home_is_where_keras_looks(home, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(home))
    assert keras_home() == home
    monkeypatch.setenv("KERAS_HOME", "~/mine")
    assert keras_home() == Path.home() / "mine"
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(home.parent))
    assert keras_home() == home.parent / ".keras"
    monkeypatch.setenv("HOME", str(home.parent / "nowhere"))
    assert keras_home() == Path("/tmp/.keras")
