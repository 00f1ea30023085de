import contextlib
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from conftest import photo, photos

from pdutils._utils import Array
from pdutils.activation import robust_cam
from pdutils.attacks.gradient import igsm, pgd
from pdutils.classifiers import Classifier, ClassifierSource, load_classifier
from pdutils.deflection import pixel_deflection
from pdutils.demo.examples import Collection
from pdutils.evaluation import Study, executors, registry, run
from pdutils.evaluation import evaluate as evaluate_module
from pdutils.evaluation.datasets import CollectionSource, DrawingSource
from pdutils.evaluation.evaluate import stream_seed
from pdutils.evaluation.registry import (
    Adversaries,
    NamedAttack,
    NamedDefense,
    parse_attack,
    parse_defense,
)
from pdutils.evaluation.store import COLUMNS, StoredRecords, StoreError

ATTACKS = ["igsm:eps=4,iterations=2", "pgd:eps=4,iterations=2,targeted=true"]
DEFENSES = ["pd:deflections=40,window=4", "bit_depth", "pd+rcam:deflections=60,k=3,window=4"]


class Photos:
    """A source of smooth random pictures of which some may be unreadable."""

    def __init__(self, n: int, *, classes: int = 6, unreadable: tuple[int, ...] = ()) -> None:
        self.names = [f"photo_{i:02d}" for i in range(n)]
        self.labels = [i % classes for i in range(n)]
        self.digest = f"photos {n}"
        self.unreadable = unreadable

    def load(self, i: int) -> Array:
        if i in self.unreadable:
            raise OSError(f"{self.names[i]} is cut off")
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


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.fixture(scope="module")
def undisturbed(toy) -> pd.DataFrame:
    return judged(toy)


def test_there_is_a_record_for_each_image_attack_defence_and_run_in_order(undisturbed):
    expected = [
        (name, attack, defense, run)
        for name in Photos(5).names
        for attack in ["none", *ATTACKS]
        for defense, runs in zip(["none", *DEFENSES], (1, 2, 1, 2), strict=True)
        for run in range(runs)
    ]
    keys = undisturbed[["image", "attack", "defense", "run"]]
    assert list(keys.itertuples(index=False, name=None)) == expected


@pytest.fixture(scope="module")
def one_by_one(toy) -> pd.DataFrame:
    """The records of images in batches of one.

    In another batch the gradient may differ in its last bits, and where it is next to zero in its
    sign: then the adversary is another.
    """
    return judged(toy, batch_size=1)


@pytest.fixture(scope="module")
def by_hand(toy, one_by_one) -> dict[tuple[str, str, str], list[tuple[Array, Array]]]:
    """What each defence gives for each image alone, and what the network makes of it."""
    found = {}
    for i, name in enumerate(Photos(5).names):
        clean, label = photo(seed=i), i % 6
        for attack in ["none", *ATTACKS]:
            start = np.random.default_rng(stream_seed(0, name, attack))
            rows = one_by_one[(one_by_one["image"] == name) & (one_by_one["attack"] == attack)]
            adversary = clean
            if attack == ATTACKS[0]:
                adversary = igsm(toy, clean, label, eps=4, iterations=2)
            if attack == ATTACKS[1]:
                target = int(rows["target"].iloc[0])
                others = [k for k in range(6) if k != label]
                assert target == others[start.integers(5)]
                adversary = pgd(toy, clean, target, eps=4, iterations=2, targeted=True, rng=[start])
            for defense in ["none", *DEFENSES]:
                seeds = rows[rows["defense"] == defense]["seed"]
                changed = [_defended(toy, adversary, defense, seed) for seed in seeds]
                found[name, attack, defense] = [(x, toy.predict(x)) for x in (adversary, *changed)]
    return found


def _defended(toy, adversary: Array, defense: str, seed: int) -> Array:
    rng = [np.random.default_rng(seed)]
    if defense == "bit_depth":
        return parse_defense("bit_depth").transform(toy, adversary)
    if defense == DEFENSES[0]:
        return pixel_deflection(adversary, 40, 4, rng=rng)
    if defense == DEFENSES[2]:
        chances = robust_cam(toy, adversary, k=3)
        return pixel_deflection(adversary, 60, 4, activation_map=chances, rng=rng)
    return adversary


def test_predictions_are_those_of_a_plain_loop(one_by_one, by_hand):
    for (name, attack, defense), rows in one_by_one.groupby(["image", "attack", "defense"]):
        (_, undefended), *runs = by_hand[name, attack, defense]
        label = int(name[-2:]) % 6
        for row, (_, p) in zip(rows.itertuples(), runs, strict=True):
            mean = np.mean([q for _, q in runs[: row.run + 1]], axis=0)
            seen = undefended.argmax() if row.target < 0 else row.target
            assert (row.label, row.predicted, row.mean_predicted) == (
                label,
                p.argmax(),
                mean.argmax(),
            )
            assert row.attack_class == seen
            assert (row.p_label, row.p_attack) == pytest.approx((p[label], p[seen]), abs=1e-5)
            assert row.rank == 1 + sorted(p, reverse=True).index(p[label])


def test_what_the_undefended_network_makes_of_an_image_is_told_in_each_record(one_by_one, by_hand):
    for row in one_by_one.itertuples():
        clean = by_hand[row.image, "none", "none"][0][1].argmax()
        seen = by_hand[row.image, row.attack, "none"][0][1].argmax()
        won = seen == row.target if row.target >= 0 else seen != row.label
        assert row.right_clean == (clean == row.label)
        assert row.success == (won and row.attack != "none")
        assert (row.target >= 0) == (row.attack == ATTACKS[1])
    assert one_by_one[one_by_one["attack"] != "none"]["success"].any()


def test_changes_are_measured_as_other_libraries_do(one_by_one, by_hand):
    import tensorflow as tf
    from skimage.metrics import peak_signal_noise_ratio

    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    for (name, attack, defense), rows in one_by_one.groupby(["image", "attack", "defense"]):
        (adversary, _), *runs = by_hand[name, attack, defense]
        clean = photo(seed=int(name[-2:]))
        # In float32 a norm may be wrong in the fifth digit.
        change, whole = (adversary - clean).astype(np.float64), clean.astype(np.float64)
        l2 = np.sqrt(np.square(change).sum() / np.square(whole).sum())
        for row, (defended, _) in zip(rows.itertuples(), runs, strict=True):
            luma = [(x @ weights)[..., np.newaxis] for x in (clean, defended)]
            assert row.l2 == pytest.approx(l2, rel=1e-5)
            assert row.linf == np.abs(change).max()
            assert row.ssim == pytest.approx(float(tf.image.ssim(*luma, 255.0)), abs=1e-4)
            if np.array_equal(clean, defended):
                assert row.psnr == np.inf
            else:
                psnr = peak_signal_noise_ratio(clean, defended, data_range=255)
                assert row.psnr == pytest.approx(psnr, abs=1e-3)


def test_attacks_and_defenses_come_once_and_none_first(toy):
    twice = ["igsm:iterations=2,eps=4", "igsm:eps=4.0,iterations=2"]
    records = judged(toy, Photos(2), twice, ["none"])
    assert list(dict.fromkeys(records["attack"])) == ["none", "igsm:eps=4,iterations=2"]
    assert set(records["defense"]) == {"none"}


# Random streams


def test_a_seed_is_the_beginning_of_a_sha_256():
    # printf '[0, "a", "igsm", "pd", 1]' | sha256sum, its first 16 digits, halved
    assert stream_seed(0, "a", "igsm", "pd", 1) == 64267967095026198


def test_each_record_has_a_seed_of_its_own_and_another_seed_gives_others(toy, undisturbed):
    assert undisturbed["seed"].is_unique
    assert (undisturbed["seed"] >= 0).all()
    assert not set(judged(toy, seed=1)["seed"]) & set(undisturbed["seed"])


def test_results_do_not_depend_on_the_batch_size(toy, undisturbed):
    other = judged(toy, batch_size=5)
    exact = [name for name in undisturbed if undisturbed[name].dtype != np.float64]
    same(other[exact], undisturbed[exact])
    pd.testing.assert_frame_equal(other, undisturbed, rtol=1e-3)


def test_results_do_not_depend_on_what_else_is_evaluated(toy, undisturbed):
    alone = judged(toy, attacks=ATTACKS[1:], defenses=DEFENSES[2:])
    rows = undisturbed["attack"].isin(["none", ATTACKS[1]])
    rows &= undisturbed["defense"].isin(["none", DEFENSES[2]])
    same(alone, undisturbed[rows].reset_index(drop=True))


def test_the_judge_draws_other_numbers_than_the_attacker(toy, monkeypatch):
    drawn: list[tuple[str, float]] = []

    def note(who: str, rng) -> None:
        drawn.extend((who, pickle.loads(pickle.dumps(stream)).random()) for stream in rng)

    make, transform = NamedAttack.make, NamedDefense.transform

    def spied_make(self, classifier, images, labels, rng, **options):
        note("attacker", rng)
        return make(self, classifier, images, labels, rng, **options)

    def spied_transform(self, classifier, images, *, rng, **options):
        note("judge", rng)
        return transform(self, classifier, images, rng=rng, **options)

    monkeypatch.setattr(NamedAttack, "make", spied_make)
    monkeypatch.setattr(NamedDefense, "transform", spied_transform)
    judged(toy, Photos(4), ["pgd:eps=4,iterations=1"], DEFENSES[:1])
    assert [who for who, _ in drawn].count("attacker") == 4
    assert len({number for _, number in drawn}) == len(drawn) == 4 + 4 * 2 * 2


# Maps and adaptive attacks


def test_a_map_is_made_once_for_all_runs_and_for_all_defenses_that_share_it(toy, monkeypatch):
    calls = []
    real = NamedDefense.activation_map

    def spied(self, classifier, images):
        calls.append(self.text)
        return real(self, classifier, images)

    monkeypatch.setattr(NamedDefense, "activation_map", spied)
    shared = [DEFENSES[2], "pd+rcam:deflections=30,k=3,window=4", "pd+rcam:deflections=30,k=2"]
    judged(toy, Photos(2), ATTACKS[:1], [DEFENSES[0], *shared], runs=3)
    assert calls == [shared[0], shared[2]] * 2


class Towards(NamedAttack):
    """An adaptive attack that paints images with the length of its defence's text."""

    seen: ClassVar[list] = []

    @property
    def adaptive(self) -> bool:
        return True

    def make(self, classifier, images, labels, rng, *, defense=None, batch_size=32):
        Towards.seen.append((defense and defense.text, [stream.random() for stream in rng]))
        grey = 0 if defense is None else len(defense.text)
        return Adversaries(np.full_like(images, grey), None)


def test_an_adaptive_attack_is_made_against_each_defense(toy, monkeypatch):
    monkeypatch.setattr(Towards, "seen", [])
    monkeypatch.setattr(
        registry,
        "parse_attack",
        lambda text: Towards("bpda") if text == "bpda" else parse_attack(text),
    )
    records = judged(toy, Photos(2), ["bpda"], DEFENSES)
    assert [defense for defense, _ in Towards.seen] == [None, *DEFENSES]
    draws = [draw for _, numbers in Towards.seen for draw in numbers]
    assert len(set(draws)) == len(draws) == 8
    for (name, defense), rows in records[records["attack"] == "bpda"].groupby(["image", "defense"]):
        grey = 0 if defense == "none" else len(defense)
        expected = np.abs(photo(seed=int(name[-2:])) - grey).max()
        assert (rows["linf"] == expected).all()


# Images that cannot be read


def test_images_that_cannot_be_read_are_left_out_and_named(toy, undisturbed, tmp_path):
    # One of the second chunk, or all of it.
    for places in ((2,), (2, 3)):
        source, path = Photos(5, unreadable=places), tmp_path / f"{places}.sqlite"
        records = judged(toy, source, store=path)
        names = [f"photo_{i:02d}" for i in places]
        assert records.attrs["skipped"] == [(name, f"{name} is cut off") for name in names]
        others = undisturbed[~undisturbed["image"].isin(names)].reset_index(drop=True)
        exact = [name for name in others if others[name].dtype != np.float64]
        same(records[exact], others[exact])
        same(judged(toy, source, store=path), records)


def test_if_nothing_at_all_can_be_read_that_is_an_error(toy):
    with pytest.raises(ValueError, match="got none; the first: photo_00: photo_00 is cut off"):
        judged(toy, Photos(3, unreadable=(0, 1, 2)))


def test_what_could_be_read_of_a_chunk_that_was_begun_must_stay_so(toy, tmp_path):
    path = tmp_path / "a.sqlite"
    first = judged(toy, Photos(5, unreadable=(2,)), ATTACKS[:1], store=path)
    both = judged(toy, Photos(5), store=path)
    assert "photo_02" not in set(both["image"])
    same(both[both["attack"] != ATTACKS[1]].reset_index(drop=True), first)
    with pytest.raises(
        StoreError, match="photo_01 could be read when its chunk was begun and cannot be read now"
    ):
        judged(toy, Photos(5, unreadable=(1, 2)), ["fgsm"], store=path)


def test_an_image_of_another_size_is_named(toy):
    source = Photos(3)
    source.load = lambda i: photo(24, 32)
    with pytest.raises(
        ValueError, match=r"photo_00: expected an image of 32 x 32 .* \(24, 32, 3\)"
    ):
        judged(toy, source)


# Interruptions


class Failing(Photos):
    """Something that is no fault of an image happens at the fourth."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__(5)
        self.error = error

    def load(self, i: int) -> Array:
        if i == 3:
            raise self.error("stopped")
        return super().load(i)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_an_interrupted_evaluation_goes_on_as_if_it_had_not_been(toy, undisturbed, tmp_path, error):
    path = tmp_path / "a.sqlite"
    with pytest.raises(error, match="stopped"):
        judged(toy, Failing(error), store=path)
    with StoredRecords(path) as stored:
        assert len(stored.records()) == 2 * 3 * 6
    same(judged(toy, store=path), undisturbed)


def test_what_is_finished_is_not_done_again(toy, undisturbed, tmp_path, monkeypatch):
    path = tmp_path / "a.sqlite"
    judged(toy, attacks=ATTACKS[:1], defenses=DEFENSES[:2], store=path)
    made, real = [], NamedAttack.make

    def spied(self, *args, **options):
        made.append(self.text)
        return real(self, *args, **options)

    monkeypatch.setattr(NamedAttack, "make", spied)
    same(judged(toy, store=path), undisturbed)
    assert sorted(made) == sorted(ATTACKS * 3)
    made.clear()
    same(judged(toy, store=path), undisturbed)
    assert made == []


class BrightAtTheEnd(Photos):
    """Two dark pictures, then two bright ones."""

    def __init__(self) -> None:
        super().__init__(4)

    def load(self, i: int) -> Array:
        return np.full((32, 32, 3), 50 if i < 2 else 200, dtype=np.float32)


def test_a_network_that_gives_nan_stops_and_what_was_finished_stays(toy, tmp_path):
    import keras

    def blinded(x):
        return keras.ops.where(x < 100, x, np.nan)

    broken = Classifier(toy.model, preprocess=blinded, name="broken")
    path = tmp_path / "a.sqlite"
    with pytest.raises(ValueError, match="broken gave NaN or infinity"):
        judged(broken, BrightAtTheEnd(), [], [], store=path)
    with StoredRecords(path) as stored:
        assert list(stored.records()["image"]) == ["photo_00", "photo_01"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"runs": 3}, "runs: 2 there, 3 here"),
        ({"seed": 7}, "seed: 0 there, 7 here"),
        ({"batch_size": 4}, "batch_size: 2 there, 4 here"),
        ({"source": Photos(4)}, "images: 5 there, 4 here; source: photos 5 there, photos 4 here"),
        ({}, "classifier: toy_gap there, toy_flat here; weights: "),
    ],
)
def test_a_file_of_other_settings_or_another_network_is_refused(
    toy, toy_flat, tmp_path, changed, said
):
    path = tmp_path / "a.sqlite"
    judged(toy, attacks=[], defenses=[], store=path)
    with pytest.raises(StoreError, match=said):
        judged(toy if changed else toy_flat, attacks=[], defenses=[], store=path, **changed)


_SCRIPT = """
import sys, time

sys.path[:0] = sys.argv[1:3]
from test_evaluate import ATTACKS, DEFENSES, ClassifierSource, Photos, run

from pdutils.classifiers import deterministic

class Halting(Photos):
    def load(self, i):
        # Whoever stops it finds it here, however slow the machine is.
        time.sleep(3600 if i == 8 else 0)
        return super().load(i)

deterministic()
photos = Halting if sys.argv[5:] == ["halt"] else Photos
for path in sys.argv[4:6 - (photos is Halting)]:
    toy = ClassifierSource(sys.argv[3])
    run(toy, photos(12), ATTACKS, DEFENSES, runs=2, batch_size=2, store=path)
"""


# Between processes that TensorFlow was not set up alike for, the last bits may differ: both here
# that are compared are of one kind.
@pytest.mark.slow
def test_a_killed_process_leaves_what_it_had_finished(toy, toy_file, tmp_path):
    path, whole = tmp_path / "a.sqlite", 12 * 3 * 6
    here = Path(__file__).parent
    command = [sys.executable, "-c", _SCRIPT, here, here.parent, toy_file, path]
    with subprocess.Popen([*command, "halt"], stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and _finished(path) < whole // 2:
                time.sleep(0.1)
            with pytest.raises(StoreError, match="another run writes to it"):
                judged(toy, Photos(12), store=path)
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL, errors
    assert whole // 2 <= _finished(path) < whole
    undisturbed = tmp_path / "b.sqlite"
    subprocess.run([*command, undisturbed], check=True)
    same(*(Study.open(p).records.drop(columns="seconds") for p in (path, undisturbed)))


def _finished(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError), StoredRecords(path) as stored:
        return len(stored.records())
    return 0


@pytest.mark.slow
def test_the_demo_network_gives_the_same_bits_again(monkeypatch):
    demo = load_classifier("demo")
    attacks, defenses = ["igsm:eps=4,iterations=2"], ["pd+rcam+wd:deflections=100"]
    once, again = (judged(demo, DrawingSource(3), attacks, defenses) for _ in range(2))
    same(once, again)


# On a cluster


@pytest.fixture
def mirrored(monkeypatch) -> list:
    """A cluster that is none: all is pickled, done here, and given back the last first."""
    sent = []

    def finished(work, tasks, *, scheduler, ahead=2):
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


def test_a_unit_of_work_is_small(toy_file, mirrored):
    judged(ClassifierSource(toy_file), Photos(4), scheduler="local:2")
    assert all(len(pickle.dumps(task)) < 1000 for _, tasks in mirrored for task in tasks)


@pytest.mark.slow
def test_a_process_of_its_own_gives_what_this_one_gives(toy_file):
    toy, (source, attacks) = ClassifierSource(toy_file), (_pictures(6), ATTACKS[:1])
    there = judged(toy, source, attacks, DEFENSES[:2], scheduler="local:1")
    same(there, judged(toy, source, attacks, DEFENSES[:2]))


def _pictures(n: int) -> CollectionSource:
    labels = np.arange(n) % 6
    return CollectionSource(Collection(photos(n), labels, masks=None, origin="drawn"))


def test_a_worker_with_other_weights_is_refused(toy_file, mirrored, monkeypatch):
    toy = replace(ClassifierSource(toy_file), class_names=("a", "b", "c", "d", "e", "f"))
    prints = iter(["mine", "theirs"])
    monkeypatch.setattr(evaluate_module, "fingerprint", lambda classifier: next(prints))
    with pytest.raises(ValueError, match="a worker finds other weights than this process"):
        judged(toy, scheduler="local:2")


def test_a_loaded_classifier_is_not_sent_to_a_cluster(toy):
    with pytest.raises(
        ValueError, match=r"pass a ClassifierSource, such as ClassifierSource\('toy"
    ):
        judged(toy, scheduler="local:2")


# What it needs and what it refuses


def test_memory_does_not_grow_with_the_number_of_images(toy):
    def peak(n: int) -> int:
        tracemalloc.start()
        try:
            judged(toy, Photos(n), [], [], batch_size=4)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(4)
    # A hundred more pictures are 1.2 million bytes.
    assert peak(110) - peak(10) < 500_000


def test_a_bar_tells_how_far_it_is_where_somebody_looks(toy, capsys, tmp_path):
    judged(toy, Photos(2), [], [], progress=None)
    assert capsys.readouterr() == ("", "")
    path = tmp_path / "a.sqlite"
    records = judged(toy, attacks=ATTACKS[:1], store=path, progress=True)
    shown = capsys.readouterr().err
    right = records.drop_duplicates("image")["right_clean"].sum()
    assert "10/10" in shown
    assert f"{right} of 5 right when clean" in shown
    judged(toy, store=path, progress=True)
    shown = capsys.readouterr().err
    assert "10/15" in shown
    assert "15/15" in shown


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
        ({"source": Photos(7, classes=7)}, "photo_06: expected a label from 0 to 5, got 6"),
    ],
)
def test_what_makes_no_sense_is_refused_before_work_begins(toy, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        judged(toy, **options, store=tmp_path / "a.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_two_images_of_one_name_are_refused(toy):
    source = Photos(3)
    source.names[2] = "photo_00"
    with pytest.raises(ValueError, match="expected images of different names, got 'photo_00' twi"):
        judged(toy, source)
