import contextlib
import errno
import io
import itertools
import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import photo, photos
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from pdutils import _utils
from pdutils._utils import (
    ahead,
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
from pdutils.attacks import art_classifier
from pdutils.classifiers import Classifier, load_classifier
from pdutils.cli.main import main

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
        assert_array_equal(wanted, before)


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
def test_maps_come_back_as_a_batch_and_one_that_does_not_fit_is_refused(wrong, n, message):
    with pytest.raises(ValueError, match=f"activation_map: expected .*{message}"):
        as_map_batch(wrong, photos(n))
    maps = np.random.default_rng(0).uniform(size=(2, 32, 32)).astype(np.float32)
    assert_array_equal(as_map_batch(maps[0], photos(1)), maps[:1])
    assert_array_equal(as_map_batch(maps, photos(2)), maps)
    assert as_map_batch(None, photos(2)) is None


@pytest.mark.parametrize(
    ("function", "given", "expected"),
    [
        (on_grid, np.float32([-3.0, 0.4, 1.6, 254.5, 300.0]), [0, 0, 2, 254, 255]),
        # Each map by itself.
        (
            min_max,
            np.float32([[[1, 2], [3, 5]], [[-4, -2], [0, 4]], [[7, 7], [7, 7]]]),
            [[[0, 0.25], [0.5, 1]], [[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]],
        ),
        (min_max, np.uint8([[0, 200], [50, 100]]), [[0, 1], [0.25, 0.5]]),
        (min_max, np.float64([[65534, 65535]]), [[0, 1]]),
    ],
)
def test_on_grid_and_min_max_leave_what_came(function, given, expected):
    before = given.copy()
    result = function(given)
    assert_array_equal(result, expected)
    assert result.dtype == np.float32
    assert_array_equal(given, before)


@given(
    value=st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-3),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_min_max_of_a_map_that_is_constant_but_for_rounding_is_zeros(value, seed, dtype):
    noise = np.random.default_rng(seed).uniform(-1e-7, 1e-7, (2, 5, 4))
    assert_array_equal(min_max((value * (1 + noise)).astype(dtype)), np.zeros((2, 5, 4)))


@given(scale=st.floats(1e-12, 1e12), shift=st.floats(-100, 100), seed=st.integers(0, 99))
def test_min_max_stretches_every_map_that_varies(scale, shift, seed):
    # By a thousandth of its size or more.
    rest = np.random.default_rng(seed).uniform(0, 1, (5, 4))
    rest.flat[:2] = 0, 1
    assert_allclose(min_max(scale * (shift + rest)), rest, atol=1e-6)


def test_min_max_measures_rounding_by_the_size_that_it_is_told():
    # The difference of two sums of about 1000, and a sum of small terms.
    left_over = np.array([[0, 1e-4], [2e-4, 0]], np.float32)
    both = min_max(np.stack([left_over] * 2), np.reshape([1000.0, 1.0], (2, 1, 1)))
    assert_allclose(both, [np.zeros((2, 2)), [[0, 0.5], [1, 0]]])


@pytest.mark.parametrize(
    ("values", "whole", "number", "finite"),
    [
        ([0, np.int64(-7), 2**63 - 1], True, True, True),
        ([2**63, -(10**400)], True, True, False),
        ([1.0, np.float32(2)], False, True, True),
        ([np.inf, np.nan], False, True, False),
        ([True, np.bool_(False), "1", None, 1j], False, False, False),
    ],
)
def test_what_a_number_is(values, whole, number, finite):
    for value in values:
        assert (is_whole(value), is_number(value), is_finite(value)) == (whole, number, finite)


@pytest.mark.parametrize(
    ("check", "wrong", "right", "said"),
    [
        (
            partial(check_whole, "k", low=1, high=9),
            [0, 10, 3.0, "3", True, None, 2**63, 10**400],
            [1, 9, np.int8(5)],
            "k: expected a whole number from 1 to 9",
        ),
        (
            partial(check_whole, "k", low=1),
            [0, 3.0, True, 2**63, 10**400],
            [1, 2**63 - 1],
            "k: expected a whole number of at least 1",
        ),
        (
            partial(check_odd, "size"),
            [0, -1, 2, 3.0, True, 2**63 + 1],
            [1, 3],
            "size: expected an odd number of pixels",
        ),
        (
            partial(check_one_of, "mode", known=("soft", "hard")),
            ["medium", "", None, 1],
            ["soft", "hard"],
            "mode: expected one of ('soft', 'hard')",
        ),
    ],
)
def test_what_is_out_of_range_is_named_with_what_was_expected(check, wrong, right, said):
    for value in right:
        check(value)
    for value in wrong:
        with pytest.raises(ValueError, match="expected") as caught:
            check(value)
        assert str(caught.value) == f"{said}, got {value!r}"


def draws(rng, n: int) -> np.ndarray:
    return np.stack([stream.uniform(size=4) for stream in streams(rng, n)])


def test_the_streams_are_those_that_numpy_spawns_from_the_seed():
    children = np.random.SeedSequence(7).spawn(3)
    expected = np.stack([np.random.default_rng(child).uniform(size=4) for child in children])
    assert_array_equal(draws(7, 3), expected)
    assert_array_equal(draws(np.int64(7), 3), expected)
    # An image's draws do not depend on how many follow, nor on what the generator drew itself.
    assert_array_equal(draws(7, 50)[:3], expected)
    drawn = np.random.default_rng(7)
    drawn.uniform(size=100)
    assert_array_equal(draws(drawn, 3), expected)
    assert len(np.unique(draws(7, 50))) == 200
    assert not np.array_equal(draws(7, 3), draws(8, 3))
    # One image's appetite does not move its neighbours.
    greedy = streams(7, 2)
    greedy[0].uniform(size=1000)
    assert_array_equal(greedy[1].uniform(size=4), expected[1])


def test_a_generator_carried_over_batches_gives_what_one_batch_gives():
    for sizes in ((6,), (1, 1, 1, 1, 1, 1), (4, 2), (1, 5)):
        carried = np.random.default_rng(7)
        assert streams(carried, 0) == []
        parts = [draws(carried, size) for size in sizes]
        assert_array_equal(np.concatenate(parts), draws(7, 6))


def test_no_global_seed_is_read_or_moved_and_none_is_fresh():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draws(7, 3)
    assert not np.array_equal(draws(None, 1), draws(None, 1))
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


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
    for several in ([np.random.default_rng(0)] * 3, [1, 2]):
        with pytest.raises(ValueError, match=r"rng: expected a sequence of 2 generators, got \["):
            streams(several, 2)


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    def written(text: str) -> None:
        with whole_file(tmp_path / "a.txt") as temporary:
            temporary.write_text(text)
            assert not (tmp_path / "a.txt").exists()
            assert (temporary.suffix, temporary.name[0]) == (".txt", ".")
            if text == "half":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written("half")
    assert list(tmp_path.iterdir()) == []
    written("whole")
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


@pytest.mark.parametrize(
    ("tensorflow", "said"),
    [
        ("import os; os.write(2, b'cuda is missing')", "py low"),
        ("import os; os.write(2, b'no library'); raise ImportError('broken')", "no librarypy low"),
    ],
)
def test_start_up_chatter_is_shown_only_where_the_import_fails(
    tmp_path, monkeypatch, capfd, tensorflow, said
):
    (tmp_path / "tensorflow.py").write_text(tensorflow)
    monkeypatch.syspath_prepend(tmp_path)
    # Back it comes in the end, whether it was loaded or not.
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.delitem(sys.modules, "tensorflow")
    expected = contextlib.nullcontext()
    if "raise" in tensorflow:
        expected = pytest.raises(ImportError, match="broken")
    with expected:
        load_tensorflow()
    sys.stderr.write("py ")
    sys.stderr.flush()
    os.write(2, b"low")
    assert capfd.readouterr().err == said


def test_a_gpu_is_shared_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
    for kept in ("true", "false"):
        load_tensorflow()
        assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == kept
        monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "false")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder of Keras's settings, for a process that has not loaded Keras."""
    import keras  # noqa: F401

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delitem(sys.modules, "keras")
    (tmp_path / "keras").mkdir()
    return tmp_path / "keras"


def test_a_setting_that_keras_will_read_is_named_with_its_cure(home, capsys, monkeypatch):
    file = home / "keras.json"

    def refusal() -> str:
        with pytest.raises(ValueError, match="Keras's") as caught:
            check_keras_settings()
        return str(caught.value)

    for name, wrong, right in (
        ("floatx", "float16", "float32"),
        ("image_data_format", "channels_first", "channels_last"),
        ("backend", "torch", "tensorflow"),
    ):
        file.write_text(json.dumps({name: wrong}))
        expected = repr(right) + (" or 'jax'" if name == "backend" else "")
        said = f"Keras's {name}: expected {expected}, got {wrong!r}; "
        said += f'write "{name}": "{right}" in {file}'
        assert refusal() == said
        assert main(["evaluate", "drawings:1", "--attacks", "fgsm", "--defenses", "pd"]) == 1
        assert capsys.readouterr().err == f"error: {said}\n"
    # The environment goes before the file, for Keras as for us.
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    check_keras_settings()
    file.write_text('{"backend": "tensorflow"}')
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    assert refusal() == (
        "Keras's backend: expected 'tensorflow' or 'jax', got 'numpy'; "
        "set the environment variable KERAS_BACKEND to tensorflow"
    )
    # A file that is no JSON counts for nothing.
    monkeypatch.delenv("KERAS_BACKEND")
    file.write_text("{")
    check_keras_settings()


@pytest.mark.parametrize(
    ("name", "wrong"), [("floatx", "bfloat16"), ("image_data_format", "channels_first")]
)
def test_what_a_program_set_is_named_when_its_model_becomes_a_classifier(toy, name, wrong):
    import keras

    setter, right = getattr(keras.config, f"set_{name}"), getattr(keras.config, name)()
    setter(wrong)
    try:
        with pytest.raises(ValueError, match="Keras's") as caught:
            Classifier(toy.model)
    finally:
        setter(right)
    cure = f"call keras.config.set_{name}({right!r})"
    assert str(caught.value) == f"Keras's {name}: expected {right!r}, got {wrong!r}; {cure}"


def run(program: str, **environment: str) -> list[str]:
    environment = {**os.environ, "KERAS_BACKEND": "", **environment}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


DOORS = """
import sys
import pdutils.attacks, pdutils.classifiers, pdutils.defenses.pipeline, pdutils.downloads
import pdutils.evaluation.evaluate, pdutils.images
for door in (
    "from pdutils.classifiers import load_classifier; load_classifier('demo')",
    "import pdutils.defenses.layers",
    "import pdutils.defenses.art",
    "from pdutils.demo import demo_network; demo_network()",
):
    assert not {"tensorflow", "keras"} & set(sys.modules)
    try:
        exec(door)
    except ValueError as error:
        print(error)
"""


def test_what_loads_keras_looks_at_its_settings_first_and_the_package_alone_does_not(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    refusals = run(DOORS, KERAS_HOME=str(tmp_path))
    assert len(refusals) == 4
    assert all(said.startswith("Keras's backend: expected 'tensor") for said in refusals)


def test_keras_s_home_is_where_keras_looks(tmp_path, monkeypatch):
    for folder, expected in ((str(tmp_path), tmp_path), ("~/mine", Path.home() / "mine")):
        monkeypatch.setenv("KERAS_HOME", folder)
        assert keras_home() == expected
    monkeypatch.delenv("KERAS_HOME")
    for folder, expected in ((tmp_path, tmp_path / ".keras"), (tmp_path / "a", "/tmp/.keras")):
        monkeypatch.setenv("HOME", str(folder))
        assert keras_home() == Path(expected)


FORKS = """
import os
from pdutils._utils import check_fork, load_tensorflow
def forked(work):
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    try:
        print('in the child:', work(), flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
forked(check_fork)
load_tensorflow()
import tensorflow as tf
forked(lambda: float(tf.ones(3)[0] + 1))
tf.ones(3) + 1
forked(check_fork)
forked(lambda: forked(check_fork) or 'its parent')
print(check_fork())
"""


@pytest.mark.slow
def test_a_process_that_is_forked_before_tensorflow_runs_works_and_a_later_one_is_refused():
    *before, refused, again, parent, last = run(FORKS)
    assert before == ["in the child: None", "in the child: 2.0"]
    assert (parent, last) == ("in the child: its parent", "None")
    for refusal in (refused, again):
        assert refusal.startswith("TensorFlow or JAX ran before this process was forked")
        assert 'get_context("spawn")' in refusal


def test_whatever_would_wait_for_the_parent_s_threads_is_refused(toy, monkeypatch):
    model = art_classifier(toy).model
    monkeypatch.setattr(_utils, "_left_behind", True)
    for work in (
        lambda: load_classifier("demo", "random"),
        lambda: Classifier(toy.model),
        lambda: toy.predict(photo()),
        lambda: toy.loss_gradient(photo(), 3),
        lambda: toy.features(photo()),
        lambda: model(photos(1)),
    ):
        with pytest.raises(
            RuntimeError, match="TensorFlow or JAX ran before this process was forked"
        ):
            work()


def test_the_next_call_is_made_while_the_last_one_s_result_is_used():
    begun = [threading.Event() for _ in range(4)]

    def double(number):
        begun[number].set()
        return 2 * number

    found = []
    for number, value in enumerate(ahead(double, range(4))):
        found.append(value)
        for following in begun[number + 1 : number + 2]:
            assert following.wait(timeout=30)
        # Never more than one ahead.
        assert not any(later.is_set() for later in begun[number + 2 :])
    assert found == [0, 2, 4, 6]
    assert list(ahead(double, [])) == []


def test_an_error_comes_in_the_place_of_its_result_and_whoever_stops_makes_no_more():
    begun = []

    def halved(number):
        begun.append(number)
        return 6 // number

    results = ahead(halved, [3, 1, 0, 2])
    assert [next(results), next(results)] == [2, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
    begun.clear()
    results, before = ahead(halved, itertools.count(1)), threading.active_count()
    assert next(results) == 6
    results.close()
    assert len(begun) <= 2
    assert threading.active_count() <= before
