"""The contract of what comes in, streams, whole files, bars, forks, and what Keras is set to."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import photo, photos
from hypothesis import given
from hypothesis import strategies as st

from pdutils import _utils
from pdutils._utils import (
    as_batch,
    as_map_batch,
    check_images,
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
    min_max,
    on_grid,
    progress_bar,
    streams,
    whole_file,
)

# Images and maps


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ([[[1.0, 2.0, 3.0]]], "list"),
        (photo().astype(np.uint8), "uint8"),
        (photo().astype(np.float64), "float64"),
        (photo()[..., 0], r"\(32, 32\)"),
        (photo()[..., :1], r"\(32, 32, 1\)"),
        (photos(2)[np.newaxis], r"\(1, 2, 32, 32, 3\)"),
        (np.zeros((0, 32, 3), np.float32), r"\(0, 32, 3\)"),
        (np.zeros((0, 8, 8, 3), np.float32), r"at least one image, got none \(shape \(0, 8"),
        (np.full((2, 2, 3), np.nan, np.float32), "NaN"),
        (np.full((2, 2, 3), -np.inf, np.float32), "infinity"),
        (np.full((1, 1, 3), -128.5, np.float32), r"\[0, 255\], got \[-128.5, -128.5\]"),
        (np.full((1, 1, 3), 383.5, np.float32), r"\[0, 255\], got \[383.5, 383.5\]"),
        (photo() / 255, "looks scaled"),
        (photo() / 127.5 - 1, "looks scaled"),
    ],
)
def test_what_is_no_image_is_refused_with_what_was_expected_and_what_came(wrong, found):
    with pytest.raises(ValueError, match=rf"^picture: expected .*{found}"):
        check_images(wrong, "picture")


def test_images_come_back_as_they_are_and_as_a_batch_that_shares_their_memory():
    # Flat ones and a little overshoot are allowed.
    for value in (-128.0, 0.0, 1.0, 383.0):
        check_images(np.full((1, 1, 3), value, np.float32))
    for wanted, shape in ((photo(), (1, 32, 32, 3)), (photos(2), (2, 32, 32, 3))):
        before = wanted.copy()
        assert check_images(wanted) is wanted
        batch, single = as_batch(wanted)
        assert (batch.shape, single) == (shape, wanted.ndim == 3)
        assert np.shares_memory(batch, wanted)
        np.testing.assert_array_equal(wanted, before)


def test_maps_come_back_as_a_batch():
    one = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    np.testing.assert_array_equal(as_map_batch(one, photos(1)), one[np.newaxis])
    np.testing.assert_array_equal(as_map_batch(np.stack([one, one]), photos(2))[1], one)
    assert as_map_batch(None, photos(2)) is None


@pytest.mark.parametrize(
    ("wrong", "n", "message"),
    [
        (np.zeros((16, 32), np.float32), 1, r"\(1, 32, 32\) or \(32, 32\).*\(16, 32\)"),
        (np.zeros((32, 32), np.float32), 2, r"\(2, 32, 32\).*\(32, 32\)"),
        (np.zeros((3, 32, 32), np.float32), 2, r"\(2, 32, 32\).*\(3, 32, 32\)"),
        (np.zeros((32, 32)), 1, "float64"),
        (np.full((32, 32), 1.1, np.float32), 1, r"\[0, 1\], got \[1.1, 1.1\]"),
        (np.full((32, 32), -0.5, np.float32), 1, r"\[0, 1\], got \[-0.5, -0.5\]"),
        (np.full((32, 32), np.nan, np.float32), 1, "NaN"),
        ("rcam.png", 1, "str"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_with_what_came(wrong, n, message):
    with pytest.raises(ValueError, match=f"activation_map: expected .*{message}"):
        as_map_batch(wrong, photos(n))


def test_on_grid_clips_and_rounds_a_copy():
    given = np.array([-3.0, 0.4, 1.6, 254.5, 300.0], np.float32)
    result = on_grid(given)
    np.testing.assert_array_equal(result, [0, 0, 2, 254, 255])
    assert result.dtype == np.float32
    np.testing.assert_array_equal(given, np.array([-3.0, 0.4, 1.6, 254.5, 300.0], np.float32))


def test_min_max_stretches_each_map_by_itself():
    maps = np.array([[[1, 2], [3, 5]], [[-4, -2], [0, 4]], [[7, 7], [7, 7]]], np.float32)
    before = maps.copy()
    expected = [[[0, 0.25], [0.5, 1]], [[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]]
    result = min_max(maps)
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(maps, before)
    stretched = min_max(np.array([[0, 200], [50, 100]], np.uint8))
    np.testing.assert_array_equal(stretched, [[0, 1], [0.25, 0.5]])
    np.testing.assert_array_equal(min_max(np.array([[65534, 65535]], np.float64)), [[0, 1]])


@given(
    value=st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-3),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_min_max_of_a_map_that_is_constant_but_for_rounding_is_zeros(value, seed, dtype):
    noise = np.random.default_rng(seed).uniform(-1e-7, 1e-7, (2, 5, 4))
    np.testing.assert_array_equal(min_max((value * (1 + noise)).astype(dtype)), np.zeros((2, 5, 4)))


@given(scale=st.floats(1e-12, 1e12), shift=st.floats(-100, 100), seed=st.integers(0, 99))
def test_min_max_stretches_every_map_that_varies(scale, shift, seed):
    # By a thousandth of its size or more.
    rest = np.random.default_rng(seed).uniform(0, 1, (5, 4))
    rest.flat[:2] = 0, 1
    np.testing.assert_allclose(min_max(scale * (shift + rest)), rest, atol=1e-6)


def test_min_max_measures_rounding_by_the_size_that_it_is_told():
    # The difference of two sums of about 1000, and a sum of small terms.
    left_over = np.array([[0, 1e-4], [2e-4, 0]], np.float32)
    both = min_max(np.stack([left_over] * 2), np.reshape([1000.0, 1.0], (2, 1, 1)))
    np.testing.assert_allclose(both, [np.zeros((2, 2)), [[0, 0.5], [1, 0]]])


# Numbers and words


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


@pytest.mark.parametrize(
    ("check", "wrong", "right", "said"),
    [
        (
            lambda value: check_whole("k", value, 1, 9),
            [0, 10, 3.0, "3", True, None, 2**63, 10**400],
            [1, 9, np.int8(5)],
            "^k: expected a whole number from 1 to 9, got",
        ),
        (
            lambda value: check_whole("k", value, 1),
            [0, 3.0, True, 2**63, 10**400],
            [1, 2**63 - 1],
            "^k: expected a whole number of at least 1, got",
        ),
        (
            lambda value: check_odd("size", value),
            [0, -1, 2, 3.0, True, 2**63 + 1],
            [1, 3],
            "^size: expected an odd number of pixels, got",
        ),
        (
            lambda value: check_one_of("mode", value, ("soft", "hard")),
            ["medium", "", None, 1],
            ["soft", "hard"],
            r"^mode: expected one of \('soft', 'hard'\), got",
        ),
    ],
)
def test_what_is_out_of_range_is_named_with_what_was_expected(check, wrong, right, said):
    for value in right:
        check(value)
    for value in wrong:
        with pytest.raises(ValueError, match=said) as caught:
            check(value)
        assert str(caught.value).endswith(f"got {value!r}")


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
    # One image's appetite does not move its neighbours.
    greedy = streams(7, 2)
    greedy[0].uniform(size=1000)
    np.testing.assert_array_equal(greedy[1].uniform(size=4), expected[1])


@pytest.mark.parametrize("sizes", [(6,), (1, 1, 1, 1, 1, 1), (4, 2), (1, 0, 5)])
def test_a_generator_carried_over_batches_gives_what_one_batch_gives(sizes):
    carried = np.random.default_rng(7)
    parts = [draws(carried, size) for size in sizes if size]
    np.testing.assert_array_equal(np.concatenate(parts), draws(7, 6))


def test_no_global_seed_is_read_or_moved_and_none_is_fresh():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draws(7, 3)
    assert not np.array_equal(draws(None, 1), draws(None, 1))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_generators_are_returned_as_they_are_and_a_seed_is_numpy_s():
    own = [np.random.default_rng(seed) for seed in range(3)]
    for kept in (own, tuple(own)):
        assert all(a is b for a, b in zip(streams(kept, 3), own, strict=True))
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


@pytest.mark.parametrize("wrong", [[np.random.default_rng(0)] * 3, [1, 2]])
def test_streams_that_there_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"rng: expected a sequence of 2 generators, got \["):
        streams(wrong, 2)


# Whole files


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    def interrupted() -> None:
        with whole_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "a.txt").exists()
        assert (temporary.suffix, temporary.name[0]) == (".txt", ".")
    assert (tmp_path / "a.txt").read_text() == "whole"


@pytest.mark.parametrize("where", ["mkstemp", "replace"])
def test_an_error_of_the_system_names_the_file_that_was_asked_for(tmp_path, monkeypatch, where):
    def denied(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/tmp/.other-x7.png")

    monkeypatch.setattr(_utils.tempfile if where == "mkstemp" else Path, where, denied)
    with pytest.raises(PermissionError) as caught, whole_file(tmp_path / "a.png"):
        pass
    assert caught.value.filename == str(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


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


def test_a_backend_in_the_environment_is_named_and_a_file_that_is_no_json_is_not(home, monkeypatch):
    (home / "keras.json").write_text("{")
    check_keras_settings()
    (home / "keras.json").write_text('{"backend": "tensorflow"}')
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ValueError, match="Keras's") as caught:
        check_keras_settings()
    assert str(caught.value) == (
        "Keras's backend: expected 'tensorflow', got 'jax'; "
        "set the environment variable KERAS_BACKEND to tensorflow"
    )
    # The environment goes before the file, for Keras as for us.
    (home / "keras.json").write_text('{"backend": "torch"}')
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    check_keras_settings()


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


def test_whatever_loads_keras_looks_at_its_settings_first(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    doors = [
        "from pdutils.classifiers import load_classifier; load_classifier('demo')",
        "import pdutils.defenses.layers",
        "import pdutils.defenses.art",
        "from pdutils.demo import demo_network; demo_network()",
    ]
    done = run(
        f"for door in {doors}:\n"
        "    try:\n        exec(door)\n    except ValueError as error:\n        print(error)\n",
        KERAS_HOME=str(tmp_path),
    )
    assert (done.returncode, done.stderr) == (0, "")
    refusals = done.stdout.splitlines()
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

FORKS = """
import os
import numpy as np
from pdutils.classifiers import Classifier, load_classifier
image = np.full((224, 224, 3), 99, np.float32)
def forked(work):
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        print('in the child:', work(), flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
def use():
    return load_classifier('demo', 'random').predict(image).shape
forked(use)
# One's own operations count, and those that make a network's weights.
import tensorflow as tf; tf.ones(3) + 1
forked(use)
from pdutils.attacks import art_classifier
classifier = load_classifier('demo', 'random')
forked(lambda: Classifier(classifier.model))
forked(lambda: classifier.predict(image))
forked(lambda: classifier.loss_gradient(image, 3))
forked(lambda: classifier.features(image))
forked(lambda: art_classifier(classifier).model(image[None]))
forked(lambda: forked(lambda: classifier.predict(image)) or 'its parent')
print(classifier.predict(image).shape)
"""


@pytest.mark.slow
def test_a_process_that_is_forked_before_tensorflow_runs_works_and_a_later_one_is_refused():
    first, *refusals, parent, last = run(FORKS).stdout.splitlines()
    assert (first, parent, last) == ("in the child: (10,)", "in the child: its parent", "(10,)")
    assert len(refusals) == 7
    for refusal in refusals:
        assert refusal.startswith("TensorFlow ran before this process was forked")
        assert 'get_context("spawn")' in refusal
