import pickle
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import photo, photos
from made_records import cell, random_records, records_of, small

from pdutils import evaluation
from pdutils._utils import installed
from pdutils.attacks.gradient import igsm
from pdutils.classifiers import ClassifierSource
from pdutils.defenses.pipeline import OwnDefense
from pdutils.demo.examples import Collection
from pdutils.evaluation import study as study_module
from pdutils.evaluation.evaluate import stream_seed
from pdutils.evaluation.registry import OwnAttack, parse_attack, parse_defense
from pdutils.evaluation.store import PACKAGES, StoredRecords
from pdutils.evaluation.study import Study
from pdutils.images import save_image
from pdutils.stats import Mean, PairedDifference, Rate

#: What the code of an earlier day wrote: eight drawings, the demo's network; beside it its table.
BEFORE = Path(__file__).parents[1] / "data" / "store_before.sqlite"

PD, FGSM = "pd:deflections=200", "fgsm:eps=2"


@pytest.fixture
def study() -> Study:
    records = small()
    records.attrs["skipped"] = [("e", "cut off")]
    return Study({"n": "none", "fgsm": FGSM}, {"n": "none", "PD": PD}, records)


def run(toy, n: int, *asked, **options) -> Study:
    collection = Collection(photos(n), np.arange(n) % 6, masks=None, origin="drawn")
    return evaluation.run(toy, collection, *asked, progress=False, **options)


def test_answers_come_under_the_names_given(study):
    assert study.accuracy("majority") == {
        "n": {"n": Rate(3, 3), "fgsm": Rate(1, 3)},
        "PD": {"n": Rate(2, 3), "fgsm": Rate(2, 3)},
    }
    assert study.accuracy("one", "plain", attacks=["fgsm"], defenses={"mine": "PD"}) == {
        "mine": {"fgsm": Rate(3, 4)}
    }
    assert study.destruction("majority", attacks={2: "fgsm"})["PD"] == {2: Rate(1, 2)}
    assert study.targeted_success() == {"n": {}, "PD": {}}
    assert list(study.strength()) == ["fgsm"]
    with pytest.raises(ValueError, match="expected one of n, PD, got 'WD'"):
        study.accuracy(defenses=["WD"])


def test_an_attack_made_for_each_defence_is_named_with_it():
    attacks, defenses = {"bpda": "bpda", "aimed": "aimed"}, {"none": "none", "WD": "wd"}
    found = Study(attacks, defenses, random_records(0))
    strengths = found.strength("plain")
    assert list(strengths) == ["bpda against none", "bpda against WD", "aimed"]
    own = found.records.query("attack == 'bpda' and defense == 'wd'")
    assert strengths["bpda against WD"].l2 == Mean.of(own["l2"].to_numpy())
    assert found.targeted_success()["WD"]["aimed"].n == 25


def test_defences_attacks_and_aggregates_are_compared_alike(study):
    for first, second, expected in (
        (("PD", "fgsm"), ("n", "fgsm"), (1, 2, 0, 1)),
        (("PD", "fgsm"), ("PD", "n"), (2, 1, 1, 0)),
        (("PD", "n", "worst"), ("PD", "n"), (0, 0, 3, 1)),
    ):
        assert study.compare(first, second, "plain") == PairedDifference(*expected)
    with pytest.raises(ValueError, match="expected records of attack 'IGSM' with defence 'PD', go"):
        study.compare(("PD", "IGSM"), ("PD", "n"))
    with pytest.raises(ValueError, match=r"expected \(defence, attack\) or .* got \('PD',\)"):
        study.compare(("PD",), ("PD", "n"))
    # A comparison says which knobs differ besides.
    texts = {"PD + WD": "pd+wd", "R-CAM": "pd+rcam+wd", "many": "pd+wd:deflections=1500"}
    cells = (cell("a", "none", text, [0]) for text in texts.values())
    study = Study({"c": "none"}, texts, records_of(*cells))
    note = "More than one thing differs: deflections is 1500 in R-CAM and 200 in PD + WD."
    for one, other, expected in (
        ("R-CAM", "PD + WD", note), ("R-CAM", "many", ""), ("many", "PD + WD", ""),
    ):  # fmt: skip
        assert study.compare((one, "c"), (other, "c")).note == expected


def test_tables_and_the_report_bear_the_names(study):
    rows, columns = study.table("accuracy", "majority").axes
    assert (list(rows), list(columns)) == (["n", "PD"], ["n (n = 3)", "fgsm (n = 3)"])
    report = study.report("majority", baseline="PD")
    table = report.tables["differences"]
    assert (table.index.name, list(table.index)) == ("defense, minus PD", ["n"])
    assert list(table["n (n = 3)"]) == [str(PairedDifference(2, 1, 0, 0))]
    assert report.tables["names"].loc["PD", "in full"] == PD
    assert "1 image skipped: e (cut off)." in str(report)
    assert study.progress() == (5, 5)
    # An attack that never succeeded is refused where a rate is wanted.
    study.check_successes()
    weak = Study(study.attacks, study.defenses, small().assign(success=False))
    assert weak.destruction()["n"] == {"fgsm": None}
    with pytest.raises(ValueError, match="fgsm fooled the network on none of the images"):
        weak.check_successes()


def own_defense(images, rng):
    return np.clip(images + rng.normal(0, 3, images.shape), 0, 255)


def own_attack(classifier, images, labels, rng):
    return np.clip(igsm(classifier, images, labels, eps=4, iterations=2) + rng.integers(2), 0, 255)


def blank_attack(classifier, images, labels, rng):
    return images


def knowing_attack(classifier, images, labels, rng, *, defense, eps=4):
    """Move by a draw, further where something defends."""
    return np.clip(images, 20, 235) + rng.integers(eps + 1) + (0 if defense is None else 20)


def test_the_text_of_a_function_is_what_it_was_and_what_it_is_made_of():
    assert OwnAttack("mine", blank_attack).text == "own:mine@f09d0fdc"
    assert OwnDefense("mine", blank_attack).text == "own:mine@f09d0fdc"


def test_none_is_always_evaluated_under_the_name_given_or_clean_and_no_defence(toy):
    bare = run(toy, 1, (), [own_defense], runs=1)
    assert bare.attacks == {"clean": "none"}
    assert list(bare.defenses) == ["no defence", "own_defense"]
    named = run(toy, 1, {"F": "fgsm:eps=4", "c": "none"}, ["wd"], runs=1)
    assert named.attacks == {"F": "fgsm:eps=4", "c": "none"}
    assert named.defenses == {"no defence": "none", "wd": "wd"}
    assert list(named.records["attack"][:1]) == ["none"]
    with pytest.raises(ValueError, match="expected a list of attacks and one of defences, got 'p"):
        run(toy, 1, defenses="pd")


def test_a_folder_and_a_source_are_examples_too(toy, tmp_path):
    for i in range(2):
        save_image(tmp_path / f"{toy.class_names[i]}_{i}.png", photo(seed=i))
    source = evaluation.folder_source(tmp_path, toy)
    for examples in (tmp_path, source):
        found = evaluation.run(toy, examples, progress=False).records
        assert list(found["image"]) == list(source.names)
    estimate = evaluation.estimate(toy, str(tmp_path), ["fgsm"], sample=1)
    assert (estimate.images, estimate.sample) == (2, 1)


def test_functions_of_ones_own_stand_beside_the_others(toy, tmp_path):
    attacks = {"mine": own_attack, "knows": "bpda:eps=4,iterations=2"}
    defenses = {"noise": own_defense, "WD": "wd"}
    asked = {"runs": 2, "store": tmp_path / "a.sqlite", "batch_size": 2}
    study = run(toy, 3, attacks, defenses, **asked)
    mine, noise = study.attacks["mine"], study.defenses["noise"]
    assert (mine[:9], noise[:10]) == ("own:mine@", "own:noise@")
    records = study.records
    met = records.query("attack == @mine and image == 'image_00002'")
    assert set(met["defense"]) == {"none", noise, "wd"}
    assert met["linf"].between(1, 5).all()
    # Two draws, and two numbers of it.
    assert met.query("defense == @noise")["psnr"].nunique() == 2
    # Each image's draws are its own.
    alone = run(toy, 3, attacks, defenses, runs=2, batch_size=1).records
    assert list(alone["seed"]) == list(records["seed"])
    np.testing.assert_allclose(alone["psnr"], records["psnr"], rtol=0.05)
    # The file goes on with it, and knows it again.
    assert len(run(toy, 3, attacks, defenses, **asked).records) == len(records)


def test_a_function_that_knows_the_defence_meets_each_by_itself(toy, tmp_path):
    attacks, defenses = (
        {"knows": knowing_attack, "mine": own_attack},
        {"noise": own_defense, "WD": "wd"},
    )
    asked = {"runs": 1, "store": tmp_path / "a.sqlite"}
    study = run(toy, 3, attacks, defenses, **asked)
    knows, records = study.attacks["knows"], study.records
    assert list(study.strength()) == [
        "knows against no defence", "knows against noise", "knows against WD", "mine",
    ]  # fmt: skip
    clean = photos(3)
    for defense in study.defenses.values():
        own = records.query("attack == @knows and defense == @defense")
        for image, row in zip(clean, own.itertuples(), strict=True):
            # Its stream is made of the defence's text, too.
            rng = np.random.default_rng(stream_seed(0, row.image, knows, defense))
            moved = np.clip(image, 20, 235) + rng.integers(5) + (20 if defense != "none" else 0)
            assert row.linf == np.abs(np.clip(moved, 0, 255) - image).max()
    again = run(toy, 3, attacks, defenses, **asked).records
    assert len(again) == len(records)


def test_an_own_attack_gives_images_that_end_on_the_8_bit_grid(toy):
    for lost, said in (
        (lambda c, images, labels, rng: images[..., 0], r"got shape \(1, 32, 32\)"),
        (lambda c, images, labels, rng: images * np.nan, "got NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=rf"^odd: expected images .* back, {said}"):
            run(toy, 1, {"odd": lost})

    # It may leave the network aside.
    def brighter(images, rng):
        return images + 0.3 + 2 * rng.integers(1, 3)

    found = set(run(toy, 3, {"brighter": brighter}).records["linf"])
    assert {0} < found <= {0, 2, 4}


def test_a_function_that_workers_cannot_find_is_refused(toy_file):
    def local(images, rng):
        return images

    for known in (OwnAttack("mine", own_attack), OwnDefense("mine", own_defense)):
        study_module._check_travels(known)
        assert pickle.loads(pickle.dumps(known)) == known
    network = ClassifierSource(toy_file)
    for kind in ("attacks", "defenses"):
        with pytest.raises(ValueError, match="mine: expected a function that workers can import"):
            run(network, 1, **{kind: {"mine": local}}, scheduler="local:2")


@pytest.fixture
def before(tmp_path) -> Path:
    """A copy, whose versions are those of the packages here: another Python may bring others."""
    path = tmp_path / "before.sqlite"
    shutil.copyfile(BEFORE, path)
    update = "UPDATE meta SET value = ? WHERE kind = 'version' AND name = ?"
    with closing(sqlite3.connect(path)) as file, file:
        file.executemany(update, [(installed(name), name) for name in PACKAGES])
    return path


def test_a_file_of_an_earlier_day_has_the_same_table(before):
    expected = BEFORE.with_suffix(".txt").read_text(encoding="utf-8")
    report = str(Study.open(before).report("majority"))
    sentences, heading, tables = expected.partition("### Share")
    assert (heading + tables).rstrip() in report
    for sentence in sentences.strip().splitlines():
        assert sentence.replace("Decision", "Aggregate") in report
    with StoredRecords(before) as store:
        attacks, defenses = store.attacks(), store.defenses()
    assert [parse_attack(text).text for text in attacks] == attacks
    assert [parse_defense(text).text for text in defenses] == defenses


@pytest.mark.slow
def test_a_file_of_an_earlier_day_goes_on_and_draws_are_what_they_were(before):
    old = Study.open(before)
    attacks, defenses = list(old.attacks)[:2], ["none", "pd+rcam+wd", "random_resize_pad"]
    network = evaluation.load_classifier("demo")
    with StoredRecords(before) as store:
        settings = store.settings()
    source = evaluation.DrawingSource(int(settings["images"]), int(settings["seed"]))
    asked = {name: int(settings[name]) for name in ("runs", "seed", "batch_size")}
    asked["progress"] = False
    again = evaluation.run(network, source, attacks, defenses, **asked).records
    kept = old.records.query("attack in @attacks and defense in @defenses")
    for name in ("image", "label", "attack", "defense", "run", "seed", "target"):
        assert list(again[name]) == list(kept[name])
    # At the border of a class another processor may see another one.
    assert np.mean(again["predicted"].to_numpy() == kept["predicted"].to_numpy()) > 0.8
    more = evaluation.run(network, source, old.attacks, ["bit_depth"], **asked, store=before)
    assert set(more.records["defense"]) == {"none", "bit_depth"}
    both = Study.open(before).records
    assert len(both) == len(old.records) + sum(more.records["defense"] == "bit_depth")
