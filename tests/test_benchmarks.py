import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import photo, photos

from benchmarks import authors, bench, measures, timing
from pdutils.defenses import PixelDeflection, WaveletDenoising, defended_model
from pdutils.defenses.pipeline import Defense
from pdutils.deflection import Writes, apply_writes, pixel_deflection
from pdutils.denoising import denoise_wavelet
from pdutils.images import labelled_files, load_image, save_image

ROOT = Path(__file__).parents[1]

TINY = {
    "repeats": 1,
    "seconds": 0.0,
    "batch": 2,
    "folder": 4,
    "steps": 1,
    "memory": (3, 2),
    "memory_repeats": 1,
}


class Recorder(random.Random):
    """Keeps what was drawn from it."""

    def __init__(self, seed):
        super().__init__(seed)
        self.drawn = []

    def randint(self, a, b):
        self.drawn.append(super().randint(a, b))
        return self.drawn[-1]

    def uniform(self, a, b):
        self.drawn.append(super().uniform(a, b))
        return self.drawn[-1]


def writes_of(drawn, shape, activation_map=None):
    """Read the writes of the blog's reading off the numbers that were drawn for them."""
    numbers, found, rounds = iter(drawn), [], 0
    for row in numbers:
        column, channel = next(numbers), rounds % 3
        rounds += 1
        if activation_map is not None and next(numbers) < activation_map[row, column]:
            continue
        source = (0, 0)
        while not (1 <= source[0] < shape[0] and 1 <= source[1] < shape[1]):
            source = row + next(numbers), column + next(numbers)
        found.append((row, column, *source, channel))
    assert rounds % 3 == 0
    return Writes(*np.array(found, dtype=np.int64).reshape(-1, 5).T), rounds // 3


@pytest.mark.parametrize("with_map", [False, True])
def test_the_loop_gives_what_the_numpy_path_gives_for_the_same_draws(with_map):
    image, draw = photo(12, 15), Recorder(3)
    chances = np.linspace(0, 1, 12 * 15, dtype=np.float32).reshape(12, 15) if with_map else None
    slow = authors.deflect(image, 300, 4, chances, draw=draw)
    writes, rounds = writes_of(draw.drawn, (12, 15), chances)
    assert rounds == 300
    assert (len(writes) < 900) == with_map
    np.testing.assert_array_equal(slow, apply_writes(image, writes))


@pytest.mark.parametrize("with_map", [False, True])
def test_the_loop_changes_as_many_values_as_either_fast_path(with_map):
    # Every value differs from every other, so each write shows.
    image = np.arange(16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3) / 4
    chances = np.full((16, 16), 0.7, dtype=np.float32) if with_map else None
    batch = np.stack([image] * 400)
    maps = None if chances is None else np.stack([chances] * 400)
    draw = random.Random(0)
    slow = np.stack([authors.deflect(x, 20, 3, chances, draw=draw) for x in batch])
    layer = PixelDeflection(20, 3, seed=1)
    paths = [
        pixel_deflection(batch, 20, 3, activation_map=maps, rng=2),
        np.asarray(layer(batch if maps is None else [batch, maps])),
    ]
    counts = [np.sum(x != batch, axis=(1, 2, 3)) for x in [slow, *paths]]
    means, errors = np.mean(counts, axis=1), np.std(counts, axis=1) / np.sqrt(400)
    np.testing.assert_allclose(means, means[0], rtol=0, atol=4 * np.sqrt(2) * errors.max())


def test_the_image_that_is_deflected_stays_as_it_is():
    image = photo()
    kept = image.copy()
    assert np.any(authors.deflect(image, 50) != kept)
    np.testing.assert_array_equal(image, kept)


def test_scikit_image_denoises_as_the_layer_does():
    batch = photos(2, 64, 64)
    slow = np.stack([authors.denoise(image) for image in batch])
    assert np.abs(slow - batch).max() > 1
    layer = WaveletDenoising(0.04, "soft", "rgb")
    np.testing.assert_allclose(slow, layer(batch), rtol=0, atol=1e-3)
    np.testing.assert_allclose(slow, denoise_wavelet(batch, sigma_scale="rgb"), rtol=0, atol=1e-3)


def test_a_folder_is_defended_in_its_order(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for i, path in enumerate(paths):
        save_image(path, photo(64, 64, seed=i))
    with ThreadPoolExecutor(2) as pool:
        defended = authors.defend_files(paths, pool)
    originals = np.stack([load_image(path) for path in paths])
    distances = np.abs(defended[:, None] - originals[None]).mean(axis=(2, 3, 4))
    assert (distances > 0).all()
    np.testing.assert_array_equal(distances.argmin(axis=1), np.arange(9))


def test_the_plain_model_takes_raw_images_as_the_defended_one(toy):
    batch = photos(3)
    plain = measures.plain_model(toy).predict_on_batch(batch)
    without = defended_model(toy, Defense(deflections=0, denoiser=None))
    np.testing.assert_allclose(plain, toy.predict(batch), rtol=1e-5)
    np.testing.assert_allclose(plain, without.predict_on_batch(batch), rtol=1e-5)


def test_the_bare_pass_gives_the_gradient_that_the_attack_takes(toy):
    batch, labels = photos(3), np.array([0, 4, 2])
    bare = measures.bare_gradient(toy, labels)(batch)
    np.testing.assert_allclose(bare, toy.loss_gradient(batch, labels)[0], rtol=1e-4, atol=1e-9)


def test_the_timed_folder_holds_labelled_drawings(toy):
    with measures.labelled_folder(56, toy) as files:
        assert len(files) == 56
        assert sorted(files) == sorted(labelled_files(files[0][0].parent))
        images = [load_image(path) for path, _ in files]
    assert {image.shape for image in images} == {(224, 224, 3)}
    np.testing.assert_array_equal(images[50], images[0])
    assert np.any(images[1] != images[0])


class Clock:
    """Stands for `timeit`: what each run costs, on a machine that grows slower all the time."""

    def __init__(self, costs):
        self.costs, self.slower, self.runs = costs, 1.0, []

    def timeit(self, run, number):
        name = run()
        self.runs.append((name, number))
        self.slower *= 1.5
        return self.costs[name] * number * self.slower


def test_a_ratio_is_of_times_taken_in_turn_after_warm_up(monkeypatch):
    clock = Clock({"slow": 6.0, "fast": 1.0})
    monkeypatch.setattr(timing, "timeit", clock)
    calls = []

    def side(name, units):
        return timing.Side(name, lambda: calls.append(name) or name, units)

    sides = side("slow", 1), side("fast", 2)
    found = timing.ratio(*sides, repeats=3, seconds=9.0)
    # The first two tell how often a side runs for one time: 9 / (6 * 1.5) and 9 / 1.5 ** 2.
    assert calls[:4] == ["slow", "slow", "fast", "fast"]
    assert clock.runs == [("slow", 1), ("fast", 1), *[("slow", 1), ("fast", 4)] * 3]
    # A unit of the fast side takes half of its run, and each pair drifts alike.
    np.testing.assert_allclose(found.values, [6 / 0.5 / 1.5] * 3)
    assert found.settings["repeats"] == 3
    assert (found.settings["above"], found.settings["below"]) == ("slow", "fast")
    assert found.settings["above_seconds"] == pytest.approx(6 * 1.5**5)


def test_a_summary_is_the_median_with_its_spread():
    found = timing.Measurement([3.0, 1.0, 8.0], {}).summary()
    assert found == {"value": 3.0, "min": 1.0, "max": 8.0}


@pytest.mark.parametrize(
    ("value", "target", "reached"),
    [(6.0, ">= 6", True), (5.9, ">= 6", False), (0.4, "<= 0.5", True), (2.11, "<= 2.10", False)],
)
def test_a_missed_target_is_told(value, target, reached):
    entry = {"value": value, "min": 1.25, "max": 9.5, "target": target}
    assert bench.reached(entry) == reached
    line = bench.table({"wd_batch": entry}).splitlines()[1]
    assert line.split()[:4] == ["wd_batch", f"{value:.3g}", "1.25", "9.5"]
    assert target in line
    assert line.endswith("missed") == (not reached)


@pytest.fixture
def fake(monkeypatch):
    """Measures that cost nothing; `pd_1500` is interrupted."""

    def interrupted(sizes):
        raise KeyboardInterrupt

    known = {
        key: lambda sizes: timing.Measurement([7.0, 9.0, 8.0], {"repeats": 3})
        for key in bench.TARGETS
    }
    monkeypatch.setattr(measures, "MEASURES", known | {"pd_1500": interrupted})


HEAD = {"versions": {"python": "3"}, "processor": "p", "cores": 2, "device": "CPU"}


@pytest.mark.usefixtures("fake")
def test_what_is_finished_is_kept(tmp_path):
    output = tmp_path / "new" / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        bench.measured(["wd_batch", "pd_200", "pd_1500"], None, dict(HEAD), output)
    report = json.loads(output.read_text())
    assert list(report) == [*HEAD, "pd_200", "wd_batch"]
    assert report["pd_200"]["value"] == 8.0
    assert report["pd_200"]["target"] == ">= 6"


@pytest.mark.usefixtures("fake")
def test_one_key_alone_keeps_the_others_of_the_same_machine(tmp_path, monkeypatch):
    output = tmp_path / "bench.json"

    def only(key, head):
        monkeypatch.setattr(bench, "header", lambda: head)
        assert bench.main(["--only", key, "--output", str(output)]) == 0
        return json.loads(output.read_text())

    only("pd_200", HEAD)
    assert list(only("defended_resnet50", HEAD)) == [*HEAD, "pd_200", "defended_resnet50"]
    report = only("defended_resnet50", HEAD | {"device": "a GPU"})
    assert list(report) == [*HEAD, "defended_resnet50"]
    assert report["defended_resnet50"]["target"] == "<= 1.25"


@pytest.mark.usefixtures("fake")
def test_a_whole_run_keeps_nothing_of_an_earlier_one(tmp_path, monkeypatch):
    output = tmp_path / "bench.json"
    monkeypatch.setattr(bench, "header", lambda: HEAD)
    bench.main(["--only", "wd_batch", "--output", str(output)])
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--output", str(output)])
    assert list(json.loads(output.read_text())) == [*HEAD, "pd_200"]


def test_peak_memory_is_the_commands_own():
    def peak(program):
        command = [sys.executable, "-m", "benchmarks.peak_memory", sys.executable, "-c", program]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)

    # The program that measures is started by a larger one, this; that must not show.
    here = np.ones(100_000_000 // 8)
    small, large = peak("pass"), peak("x = b'1' * 200_000_000")
    unit = 1 if sys.platform == "darwin" else 1024
    assert small * unit < 50_000_000 < here.nbytes
    assert (large - small) * unit == pytest.approx(200_000_000, rel=0.05)


@pytest.mark.slow
def test_a_quick_run_writes_every_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "QUICK", TINY)
    # Building and compiling a larger network takes half a minute.
    small, built = measures._classifier, []
    monkeypatch.setattr(
        measures, "_classifier", lambda name: built.append(name) or small("mobilenet_v2")
    )
    output = tmp_path / "bench.json"
    assert bench.main(["--quick", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert list(report) == ["versions", "processor", "cores", "device", *bench.TARGETS]
    assert set(report["versions"]) == {"python", "numpy", "tensorflow", "keras", "scikit-image"}
    shown = capsys.readouterr().out
    for key in bench.TARGETS:
        entry = report[key]
        assert set(entry) == {"value", "min", "max", "target", "settings"}
        assert 0 < entry["min"] <= entry["value"] <= entry["max"]
        assert entry["settings"]["repeats"] == 1
        assert key in shown
    assert set(built) == {"resnet50", "mobilenet_v2"}
