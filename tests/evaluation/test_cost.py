import copy
from operator import attrgetter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import photos
from records import cell

from pdutils.demo.examples import Collection
from pdutils.evaluation import estimate, run
from pdutils.evaluation import evaluate as module
from pdutils.evaluation.datasets import CollectionSource
from pdutils.evaluation.evaluate import BYTES_PER_RECORD, BYTES_PER_SINGLE_RECORD, Cost, Estimate
from pdutils.evaluation.store import COLUMNS, Store


def source(n: int, broken: tuple[int, ...] = ()) -> CollectionSource:
    labels = np.arange(n) % 6

    class Source(CollectionSource):
        def load(self, i):
            if i in broken:
                raise ValueError("no picture")
            return super().load(i)

    return Source(Collection(photos(n), labels, None, "random"))


def counted(classifier, work) -> tuple[int, int]:
    """Count the images that pass through a network while `work` uses it, in a way of its own."""
    passes = [0, 0]
    network = copy.copy(classifier.network)
    compiled = {name: classifier.network.step(name) for name in ("predict", "gradient", "features")}

    def step(name):
        def run(images, *labels):
            passes[0] += len(images)
            passes[1] += len(images) if name == "gradient" else 0
            return compiled[name](images, *labels)

        return run

    network.step = step
    spied = copy.copy(classifier)
    spied.network = network
    work(spied)
    return passes[0], passes[1]


@pytest.mark.parametrize(
    ("attacks", "defenses", "runs"),
    [
        (["fgsm"], ["pd"], 1),
        (["igsm:iterations=4,stop_at=success", "pgd:iterations=2"], ["wd", "pd+wd"], 3),
        (["igsm:iterations=2,targeted=true"], ["pd+rcam", "pd+rcam+wd", "pd+cam"], 2),
        (["bpda:iterations=2"], ["pd:deflections=20", "wd"], 2),
    ],
)
def test_measured_on_all_images_the_passes_are_those_of_the_evaluation(
    toy, attacks, defenses, runs
):
    images = source(3)
    found = estimate(toy, images, attacks, defenses, runs=runs, seed=5, sample=3)
    records = []

    def work(classifier):
        study = run(classifier, images, attacks, defenses, runs=runs, seed=5)
        records.append(study.records)

    assert (found.total.forward, found.total.backward) == counted(toy, work)
    assert found.records == len(records[0])
    # The classifier is left as it was.
    assert type(toy.network).__name__ == "Network"


def test_passes_are_told_by_what_they_are_spent_on(toy):
    found = estimate(toy, source(4), ["fgsm", "igsm:iterations=7"], ["pd+rcam", "wd"], runs=10)

    def passes(cost):
        return cost.forward, cost.backward

    assert passes(found.reading) == (4, 0)
    # A gradient is a forward pass too; the adversaries are classified once.
    assert {text: passes(cost) for text, cost in found.attacks.items()} == {
        "none": (0, 0),
        "fgsm": (8, 4),
        "igsm:iterations=7": (32, 28),
    }
    # Three attacks, "none" among them: a map and ten runs; one run.
    assert {text: passes(cost) for text, cost in found.defenses.items()} == {
        "none": (0, 0),
        "pd+rcam": (3 * 4 * (1 + 10), 0),
        "wd": (3 * 4, 0),
    }


def test_few_images_are_scaled_to_all(toy):
    few, many = (estimate(toy, source(n), ["fgsm"], ["pd"], sample=2) for n in (2, 20))
    assert (many.images, many.sample) == (20, 2)
    for told in ("total.forward", "total.backward", "records", "bytes"):
        assert attrgetter(told)(many) == 10 * attrgetter(told)(few)


def test_records_and_bytes_count_runs_where_numbers_are_drawn(toy):
    found = estimate(toy, source(3), ["fgsm"], ["wd", "pd"], runs=10)
    assert found.records == 3 * 2 * (1 + 1 + 10)
    assert found.bytes == 3 * 2 * (2 * BYTES_PER_SINGLE_RECORD + 10 * BYTES_PER_RECORD)


@pytest.mark.parametrize(("runs", "figure"), [(10, BYTES_PER_RECORD), (1, BYTES_PER_SINGLE_RECORD)])
def test_a_record_takes_about_the_bytes_that_are_told(tmp_path, runs, figure):
    rng, n = np.random.default_rng(0), 1600
    cells = [
        row
        for i in range(n)
        for row in cell(f"image_{i:05d}.png", "igsm", "pd", [0] * runs, l2=rng.random(), linf=4.0)
    ]
    records = pd.DataFrame(cells)[list(COLUMNS)]
    for name in ("p_label", "p_attack", "psnr", "ssim", "seconds"):
        records[name] = rng.random(len(records))
    records["seed"] = rng.integers(0, 2**63, len(records))
    path = tmp_path / "a.sqlite"
    names = list(dict.fromkeys(records["image"]))
    with Store(path, names=names, labels=[0] * n, settings={}) as store:
        store.ask(["igsm"], ["none", "pd"])
        for chunk, start in enumerate(range(0, n, 32)):
            some = records.iloc[start * runs : (start + 32) * runs].astype(COLUMNS)
            for defense in ("none", "pd"):
                store.add(chunk, "igsm", defense, some)
    assert 0.8 * figure < path.stat().st_size / (2 * len(records)) < 1.2 * figure


def test_what_happens_once_is_not_scaled_up(toy, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    slow = copy.copy(toy)
    slow.network = copy.copy(toy.network)
    slow.network._compiled = dict(toy.network._compiled)
    predict, calls = toy.network.step("predict"), []

    def timed(images, *labels):
        # Compilation takes 100 s, a pass 1 s.
        clock.now += 1 if calls else 100
        calls.append(len(images))
        return predict(images, *labels)

    slow.network._compiled["predict"] = timed
    monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
    found = estimate(slow, source(8), [], ["wd"], sample=2)
    assert found.reading.seconds == 4
    assert found.defenses["wd"].seconds == 4
    assert found.total.seconds == 8


def test_images_that_cannot_be_read_are_passed_over(toy):
    found = estimate(toy, source(6, broken=(0, 2)), ["fgsm"], [], sample=3)
    assert found.sample == 3
    assert found.reading.forward == 6
    assert estimate(toy, source(3, broken=(1, 2)), [], [], sample=3).sample == 1
    with pytest.raises(ValueError, match="images that can be read, got none"):
        estimate(toy, source(2, broken=(0, 1)), [], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 0}, "runs: expected a whole number of at least 1, got 0"),
        ({"sample": 0}, "sample: expected a whole number of at least 1, got 0"),
        ({"attacks": ["magic"]}, "attack: expected one of"),
        ({"defenses": ["magic"]}, "defense: expected one of"),
    ],
)
def test_what_is_out_of_range_is_refused(toy, options, message):
    with pytest.raises(ValueError, match=message):
        estimate(toy, source(1), **{"attacks": [], "defenses": []} | options)


def test_a_table_shows_all_of_it():
    found = Estimate(
        images=50_000,
        sample=4,
        reading=Cost(50_000, 0, 90),
        attacks={"igsm:eps=4": Cost(550_000, 500_000, 7200)},
        defenses={"pd+wd": Cost(1_000_000.4, 0, 200_000)},
        records=1_100_000,
        bytes=93_500_000,
    )
    assert found.total == Cost(1_600_000.4, 500_000, 207_290)
    lines = str(found).splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["forward", "backward", "time"],
        ["reading", "50,000", "0", "90.0", "s"],
        ["attack", "igsm:eps=4", "550,000", "500,000", "2.0", "h"],
        ["defense", "pd+wd", "1,000,000", "0", "2.3", "days"],
        ["total", "1,600,000", "500,000", "2.4", "days"],
    ]
    assert len({len(line) for line in lines[:5]}) == 1
    assert "50,000 images, 1,100,000 records, a file of about 93.5 MB." in lines
    assert "first 4 images" in lines[-1]
    assert "attacks that stop early" in lines[-1]


def test_durations_and_sizes_are_told_in_a_unit_that_fits():
    durations = {0: "0.0 s", 119: "119.0 s", 120: "2.0 min", 7200: "2.0 h", 864000: "10.0 days"}
    assert {seconds: module._duration(seconds) for seconds in durations} == durations
    sizes = {0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 2.5e9: "2.5 GB"}
    assert {count: module._size(count) for count in sizes} == sizes
