import copy
import pickle
import shutil
import tracemalloc
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import photo

from pdutils._utils import Array
from pdutils.activation import robust_cam
from pdutils.attacks.gradient import igsm, pgd
from pdutils.attacks.minimum_norm import rescale
from pdutils.classifiers import Classifier, ClassifierSource, load_classifier
from pdutils.deflection import pixel_deflection
from pdutils.evaluation import estimate, executors, run
from pdutils.evaluation import evaluate as evaluate_module
from pdutils.evaluation.datasets import DrawingSource
from pdutils.evaluation.evaluate import Cost, Estimate, stream_seed
from pdutils.evaluation.registry import Adversaries, NamedAttack, NamedDefense, parse_defense
from pdutils.evaluation.store import COLUMNS, StoredRecords, StoreError

ATTACKS = ["igsm:eps=4,iterations=2", "pgd:eps=4,iterations=2,targeted=true"]
DEFENSES = ["pd:deflections=40,window=4", "bit_depth", "pd+rcam:deflections=60,k=3,window=4"]


class Photos:
    """A source of smooth random pictures, some unreadable, of which one may stop everything."""

    def __init__(self, n, *, unreadable=(), stopped_by=None, **changes) -> None:
        self.names, self.labels = [f"photo_{i:02d}" for i in range(n)], [i % 6 for i in range(n)]
        self.digest = f"photos {n}"
        self.unreadable, self.stopped_by = unreadable, stopped_by
        vars(self).update(changes)

    def load(self, i: int) -> Array:
        if i in self.unreadable:
            raise OSError(f"{self.names[i]} is cut off")
        if i == 3 and self.stopped_by:
            raise self.stopped_by("stopped")
        return photo(seed=i)


def judged(classifier, source=None, attacks=ATTACKS, defenses=DEFENSES, **options) -> pd.DataFrame:
    """The records of a small evaluation, without the seconds, which no two runs share."""
    given = {"runs": 2, "batch_size": 2, "progress": False, **options}
    study = run(classifier, source or Photos(5), attacks, defenses, **given)
    records = study.records
    records.attrs["skipped"] = study.skipped
    assert {name: str(kind) for name, kind in records.dtypes.items()} == COLUMNS
    assert (records["seconds"] > 0).all()
    return records.drop(columns="seconds")


same = partial(pd.testing.assert_frame_equal, check_exact=True)
#: The columns in which no last bit can differ.
exact = partial(pd.DataFrame.select_dtypes, exclude="float64")


@pytest.fixture(scope="module")
def undisturbed(toy) -> pd.DataFrame:
    return judged(toy)


@pytest.fixture
def made(monkeypatch) -> list:
    """The attacks that are made, each with the seeds of its streams."""
    found, real = [], NamedAttack.make

    def spied(self, classifier, images, labels, rng, **options):
        found.append((self.text, [stream.bit_generator.seed_seq.entropy for stream in rng]))
        return real(self, classifier, images, labels, rng, **options)

    monkeypatch.setattr(NamedAttack, "make", spied)
    return found


def test_there_is_a_record_for_each_image_attack_defence_and_run_in_order(toy, undisturbed):
    expected = [
        (name, attack, defense, run)
        for name in Photos(5).names
        for attack in ["none", *ATTACKS]
        for defense, runs in zip(["none", *DEFENSES], (1, 2, 1, 2), strict=True)
        for run in range(runs)
    ]
    keys = undisturbed[["image", "attack", "defense", "run"]]
    assert list(keys.itertuples(index=False, name=None)) == expected
    # Attacks and defences come once, and none first.
    twice = ["igsm:iterations=2,eps=4", "igsm:eps=4.0,iterations=2"]
    records = judged(toy, Photos(2), twice, ["none"])
    assert list(dict.fromkeys(records["attack"])) == ["none", "igsm:eps=4,iterations=2"]
    assert set(records["defense"]) == {"none"}


def _attacked(toy, clean: Array, name: str, attack: str) -> tuple[Array, int]:
    label, options = int(name[-2:]) % 6, {"eps": 4, "iterations": 2}
    if attack == "none":
        return clean, -1
    if attack == ATTACKS[0]:
        return igsm(toy, clean, label, **options), -1
    start = np.random.default_rng(stream_seed(0, name, attack))
    target = [k for k in range(6) if k != label][start.integers(5)]
    return pgd(toy, clean, target, targeted=True, rng=[start], **options), target


def _defended(toy, adversary: Array, defense: str, seed: int) -> Array:
    if defense == "bit_depth":
        return parse_defense("bit_depth").transform(toy, adversary)
    n, rng = {DEFENSES[0]: 40, DEFENSES[2]: 60}.get(defense, 0), [np.random.default_rng(seed)]
    chances = robust_cam(toy, adversary, k=3) if "rcam" in defense else None
    return pixel_deflection(adversary, n, 4, activation_map=chances, rng=rng)


def test_records_are_those_of_a_plain_loop_and_of_other_libraries(toy):
    import tensorflow as tf
    from skimage.metrics import peak_signal_noise_ratio

    luma = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    # In another batch a gradient that is next to zero may differ in its sign: one by one.
    records = judged(toy, Photos(3), batch_size=1)
    assert records[records["attack"] != "none"]["success"].any()
    for (name, attack), of_attack in records.groupby(["image", "attack"]):
        clean, label = photo(seed=int(name[-2:])), int(name[-2:]) % 6
        adversary, target = _attacked(toy, clean, name, attack)
        # In float32 a norm may be wrong in the fifth digit.
        change, seen = (adversary - clean).astype(np.float64), toy.predict(adversary).argmax()
        won = attack != "none" and (seen == target if target >= 0 else seen != label)
        aim, right = target if target >= 0 else seen, toy.predict(clean).argmax() == label
        l2 = np.linalg.norm(change) / np.linalg.norm(clean.astype(np.float64))
        told = {
            "label": label, "target": target, "attack_class": aim, "right_clean": right,
            "success": won, "l2": pytest.approx(l2, rel=1e-5), "linf": np.abs(change).max(),
        }  # fmt: skip
        for defense, rows in of_attack.groupby("defense"):
            found = []
            for row in rows.to_dict("records"):
                defended = _defended(toy, adversary, defense, row["seed"])
                found.append(p := toy.predict(defended))
                pair = [(x @ luma)[..., np.newaxis] for x in (clean, defended)]
                with np.errstate(divide="ignore"):
                    psnr = peak_signal_noise_ratio(clean, defended, data_range=255)
                expected = told | {
                    "predicted": p.argmax(),
                    "mean_predicted": np.mean(found, axis=0).argmax(),
                    "p_label": pytest.approx(p[label], abs=1e-5),
                    "p_attack": pytest.approx(p[aim], abs=1e-5),
                    "rank": 1 + sorted(p, reverse=True).index(p[label]),
                    "psnr": pytest.approx(psnr, abs=1e-3),
                    "ssim": pytest.approx(float(tf.image.ssim(*pair, 255.0)), abs=1e-4),
                }
                assert {column: row[column] for column in expected} == expected


def test_each_record_has_a_seed_of_its_own_that_is_the_beginning_of_a_sha_256(toy, undisturbed):
    # printf '[0, "a", "igsm", "pd", 1]' | sha256sum, its first 16 digits, halved
    assert stream_seed(0, "a", "igsm", "pd", 1) == 64267967095026198
    assert undisturbed["seed"].is_unique
    assert (undisturbed["seed"] >= 0).all()
    assert not set(judged(toy, seed=1)["seed"]) & set(undisturbed["seed"])


def test_results_depend_neither_on_the_batch_size_nor_on_what_else_is_evaluated(toy, undisturbed):
    other = judged(toy, batch_size=5)
    same(exact(other), exact(undisturbed))
    pd.testing.assert_frame_equal(other, undisturbed, rtol=1e-3)
    alone = judged(toy, attacks=ATTACKS[1:], defenses=DEFENSES[2:])
    rows = undisturbed["attack"].isin(["none", ATTACKS[1]])
    rows &= undisturbed["defense"].isin(["none", DEFENSES[2]])
    same(alone, undisturbed[rows].reset_index(drop=True))


def test_the_judge_draws_other_numbers_than_the_attacker(toy, made):
    records = judged(toy, Photos(4), ["pgd:eps=4,iterations=1"], DEFENSES[:1])
    drawn = [seed for _, seeds in made for seed in seeds]
    assert len({*drawn, *records["seed"]}) == len(drawn) + len(records) == 4 + 4 * 2 * (1 + 2)


def test_a_map_is_made_once_for_all_runs_and_for_all_defenses_that_share_it(toy, monkeypatch):
    calls, real = [], NamedDefense.activation_map

    def spied(self, classifier, images):
        calls.append(self.text)
        return real(self, classifier, images)

    monkeypatch.setattr(NamedDefense, "activation_map", spied)
    shared = [DEFENSES[2], "pd+rcam:deflections=30,k=3,window=4", "pd+rcam:deflections=30,k=2"]
    judged(toy, Photos(2), ATTACKS[:1], [DEFENSES[0], *shared], runs=3)
    assert calls == [shared[0], shared[2]] * 2


def test_an_adaptive_attack_is_made_against_each_defense(toy, monkeypatch):
    seen = []

    def paint(self, classifier, images, labels, rng, *, defense=None, batch_size=32):
        seen.append((defense and defense.text, [stream.random() for stream in rng]))
        return Adversaries(np.full_like(images, len(defense.text) if defense else 0), None)

    monkeypatch.setattr(NamedAttack, "make", paint)
    records = judged(toy, Photos(2), ["bpda"], DEFENSES)
    assert [defense for defense, _ in seen] == [None, *DEFENSES]
    draws = [draw for _, numbers in seen for draw in numbers]
    assert len(set(draws)) == len(draws) == 8
    for (name, defense), rows in records[records["attack"] == "bpda"].groupby(["image", "defense"]):
        grey = 0 if defense == "none" else len(defense)
        assert (rows["linf"] == np.abs(photo(seed=int(name[-2:])) - grey).max()).all()


def test_a_lengthened_attack_is_the_attack_itself_made_once_and_lengthened(toy, made):
    plain, longer = "pgd:eps=2,iterations=1", "pgd:eps=2,iterations=1,l2=0.05"
    # Another attack between the two changes nothing about it.
    records = judged(toy, Photos(4), [plain, "fgsm:l2=0.03", longer], DEFENSES[:1])
    assert [text for text, _ in made] == [plain, "fgsm"] * 2
    for name, rows in records.groupby("image"):
        clean = photo(seed=int(name[-2:]))
        start = np.random.default_rng(stream_seed(0, name, plain))
        found = pgd(toy, clean, int(name[-2:]) % 6, eps=2, iterations=1, rng=[start])
        sizes = rows.groupby("attack")["linf"].first()
        assert sizes[plain] == np.abs(found - clean).max()
        assert sizes[longer] == np.abs(rescale(clean, found, 0.05) - clean).max()
    reached = records.groupby("attack")["l2"].agg(["min", "max"])
    assert reached.loc[longer].to_numpy() == pytest.approx(0.05, rel=0.1)
    # All values move by the same whole number of grey levels, but for those at an end of the range.
    assert reached.loc["fgsm:l2=0.03"].to_numpy() == pytest.approx(0.03, rel=0.2)
    alone = judged(toy, Photos(4), [longer], DEFENSES[:1])
    same(alone, records[records["attack"].isin(["none", longer])].reset_index(drop=True))


# One of the second chunk, or all of it.
@pytest.mark.parametrize("places", [(2,), (2, 3)])
def test_images_that_cannot_be_read_are_left_out_and_named(toy, undisturbed, tmp_path, places):
    source, path = Photos(5, unreadable=places), tmp_path / "a.sqlite"
    records, names = judged(toy, source, store=path), [f"photo_{i:02d}" for i in places]
    assert records.attrs["skipped"] == [(name, f"{name} is cut off") for name in names]
    others = undisturbed[~undisturbed["image"].isin(names)].reset_index(drop=True)
    same(exact(records), exact(others))
    same(judged(toy, source, store=path), records)
    for source, said in (
        (Photos(3, unreadable=range(3)), "got none; the first: photo_00: photo_00 is cut off"),
        (
            Photos(3, load=lambda i: photo(24, 32)),
            r"photo_00: expected an .* 32 x 32 .* \(24, 32, 3",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            judged(toy, source)


def test_what_could_be_read_of_a_chunk_that_was_begun_must_stay_so(toy, tmp_path):
    path = tmp_path / "a.sqlite"
    first = judged(toy, Photos(5, unreadable=(2,)), ATTACKS[:1], store=path)
    both = judged(toy, Photos(5), store=path)
    assert "photo_02" not in set(both["image"])
    same(both[both["attack"] != ATTACKS[1]].reset_index(drop=True), first)
    said = "photo_01 could be read when its chunk was begun and cannot be read now"
    with pytest.raises(StoreError, match=said):
        judged(toy, Photos(5, unreadable=(1, 2)), ["fgsm"], store=path)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_or_killed_evaluation_goes_on_as_if_it_had_not_been(
    toy, undisturbed, tmp_path, error
):
    path, left = tmp_path / "run" / "a.sqlite", tmp_path / "left"

    def stop(word: str) -> BaseException:
        # What a kill leaves.
        shutil.copytree(path.parent, left)
        return error(word)

    with pytest.raises(error, match="stopped"):
        judged(toy, Photos(5, stopped_by=stop), store=path)
    assert (left / "a.sqlite-wal").exists()
    for file in (path, left / "a.sqlite"):
        with StoredRecords(file) as stored:
            assert len(stored.records()) == 2 * 3 * 6
        same(judged(toy, store=file), undisturbed)


def test_what_is_finished_is_not_done_again(toy, undisturbed, tmp_path, made):
    path = tmp_path / "a.sqlite"
    judged(toy, attacks=ATTACKS[:1], defenses=DEFENSES[:2], store=path)
    for expected in (sorted(ATTACKS * 3), []):
        made.clear()
        same(judged(toy, store=path), undisturbed)
        assert sorted(text for text, _ in made) == expected


def test_a_network_that_gives_nan_stops_and_what_was_finished_stays(toy, tmp_path):
    import keras

    def grey(i: int) -> Array:
        return np.full((32, 32, 3), 50 if i < 2 else 200, dtype=np.float32)

    path = tmp_path / "a.sqlite"
    broken = Classifier(
        toy.model, preprocess=lambda x: keras.ops.where(x < 100, x, np.nan), name="broken"
    )
    with pytest.raises(ValueError, match="broken gave NaN or infinity"):
        judged(broken, Photos(4, load=grey), [], [], store=path)
    with StoredRecords(path) as stored:
        assert list(stored.records()["image"]) == ["photo_00", "photo_01"]


def test_a_file_of_other_settings_or_another_network_is_refused(toy, toy_flat, tmp_path):
    given = {"attacks": [], "defenses": [], "store": tmp_path / "a.sqlite"}
    judged(toy, **given)
    for network, changed, said in (
        (toy, {"runs": 3}, "runs: 2 there, 3 here"),
        (toy, {"seed": 7}, "seed: 0 there, 7 here"),
        (toy, {"batch_size": 4}, "batch_size: 2 there, 4 here"),
        (toy, {"source": Photos(4)}, "images: 5 there, 4 here; source: photos 5 there, photos 4 h"),
        (toy_flat, {}, "classifier: toy_gap there, toy_flat here; weights: "),
    ):
        with pytest.raises(StoreError, match=said):
            judged(network, **given, **changed)


@pytest.mark.slow
def test_the_same_bits_come_again_and_from_a_process_of_its_own(toy_file):
    given = DrawingSource(2), ["igsm:eps=4,iterations=2"], ["pd+rcam+wd:deflections=100"]
    demo = load_classifier("demo")
    same(judged(demo, *given), judged(demo, *given))
    asked = ClassifierSource(toy_file), Photos(3), ATTACKS[:1], DEFENSES[:2]
    same(judged(*asked, scheduler="local:1"), judged(*asked))


@pytest.fixture
def mirrored(monkeypatch) -> list:
    """A cluster that is none: all is pickled, done here, and given back the last first."""
    sent = []

    def finished(work, tasks, *, scheduler):
        work, tasks = pickle.loads(pickle.dumps((work, list(tasks))))
        sent.append((scheduler, tasks))
        for task in reversed(tasks):
            yield pickle.loads(pickle.dumps(work(task)))

    monkeypatch.setattr(executors, "finished", finished)
    # It would hold for all other tests too.
    monkeypatch.setattr(evaluate_module, "deterministic", lambda: None)
    return sent


def test_a_cluster_gives_what_one_process_gives(toy_file, mirrored, tmp_path):
    toy, source = ClassifierSource(toy_file), Photos(5, unreadable=(1,))
    there = judged(toy, source, scheduler="tcp://host:8786", store=tmp_path / "a.sqlite")
    here = judged(toy, source)
    same(there, here)
    assert there.attrs["skipped"] == here.attrs["skipped"] == [("photo_01", "photo_01 is cut off")]
    ((scheduler, tasks),) = mirrored
    assert (scheduler, len(tasks)) == ("tcp://host:8786", 3 * 3)
    assert all(len(pickle.dumps(task)) < 1000 for task in tasks)


def test_a_worker_makes_the_adversaries_once_that_differ_in_length(toy_file, mirrored, made):
    attacks = ["fgsm", "pgd:iterations=1", "fgsm:l2=0.03", "fgsm:l2=0.1"]
    given = ClassifierSource(toy_file), Photos(4), attacks, DEFENSES[:1]
    there = judged(*given, scheduler="tcp://host:8786")
    assert sorted(text for text, _ in made) == ["fgsm"] * 2 + ["pgd:iterations=1"] * 2
    ((_, tasks),) = mirrored
    assert [len(task) for task in tasks] == [1, 3, 1] * 2
    assert str(tasks[4]) == "attack fgsm and fgsm:l2=0.03 and fgsm:l2=0.1 on chunk 1 of the images"
    same(there, judged(*given))


def test_workers_are_told_files_by_their_whole_paths_and_networks_by_their_names(
    toy, toy_file, monkeypatch
):
    monkeypatch.chdir(Path(toy_file).parent)
    for given, told in [
        (ClassifierSource("toy.keras"), ClassifierSource(toy_file)),
        (ClassifierSource("auto"), ClassifierSource("toy_gap")),
        (ClassifierSource("Toy Gap", "toy.h5"), ClassifierSource("toy_gap", toy_file[:-5] + "h5")),
        (ClassifierSource("toy_gap", "random"), ClassifierSource("toy_gap", "random")),
    ]:
        assert evaluate_module._for_workers(given, toy) == told


def test_a_worker_with_other_weights_is_refused(toy_file, mirrored, monkeypatch):
    toy = replace(ClassifierSource(toy_file), class_names=("a", "b", "c", "d", "e", "f"))
    prints = iter(["mine", "theirs"])
    monkeypatch.setattr(evaluate_module, "fingerprint", lambda classifier: next(prints))
    with pytest.raises(ValueError, match="a worker finds other weights than this process"):
        judged(toy, scheduler="local:2")


def test_memory_does_not_grow_with_the_number_of_images(toy):
    peaks = []
    for n in (4, 8, 58):
        tracemalloc.start()
        judged(toy, Photos(n), [], [], batch_size=4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Fifty more pictures are 600,000 bytes.
    assert peaks[2] - peaks[1] < 300_000


def test_a_bar_tells_how_far_it_is_where_somebody_looks(toy, capsys, tmp_path):
    judged(toy, Photos(2), [], [], progress=None)
    assert capsys.readouterr() == ("", "")
    path = tmp_path / "a.sqlite"
    records = judged(toy, attacks=ATTACKS[:1], store=path, progress=True)
    shown = capsys.readouterr().err
    right = records.drop_duplicates("image")["right_clean"].sum()
    assert all(text in shown for text in ("10/10", f"{right} of 5 right when clean"))
    judged(toy, store=path, progress=True)
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("10/15", "15/15"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"runs": 0}, "runs: expected a whole number of at least 1, got 0"),
        ({"runs": 2.0}, "runs: expected a whole number of at least 1, got 2.0"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"attacks": "igsm"}, "expected a list of attacks and one of defences, got 'igsm'"),
        ({"defenses": ["prayer"]}, "prayer"),
        ({"source": Photos(0)}, "expected at least one image, got none"),
        ({"source": Photos(7, labels=range(7))}, "photo_06: expected a label from 0 to 5, got 6"),
        ({"source": Photos(3, names=["a", "b", "a"])}, "of different names, got 'a' twice"),
        ({"scheduler": "local:2"}, r"pass a ClassifierSource, such as ClassifierSource\('toy"),
    ],
)
def test_what_makes_no_sense_is_refused_before_work_begins(toy, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        judged(toy, **options, store=tmp_path / "a.sqlite")
    assert list(tmp_path.iterdir()) == []


def counting(classifier, passes: Array) -> Classifier:
    """A classifier that counts the images which pass through it, in a way of its own."""
    spied, spied.network = copy.copy(classifier), copy.copy(classifier.network)

    def step(name):
        def run(images, *labels):
            passes[:] += np.array([1, name == "gradient"]) * len(images)
            return classifier.network.step(name)(images, *labels)

        return run

    spied.network.step = step
    return spied


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
    given = Photos(3), attacks, defenses
    found, passes = estimate(toy, *given, runs=runs, sample=3), np.zeros(2, np.int64)
    records = judged(counting(toy, passes), *given, runs=runs)
    assert [found.total.forward, found.total.backward] == passes.tolist()
    assert found.records == len(records)
    # The classifier is left as it was.
    assert "step" not in vars(toy.network)


def test_passes_are_told_by_what_they_are_spent_on_and_scaled_to_all_images(toy):
    few, many = (
        estimate(toy, Photos(n), ["fgsm", "igsm:iterations=7"], ["pd+rcam", "wd"], sample=4)
        for n in (4, 40)
    )
    assert {text: (cost.forward, cost.backward) for text, cost in few.costs.items()} == {
        "reading": (4, 0),
        # A gradient is a forward pass too; the adversaries are classified once.
        "attack none": (0, 0),
        "attack fgsm": (8, 4),
        "attack igsm:iterations=7": (32, 28),
        # Three attacks, "none" among them: a map and ten runs; one run.
        "defense none": (0, 0),
        "defense pd+rcam": (3 * 4 * (1 + 10), 0),
        "defense wd": (3 * 4, 0),
    }
    assert (few.records, few.bytes) == (4 * 3 * (1 + 10 + 1), 4 * 3 * (2 * 120 + 10 * 85))
    assert (many.images, many.sample) == (40, 4)
    of_all = attrgetter("total.forward", "total.backward", "records", "bytes")
    assert of_all(many) == tuple(10 * count for count in of_all(few))


def test_what_happens_once_is_not_scaled_up(toy, monkeypatch):
    clock, slow, calls = SimpleNamespace(now=0.0), copy.copy(toy), []
    slow.network, predict = copy.copy(toy.network), toy.network.step("predict")

    def timed(images, *labels):
        # Compilation takes 100 s, a pass 1 s.
        clock.now += 1 if calls else 100
        calls.append(len(images))
        return predict(images, *labels)

    slow.network._compiled = toy.network._compiled | {"predict": timed}
    monkeypatch.setattr(evaluate_module, "perf_counter", lambda: clock.now)
    found = estimate(slow, Photos(8), [], ["wd"], sample=2)
    assert (found.costs["reading"].seconds, found.costs["defense wd"].seconds) == (4, 4)
    assert found.total.seconds == 8


def test_images_that_cannot_be_read_are_passed_over(toy):
    found = estimate(toy, Photos(6, unreadable=(0, 2)), ["fgsm"], [], sample=3)
    assert (found.sample, found.costs["reading"].forward) == (3, 6)
    assert estimate(toy, Photos(3, unreadable=(1, 2)), [], [], sample=3).sample == 1
    with pytest.raises(ValueError, match="images that can be read, got none"):
        estimate(toy, Photos(2, unreadable=(0, 1)), [], [])
    with pytest.raises(ValueError, match="sample: expected a whole number of at least 1, got 0"):
        estimate(toy, Photos(1), [], [], sample=0)


def test_a_table_shows_all_of_it_in_units_that_fit():
    costs = {
        "reading": Cost(50_000, 0, 119),
        "attack none": Cost(0, 0, 120),
        "attack igsm:eps=4": Cost(550_000, 500_000, 7200),
        "defense pd+wd": Cost(1_000_000.4, 0, 200_000),
    }
    found = Estimate(50_000, 4, costs, 1_100_000, 93_500_000)
    *lines, _, _, last = str(found).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "forward backward time",
        "reading 50,000 0 119.0 s",
        "attack none 0 0 2.0 min",
        "attack igsm:eps=4 550,000 500,000 2.0 h",
        "defense pd+wd 1,000,000 0 2.3 days",
        "total 1,600,000 500,000 2.4 days",
    ]
    assert len({len(line) for line in lines}) == 1
    assert all(text in last for text in ("first 4 images", "attacks that stop early"))
    for size, told in {999: "999 bytes", 1000: "1.0 kB", 93_500_000: "93.5 MB"}.items():
        summary = f"50,000 images, 1,100,000 records, a file of about {told}."
        assert summary in str(replace(found, bytes=size))
