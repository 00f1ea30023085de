"""Checks, random streams, progress bars, forks, and what TensorFlow and Keras are set to."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pdutils._utils import (
    check_keras_settings,
    check_odd,
    check_one_of,
    check_whole,
    generator,
    is_finite,
    is_number,
    is_whole,
    keras_home,
    load_tensorflow,
    progress_bar,
    streams,
)

# Checks


@pytest.mark.parametrize(
    ("value", "whole", "number", "finite"),
    [
        (0, True, True, True),
        (np.int64(-7), True, True, True),
        (2**63 - 1, True, True, True),
        (2**63, True, True, False),
        (-(10**400), True, True, False),
        (1.0, False, True, True),
        (np.float32(2), False, True, True),
        (np.inf, False, True, False),
        (np.nan, False, True, False),
        (True, False, False, False),
        (np.bool_(False), False, False, False),
        ("1", False, False, False),
        (None, False, False, False),
        (1j, False, False, False),
    ],
)
def test_what_a_number_is(value, whole, number, finite):
    assert (is_whole(value), is_number(value), is_finite(value)) == (whole, number, finite)


@pytest.mark.parametrize("value", [0, 10, 3.0, "3", True, None, 2**63, 10**400])
def test_a_whole_number_out_of_its_range_is_named(value):
    with pytest.raises(ValueError, match=r"^k: expected a whole number from 1 to 9, got"):
        check_whole("k", value, 1, 9)
    if value != 10:
        with pytest.raises(ValueError, match=rf"^k: .* of at least 1, got {value!r}"):
            check_whole("k", value, 1)
    for fits in (1, 9, np.int8(5)):
        check_whole("k", fits, 1, 9)
    check_whole("k", 2**63 - 1, 1)


@pytest.mark.parametrize("value", [0, -1, 2, 3.0, True, 2**63 + 1])
def test_an_even_window_is_refused(value):
    check_odd("size", 3)
    with pytest.raises(ValueError, match=rf"^size: expected an odd number of pixels, got {value}"):
        check_odd("size", value)


@pytest.mark.parametrize("value", ["medium", "", None, 1])
def test_an_unknown_word_is_refused_with_those_that_are_known(value):
    check_one_of("mode", "hard", ("soft", "hard"))
    with pytest.raises(ValueError, match=r"^mode: expected one of \('soft', 'hard'\), got"):
        check_one_of("mode", value, ("soft", "hard"))


# Random streams


def draws(rng, n: int) -> np.ndarray:
    return np.stack([stream.uniform(size=4) for stream in streams(rng, n)])


def test_the_streams_are_those_that_numpy_spawns_from_the_seed():
    children = np.random.SeedSequence(7).spawn(3)
    expected = np.stack([np.random.default_rng(child).uniform(size=4) for child in children])
    np.testing.assert_array_equal(draws(7, 3), expected)
    np.testing.assert_array_equal(draws(np.int64(7), 3), expected)
    # An image's draws do not depend on how many follow, nor on what the generator drew itself.
    np.testing.assert_array_equal(draws(7, 50)[:3], expected)
    drawn = np.random.default_rng(7)
    drawn.uniform(size=100)
    np.testing.assert_array_equal(draws(drawn, 3), expected)
    assert len(np.unique(draws(7, 50))) == 200
    assert not np.array_equal(draws(7, 3), draws(8, 3))


def test_one_image_s_appetite_does_not_move_its_neighbours():
    calm, greedy = streams(7, 2), streams(7, 2)
    greedy[0].uniform(size=1000)
    np.testing.assert_array_equal(greedy[1].uniform(size=4), calm[1].uniform(size=4))


@pytest.mark.parametrize("sizes", [(6,), (1, 1, 1, 1, 1, 1), (4, 2), (1, 0, 5)])
def test_a_generator_carried_over_batches_gives_what_one_batch_gives(sizes):
    carried = np.random.default_rng(7)
    parts = [draws(carried, size) for size in sizes if size]
    np.testing.assert_array_equal(np.concatenate(parts), draws(7, 6))


def test_no_global_seed_is_read_or_moved_and_none_is_fresh():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draws(7, 3)
    assert not np.array_equal(draws(None, 1), draws(None, 1))
    assert generator(None).uniform() != generator(None).uniform()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_generators_are_returned_as_they_are_and_a_seed_is_numpy_s():
    own = [np.random.default_rng(seed) for seed in range(3)]
    for given in (own, tuple(own)):
        assert all(a is b for a, b in zip(streams(given, 3), own, strict=True))
    assert streams(7, 0) == streams([], 0) == []
    assert generator(own[0]) is own[0]
    assert generator(3).uniform() == np.random.default_rng(3).uniform()


@pytest.mark.parametrize(
    "wrong", [-1, 1.0, "7", b"7", True, np.array([1, 2]), np.random.RandomState(0), {"seed": 1}]
)
def test_what_is_no_seed_is_refused(wrong):
    for use in (generator, lambda rng: streams(rng, 2)):
        with pytest.raises(ValueError, match=r"rng: expected an int seed >= 0.*got"):
            use(wrong)


@pytest.mark.parametrize(
    ("rng", "n", "said"),
    [
        ([np.random.default_rng(0)] * 3, 2, "rng: expected a sequence of 2 generators"),
        ([np.random.default_rng(0)] * 3, 4, "rng: expected a sequence of 4 generators"),
        ([1, 2, 3], 3, r"rng: expected a sequence of 3 generators, got \[1"),
        (0, -1, "n: expected a whole number of at least 0, got"),
        (0, 2.0, "n: expected a whole number of at least 0, got"),
        (0, 2**70, "n: expected a whole number of at least 0, got"),
    ],
)
def test_streams_that_there_cannot_be_are_refused(rng, n, said):
    with pytest.raises(ValueError, match=said):
        streams(rng, n)


# Progress bars


@pytest.mark.parametrize(
    ("terminal", "disabled", "shown", "drawn"),
    [
        (True, False, None, True),
        (False, False, None, False),
        (False, False, True, True),
        (True, False, False, False),
        (True, True, None, False),
        (True, True, True, True),
    ],
)
def test_a_bar_is_shown_on_a_terminal_or_on_demand(monkeypatch, terminal, disabled, shown, drawn):
    monkeypatch.setenv("TQDM_DISABLE", "1" if disabled else "")
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    with progress_bar(total=3, unit="image", file=screen, shown=shown) as bar:
        bar.update(3)
    assert ("3/3" in screen.getvalue()) == drawn


# Loading TensorFlow


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=500, env=kept | environment
    )


@pytest.mark.parametrize(
    ("tensorflow", "code", "said"),
    [
        ("import os; os.write(2, b'cuda is missing')", 0, "py low"),
        ("import os; os.write(2, b'no such library'); raise ImportError('broken')", 1, "no such l"),
    ],
)
def test_start_up_chatter_is_shown_only_where_the_import_fails(tmp_path, tensorflow, code, said):
    (tmp_path / "tensorflow.py").write_text(tensorflow)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    program = (
        "import os, sys; from pdutils._utils import load_tensorflow; load_tensorflow(); "
        "sys.stderr.write('py '); sys.stderr.flush(); os.write(2, b'low')"
    )
    done = run(program, PYTHONPATH=path)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert ("ImportError: broken" in done.stderr) == bool(code)
    assert code or done.stderr == said


@pytest.mark.parametrize(("own", "kept"), [(None, "true"), ("false", "false")])
def test_a_gpu_is_shared_unless_the_environment_says_otherwise(monkeypatch, own, kept):
    load_tensorflow()
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
    if own:
        monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", own)
    load_tensorflow()
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == kept


def test_importing_the_package_does_not_load_tensorflow():
    modules = "images, _utils, downloads, classifiers, attacks, defenses, evaluation"
    done = run(
        f"import sys; from pdutils import {modules}; "
        "import pdutils.defenses.pipeline, pdutils.evaluation.evaluate; "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


# What Keras is set to


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder of Keras's settings, for a process that has not loaded Keras."""
    import keras  # noqa: F401

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delitem(sys.modules, "keras")
    (tmp_path / "keras").mkdir()
    return tmp_path / "keras"


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("floatx", "float16", "float32"),
        ("floatx", "nonsense", "float32"),
        ("image_data_format", "channels_first", "channels_last"),
        ("backend", "torch", "tensorflow"),
    ],
)
def test_a_setting_in_keras_s_file_is_named_with_its_cure(home, capsys, name, wrong, right):
    from pdutils.cli.main import main

    (home / "keras.json").write_text(json.dumps({name: wrong}))
    said = (
        f"Keras's {name}: expected {right!r}, got {wrong!r}; "
        f'write "{name}": "{right}" in {home / "keras.json"}'
    )
    with pytest.raises(ValueError, match="Keras's") as caught:
        check_keras_settings()
    assert str(caught.value) == said
    assert main(["evaluate", "drawings:1", "--attacks", "fgsm", "--defenses", "pd"]) == 1
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize("backend", ["jax", "openvino"])
def test_a_backend_in_the_environment_is_named_with_its_cure(home, monkeypatch, backend):
    (home / "keras.json").write_text('{"backend": "tensorflow"}')
    monkeypatch.setenv("KERAS_BACKEND", backend)
    with pytest.raises(ValueError, match="Keras's") as caught:
        check_keras_settings()
    assert str(caught.value) == (
        f"Keras's backend: expected 'tensorflow', got {backend!r}; "
        "set the environment variable KERAS_BACKEND to tensorflow"
    )


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("floatx", "bfloat16", "float32"),
        ("image_data_format", "channels_first", "channels_last"),
    ],
)
def test_what_a_program_set_is_named_when_its_model_becomes_a_classifier(toy, name, wrong, right):
    import keras

    from pdutils.classifiers import Classifier

    getattr(keras.config, f"set_{name}")(wrong)
    try:
        with pytest.raises(ValueError, match="Keras's") as caught:
            Classifier(toy.model)
    finally:
        getattr(keras.config, f"set_{name}")(right)
    assert str(caught.value) == (
        f"Keras's {name}: expected {right!r}, got {wrong!r}; "
        f"call keras.config.set_{name}({right!r})"
    )


def test_a_file_that_is_no_json_counts_for_nothing(home):
    (home / "keras.json").write_text("{")
    check_keras_settings()


@pytest.mark.slow
def test_whatever_loads_keras_looks_at_its_settings_first_and_the_environment_is_heeded(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    doors = [
        "from pdutils.classifiers import load_classifier; load_classifier('demo')",
        "import pdutils.defenses.layers",
        "import pdutils.defenses.keras_model",
        "import pdutils.defenses.art",
        "from pdutils.demo import demo_network; demo_network()",
    ]
    program = (
        f"import os\nfor door in {doors}:\n"
        "    try:\n        exec(door)\n    except ValueError as error:\n        print(error)\n"
        # The environment goes before the file, for Keras as for us.
        "os.environ['KERAS_BACKEND'] = 'tensorflow'\n"
        "from pdutils._utils import check_keras_settings, load_tensorflow\n"
        "load_tensorflow()\nimport keras\ncheck_keras_settings()\nprint(keras.backend.backend())"
    )
    done = run(program, KERAS_HOME=str(tmp_path))
    *refusals, backend = done.stdout.splitlines()
    assert (done.returncode, done.stderr, backend) == (0, "", "tensorflow")
    assert len(refusals) == len(doors)
    assert all(said.startswith("Keras's backend: expected 'tensor") for said in refusals)


def test_keras_s_home_is_where_keras_looks(tmp_path, monkeypatch):
    for folder, expected in ((str(tmp_path), tmp_path), ("~/mine", Path.home() / "mine")):
        monkeypatch.setenv("KERAS_HOME", folder)
        assert keras_home() == expected
    monkeypatch.delenv("KERAS_HOME")
    for folder, expected in ((tmp_path, tmp_path / ".keras"), (tmp_path / "a", "/tmp/.keras")):
        monkeypatch.setenv("HOME", str(folder))
        assert keras_home() == Path(expected)


# Forks


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no forks")
def test_a_process_that_is_forked_before_tensorflow_runs_works_and_a_later_one_is_refused():
    done = run(
        "import os\n"
        "import numpy as np\n"
        "from pdutils.classifiers import Classifier, load_classifier\n"
        "image = np.full((224, 224, 3), 99, np.float32)\n"
        "def forked(work):\n"
        "    pid = os.fork()\n"
        "    if pid:\n"
        "        os.waitpid(pid, 0)\n"
        "        return\n"
        "    try:\n"
        "        print('in the child:', work(), flush=True)\n"
        "    except RuntimeError as error:\n"
        "        print(error, flush=True)\n"
        "    os._exit(0)\n"
        "def use():\n"
        "    return load_classifier('demo', 'random').predict(image).shape\n"
        "forked(use)\n"
        # One's own operations count, and those that make a network's weights.
        "import tensorflow as tf; tf.ones(3) + 1\n"
        "forked(use)\n"
        "from pdutils.attacks import art_classifier\n"
        "classifier = load_classifier('demo', 'random')\n"
        "forked(lambda: Classifier(classifier.model))\n"
        "forked(lambda: classifier.predict(image))\n"
        "forked(lambda: classifier.loss_gradient(image, 3))\n"
        "forked(lambda: classifier.features(image))\n"
        "forked(lambda: art_classifier(classifier).model(image[None]))\n"
        "forked(lambda: forked(lambda: classifier.predict(image)) or 'its parent')\n"
        "print(classifier.predict(image).shape)"
    )
    first, *refusals, parent, last = done.stdout.splitlines()
    assert (first, parent, last) == ("in the child: (10,)", "in the child: its parent", "(10,)")
    assert len(refusals) == 7
    for refusal in refusals:
        assert refusal.startswith("TensorFlow ran before this process was forked")
        assert 'get_context("spawn")' in refusal
