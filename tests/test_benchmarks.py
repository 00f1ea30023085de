import asyncio
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import photo, photos

from benchmarks import authors, bare, bench, measures, page, soak, timing
from pdutils.defenses import PixelDeflection, WaveletDenoising, defended_model
from pdutils.defenses.pipeline import Defense
from pdutils.deflection import Writes, apply_writes, pixel_deflection
from pdutils.denoising import denoise_wavelet
from pdutils.explorer.engine import Settings
from pdutils.images import labelled_files, load_image, save_image

ROOT = Path(__file__).parents[1]


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
    image, draw, drawn = photo(12, 15), random.Random(3), []
    for kind in ("randint", "uniform"):
        kept = partial(lambda f, *a: drawn.append(f(*a)) or drawn[-1], getattr(draw, kind))
        setattr(draw, kind, kept)
    chances = np.linspace(0, 1, 12 * 15, dtype=np.float32).reshape(12, 15) if with_map else None
    slow = authors.deflect(image, 300, 4, chances, draw=draw)
    writes, rounds = writes_of(drawn, (12, 15), chances)
    assert rounds == 300
    assert (len(writes) < 900) == with_map
    np.testing.assert_array_equal(slow, apply_writes(image, writes))
    # The image stays as it was.
    np.testing.assert_array_equal(image, photo(12, 15))
    assert np.any(slow != image)


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


def test_scikit_image_denoises_as_the_layer_does():
    batch = photos(2, 64, 64)
    slow = np.stack([authors.denoise(image) for image in batch])
    assert np.abs(slow - batch).max() > 1
    layer = WaveletDenoising(0.04, "soft", "rgb")
    np.testing.assert_allclose(slow, layer(batch), rtol=0, atol=1e-3)
    np.testing.assert_allclose(slow, denoise_wavelet(batch, sigma_scale="rgb"), rtol=0, atol=1e-3)


def test_a_folder_is_defended_in_its_order(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    originals = np.stack([photo(64, 64, seed=i) for i in range(9)])
    for path, image in zip(paths, originals, strict=True):
        save_image(path, image)
    with ThreadPoolExecutor(2) as pool:
        defended = authors.defend_files(paths, pool)
    distances = np.abs(defended[:, None] - originals[None]).mean(axis=(2, 3, 4))
    assert (distances > 0).all()
    np.testing.assert_array_equal(distances.argmin(axis=1), np.arange(9))


def test_the_other_sides_do_the_plain_model_s_and_the_bare_gradient_s_work(toy):
    batch, labels = photos(3), np.array([0, 4, 2])
    plain = measures.plain_model(toy).predict_on_batch(batch)
    without = defended_model(toy, Defense(deflections=0, denoiser=None))
    np.testing.assert_allclose(plain, toy.predict(batch), rtol=1e-5)
    np.testing.assert_allclose(plain, without.predict_on_batch(batch), rtol=1e-5)
    slope = bare.bare_gradient(toy)(batch, labels)
    np.testing.assert_allclose(slope, toy.loss_gradient(batch, labels)[0], rtol=1e-4, atol=1e-9)


def test_the_passes_of_work_are_counted_and_made_again_bare(toy, monkeypatch):
    noted, passes = bare.noting(toy)
    batch, labels = photos(5), np.zeros(5, dtype=np.int64)
    np.testing.assert_array_equal(noted.predict(batch, batch_size=2), toy.predict(batch))
    noted.loss_gradient(batch[:3], labels[:3])
    noted.features(batch[:3])
    toy.predict(batch)
    assert passes == {(False, 2): 2, (False, 1): 1, (True, 3): 1, (False, 3): 1}
    shown = []

    def pass_(*arrays):
        shown.append(tuple(map(len, arrays)))
        return arrays[0]

    monkeypatch.setattr(bare, "bare_forward", lambda classifier: pass_)
    monkeypatch.setattr(bare, "bare_gradient", lambda classifier: pass_)
    bare.repeated(toy, passes.copy())()
    assert shown == [(2,), (2,), (1,), (3, 3), (3,)]


def test_the_timed_photos_are_as_large_as_most_of_imagenets(toy, monkeypatch):
    monkeypatch.setattr(measures, "_drawings", lambda n: photos(n, 16, 16))
    with measures.photo_folder(3, toy) as files, measures.weights_file(toy) as weights:
        assert sorted(files) == [path for path, _ in labelled_files(files[0].parent)]
        assert [load_image(path).shape for path in files] == [(375, 500, 3)] * 3
        assert weights.parent != files[0].parent
        assert weights.stat().st_size > 1000


def test_the_timed_folder_holds_fifty_pictures_again_and_again_with_their_labels(toy, monkeypatch):
    monkeypatch.setattr(measures, "_drawings", lambda n: photos(n, 16, 16))
    with measures.labelled_folder(56, toy) as files:
        assert sorted(files) == sorted(labelled_files(files[0][0].parent))
        images = [load_image(path) for path, _ in files]
    np.testing.assert_array_equal(images, [*photos(50, 16, 16), *photos(6, 16, 16)])


def test_a_ratio_is_of_times_taken_in_turn_after_warm_up(monkeypatch):
    # What each run costs, on a machine that grows slower all the time.
    costs, calls, runs = {"slow": 6.0, "fast": 1.0}, [], []

    def timed(run, number):
        name = run()
        runs.append((name, number))
        return costs[name] * number * 1.5 ** len(runs)

    monkeypatch.setattr(timing, "timeit", SimpleNamespace(timeit=timed))
    slow, fast = (
        timing.Side(name, lambda name=name: calls.append(name) or name, units)
        for name, units in (("slow", 1), ("fast", 2))
    )
    found = timing.ratio(slow, fast, repeats=3, seconds=9.0)
    # The first two tell how often a side runs for one time: 9 / (6 * 1.5) and 9 / 1.5 ** 2.
    assert calls[:4] == ["slow", "slow", "fast", "fast"]
    assert runs == [("slow", 1), ("fast", 1), *[("slow", 1), ("fast", 4)] * 3]
    # A unit of the fast side takes half of its run, and each pair drifts alike.
    np.testing.assert_allclose(found.values, [6 / 0.5 / 1.5] * 3)
    assert found.settings == {
        "above": "slow", "below": "fast", "repeats": 3,
        "above_seconds": pytest.approx(6 * 1.5**5), "below_seconds": pytest.approx(0.5 * 1.5**6),
    }  # fmt: skip
    summary = timing.Measurement([3.0, 1.0, 8.0], {}).summary()
    assert summary == {"value": 3.0, "min": 1.0, "max": 8.0}


def test_a_missed_target_is_told():
    for value, target, end in (
        (6.0, ">= 6", ""), (5.9, ">= 6", "missed"), (0.4, "<= 0.5", ""), (2.11, "<= 2.10", "missed")
    ):  # fmt: skip
        entry = {"value": value, "min": 1.25, "max": 9.5, "target": target}
        assert bench.reached(entry) == (not end)
        line = bench.table({"wd_batch": entry}).splitlines()[1]
        assert " ".join(line.split()) == f"wd_batch {value:.3g} 1.25 9.5 {target} {end}".strip()


def test_one_key_alone_keeps_the_others_of_the_same_machine_and_a_whole_run_nothing(
    tmp_path, monkeypatch
):
    def measure(sizes, key):
        if key == "pd_1500":
            raise KeyboardInterrupt
        return timing.Measurement([7.0, 9.0, 8.0], {"repeats": 3})

    def measured(*keys, **changes):
        monkeypatch.setattr(bench, "header", lambda: head | changes)
        words = [word for key in keys for word in ("--only", key)]
        with nullcontext() if keys else pytest.raises(KeyboardInterrupt):
            assert bench.main([*words, "--output", str(output)]) == 0
        return json.loads(output.read_text())

    known = {key: partial(measure, key=key) for key in bench.TARGETS}
    monkeypatch.setattr(measures, "MEASURES", known)
    head = {"versions": {"python": "3"}, "processor": "p", "cores": 2, "device": "CPU"}
    output = tmp_path / "new" / "bench.json"
    report = measured("wd_batch", "pd_200")
    assert list(report) == [*head, "pd_200", "wd_batch"]
    assert (report["pd_200"]["value"], report["pd_200"]["target"]) == (8.0, ">= 6")
    assert list(measured("import_pdutils")) == [*report, "import_pdutils"]
    report = measured("defended_resnet50", device="a GPU")
    assert list(report) == [*head, "defended_resnet50"]
    assert report["defended_resnet50"]["target"] == "<= 1.25"
    # Interrupted at `pd_1500`, it keeps what is finished.
    assert list(measured(device="a GPU")) == [*head, "pd_200"]


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


@pytest.fixture(scope="module")
def server():
    """Start one server of the page, with the small network, which ends with these tests."""
    with asyncio.Runner() as runner:
        serving = page.served("demo")
        server = runner.run(asyncio.wait_for(serving.__aenter__(), 120))
        try:
            yield server
        finally:
            runner.run(asyncio.wait_for(serving.__aexit__(None, None, None), 30))
        assert not server.process.is_running()
        assert not server.folder.exists()


@pytest.fixture
def served(server, monkeypatch):
    @asynccontextmanager
    async def again(network=None):
        server.peak = server.memory
        yield server

    for module in (page, soak):
        monkeypatch.setattr(module, "served", again)
    return server


def test_moves_are_of_all_kinds_and_those_of_a_slider_within_its_bounds():
    rng = np.random.default_rng(0)
    moves = page.wishes(rng, ["a", "b"], 20)
    kinds = [tuple(move) for move in moves]
    assert sorted(kinds[:10]) == sorted(kinds[10:])
    assert len(set(kinds)) == 10
    assert all(Settings(**move) for move in moves)
    for slider, (low, high, step) in page.SLIDERS.items():
        for _ in range(50):
            values = page.dragged(slider, rng)
            assert len(values) == (6 if slider in page.LIVE else 1)
            assert all(low <= value <= high for value in values)
            assert all(Settings(**{slider: value}) for value in values)
            assert slider != "sigma" or all(round(v / step, 6) % 1 == 0 for v in values)


def test_the_time_of_a_crowd_is_that_which_five_of_a_hundred_exceed():
    drags = page.Drags({"seed": [0.5] * 18, "eps": [1.0, 2.0]})
    found = drags.measurement(visitors=2)
    assert found.values == pytest.approx([1.05])
    assert found.settings == {
        "unit": "seconds", "n": 20, "median": 0.5, "max": 2.0, "visitors": 2,
        "sliders": {
            "eps": {"n": 2, "median": 1.5, "max": 2.0},
            "seed": {"n": 18, "median": 0.5, "max": 0.5},
        },
    }  # fmt: skip


@pytest.mark.slow
def test_a_soak_tells_what_visits_left_and_whether_that_is_too_much(served, monkeypatch, capsys):
    words = ["--classifier=demo", "--minutes=0.05", "--visits=8", "--visitors=3", "--killed=3"]
    for name, value in {"FEW": 3, "REST": 1, "GROWTH": 1.5, "SLOWER": 1000, "UPLOADS": 2}.items():
        monkeypatch.setattr(soak, name, value)
    assert soak.main(words) == 0
    shown = capsys.readouterr().out
    assert "8 visits in" in shown
    assert "3 vanished" in shown
    assert "errors: 0; logged: 0 lines" in shown
    assert served.held["folders"] == served.held["visits"] == 0
    monkeypatch.setattr(soak, "GROWTH", 0)
    assert soak.main([*words, "--seed=1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "missed: the memory grew"


@pytest.mark.slow
def test_a_quick_run_writes_every_figure(tmp_path, served, monkeypatch, capsys):
    tiny = {"repeats": 1, "seconds": 0.0, "batch": 2, "folder": 4, "steps": 1, "memory": (2, 2)}
    tiny |= {"visitors": 2, "page_moves": 2, "crowd_seconds": 1, "photos": 2}
    monkeypatch.setattr(page, "PAUSE", 0.5)
    monkeypatch.setattr(bench, "QUICK", tiny | {"memory_repeats": 1})
    # Building and compiling a larger network takes half a minute, as a second defended folder does.
    small, built = measures._classifier("demo"), []
    monkeypatch.setattr(measures, "_classifier", lambda name: built.append(name) or small)
    monkeypatch.setattr(measures, "_defend_peak", cache(measures._defend_peak))
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
    assert set(built) == {"resnet50", "mobilenet_v2", "efficientnet_lite0"}
