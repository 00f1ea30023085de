import pickle
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import photo, photos
from records import cell, cells_of, random_records, records_of, small

from pdutils import evaluation
from pdutils._utils import installed
from pdutils.attacks.gradient import igsm
from pdutils.classifiers import ClassifierSource
from pdutils.defenses.pipeline import OwnDefense
from pdutils.demo.examples import Collection
from pdutils.evaluation import study as study_module
from pdutils.evaluation.registry import OwnAttack, parse_attack, parse_defense
from pdutils.evaluation.scores import compare
from pdutils.evaluation.store import PACKAGES, StoredRecords
from pdutils.evaluation.study import Study
from pdutils.images import save_image
from pdutils.stats import Rate

#: What the code of an earlier day wrote: eight drawings, the demo's network; beside it its table.
BEFORE = Path(__file__).parents[1] / "data" / "store_before.sqlite"

PAIRS = {"n": "none", "fgsm": "fgsm:eps=2"}, {"n": "none", "PD": "pd:deflections=200"}


@pytest.fixture
def study() -> Study:
    records = small()
    records.attrs["skipped"] = [("e", "cut off")]
    return Study(*PAIRS, records)


def collection(n: int = 3) -> Collection:
    return Collection(photos(n), np.arange(n) % 6, masks=None, origin="drawn")


def test_answers_come_under_the_names_given(study):
    found = cells_of(small(), "majority").accuracy("paper")
    assert study.accuracy("majority") == {
        name: {attack: found[text][t] for attack, t in PAIRS[0].items()}
        for name, text in PAIRS[1].items()
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
    found = Study(
        {"bpda": "bpda", "aimed": "aimed"}, {"none": "none", "WD": "wd"}, random_records(0)
    )
    assert list(found.strength("plain")) == ["bpda against none", "bpda against WD", "aimed"]
    assert found.targeted_success()["WD"]["aimed"].n == 25


def test_defences_attacks_and_aggregates_are_compared_alike(study):
    one, worst = cells_of(small()), cells_of(small(), "worst")
    none, pd_, fgsm = "none", "pd:deflections=200", "fgsm:eps=2"
    for first, second, expected in (
        (("PD", "fgsm"), ("n", "fgsm"), compare(one, (pd_, fgsm), one, (none, fgsm), "plain")),
        (("PD", "fgsm"), ("PD", "n"), compare(one, (pd_, fgsm), one, (pd_, none), "plain")),
        (("PD", "n", "worst"), ("PD", "n"), compare(worst, (pd_, none), one, (pd_, none), "plain")),
    ):
        assert study.compare(first, second, "plain") == expected
    assert study.compare(("PD", "n", "worst"), ("PD", "n"), "plain").first == Rate(0, 4)
    with pytest.raises(ValueError, match="expected records of attack 'IGSM' with defence 'PD', go"):
        study.compare(("PD", "IGSM"), ("PD", "n"))
    with pytest.raises(ValueError, match=r"expected \(defence, attack\) or .* got \('PD',\)"):
        study.compare(("PD",), ("PD", "n"))


def test_a_comparison_says_which_knobs_differ_besides():
    texts = {"PD + WD": "pd+wd", "R-CAM": "pd+rcam+wd", "many": "pd+wd:deflections=1500"}
    cells = [cell("a", "none", text, [0]) for text in texts.values()]
    study = Study({"clean": "none"}, texts, records_of(*cells))
    note = "More than one thing differs: deflections is 1500 in R-CAM and 200 in PD + WD."
    assert study.compare(("R-CAM", "clean"), ("PD + WD", "clean")).note == note
    assert study.compare(("R-CAM", "clean"), ("many", "clean")).note == ""
    assert study.compare(("many", "clean"), ("PD + WD", "clean")).note == ""


def test_tables_and_the_report_bear_the_names(study):
    table = study.table("accuracy", "majority")
    assert list(table.index) == ["n", "PD"]
    assert list(table.columns) == ["n (n = 3)", "fgsm (n = 3)"]
    report = study.report("majority", baseline="PD")
    assert report.tables["differences"].index.name == "defense, minus PD"
    assert report.tables["names"].loc["PD", "in full"] == "pd:deflections=200"
    assert "1 image skipped: e (cut off)." in str(report)
    study.check_successes()
    assert study.progress() == (5, 5)


# What runs


def own_defense(images, rng):
    return np.clip(images + rng.normal(0, 3, images.shape), 0, 255)


def own_attack(classifier, images, labels, rng):
    return np.clip(igsm(classifier, images, labels, eps=4, iterations=2) + rng.integers(2), 0, 255)


def test_none_is_always_evaluated_under_the_name_given_or_clean_and_no_defence(toy):
    bare = evaluation.run(toy, collection(1), runs=1, progress=False)
    assert (bare.attacks, bare.defenses) == ({"clean": "none"}, {"no defence": "none"})
    named = evaluation.run(
        toy, collection(1), {"F": "fgsm:eps=4", "c": "none"}, ["wd"], runs=1, progress=False
    )
    assert named.attacks == {"F": "fgsm:eps=4", "c": "none"}
    assert named.defenses == {"no defence": "none", "wd": "wd"}
    assert list(named.records["attack"][:1]) == ["none"]
    with pytest.raises(ValueError, match="expected a list of attacks and one of defences, got 'p"):
        evaluation.run(toy, collection(1), defenses="pd")


def test_a_folder_and_a_source_are_examples_too(toy, tmp_path):
    for i in range(2):
        save_image(tmp_path / f"{toy.class_names[i]}_{i}.png", photo(seed=i))
    asked = {"runs": 1, "progress": False}
    found = evaluation.run(toy, tmp_path, **asked).records
    source = evaluation.folder_source(tmp_path, toy)
    expected = evaluation.run(toy, source, **asked).records
    assert list(found["image"]) == list(expected["image"]) == list(source.names)
    estimate = evaluation.estimate(toy, str(tmp_path), ["fgsm"], sample=1)
    assert (estimate.images, estimate.sample) == (2, 1)


def test_functions_of_ones_own_stand_beside_the_others(toy, tmp_path):
    attacks = {"mine": own_attack, "knows": "bpda:eps=4,iterations=2"}
    defenses = {"noise": own_defense, "WD": "wd"}
    asked = {"runs": 2, "progress": False, "store": tmp_path / "a.sqlite", "batch_size": 2}
    study = evaluation.run(toy, collection(), attacks, defenses, **asked)
    assert study.attacks["mine"].startswith("own:mine@")
    listed = evaluation.run(toy, collection(1), defenses=[own_defense], progress=False)
    assert list(listed.defenses) == ["no defence", "own_defense"]
    assert study.defenses["noise"].startswith("own:noise@")
    records = study.records
    met = records[
        (records["attack"] == study.attacks["mine"]) & (records["image"] == "image_00002")
    ]
    assert set(met["defense"]) == {"none", study.defenses["noise"], "wd"}
    assert met["linf"].between(1, 5).all()
    # Two draws, and two numbers of it.
    noisy = met[met["defense"] == study.defenses["noise"]]
    assert noisy["psnr"].nunique() == 2
    # Each image's draws are its own.
    alone = evaluation.run(toy, collection(), attacks, defenses, **asked | {
        "store": None, "batch_size": 1})  # fmt: skip
    assert list(alone.records["seed"]) == list(records["seed"])
    np.testing.assert_allclose(alone.records["psnr"], records["psnr"], rtol=0.05)
    # The file goes on with it, and knows it again.
    assert len(evaluation.run(toy, collection(), attacks, defenses, **asked).records) == len(
        records
    )


def test_an_own_attack_must_give_images(toy):
    def lost(classifier, images, labels, rng):
        return images[..., 0]

    def broken(classifier, images, labels, rng):
        return images * np.nan

    for function, said in ((lost, r"got shape \(1, 32, 32\)"), (broken, "got NaN or infinity")):
        with pytest.raises(ValueError, match=rf"^odd: expected images .* back, {said}"):
            evaluation.run(toy, collection(1), {"odd": function}, progress=False)


def test_an_own_attack_ends_on_the_8_bit_grid(toy):
    study = evaluation.run(
        toy, collection(1), {"odd": lambda c, images, labels, rng: images + 0.3}, progress=False
    )
    assert set(study.records["linf"]) == {0}


def test_an_attack_of_ones_own_may_leave_the_network_aside(toy):
    def brighter(images, rng):
        return images + 2 * rng.integers(1, 3)

    study = evaluation.run(toy, collection(), {"brighter": brighter}, progress=False)
    assert set(study.records["linf"]) <= {0, 2, 4}
    assert study.records["linf"].max() > 0


def test_a_function_that_workers_cannot_find_is_refused(toy_file):
    def local(images, rng):
        return images

    for known in (OwnAttack("mine", own_attack), OwnDefense("mine", own_defense)):
        study_module._check_travels(known)
        assert pickle.loads(pickle.dumps(known)) == known
    for kind in ("attacks", "defenses"):
        with pytest.raises(ValueError, match="mine: expected a function that workers can import"):
            evaluation.run(
                ClassifierSource(toy_file), collection(1), **{kind: {"mine": local}},
                scheduler="local:2",
            )  # fmt: skip


# A file of an earlier day


@pytest.fixture
def before(tmp_path) -> Path:
    """A copy, whose versions are those of the packages here: another Python may bring others."""
    path = tmp_path / "before.sqlite"
    shutil.copyfile(BEFORE, path)
    with closing(sqlite3.connect(path)) as file, file:
        file.executemany(
            "UPDATE meta SET value = ? WHERE kind = 'version' AND name = ?",
            [(installed(name), name) for name in PACKAGES],
        )
    return path


def test_a_file_of_an_earlier_day_has_the_same_table(before):
    expected = (BEFORE.with_suffix(".txt")).read_text(encoding="utf-8")
    report = str(Study.open(before).report("majority"))
    start = expected.index("### Share")
    assert expected[start:].rstrip() in report
    for sentence in expected[:start].strip().splitlines():
        assert sentence.replace("Decision", "Aggregate") in report
    with StoredRecords(before) as store:
        attacks, defenses = store.attacks(), store.defenses()
    assert [parse_attack(text).text for text in attacks] == attacks
    assert [parse_defense(text).text for text in defenses] == defenses


@pytest.mark.slow
def test_a_file_of_an_earlier_day_goes_on_and_draws_are_what_they_were(before):
    old = Study.open(before)
    asked = {name: text for name, text in old.attacks.items() if not text.startswith("bpda")}
    network = evaluation.load_classifier("demo")
    with StoredRecords(before) as store:
        settings = store.settings()
        source = evaluation.DrawingSource(int(settings["images"]), int(settings["seed"]))
    run = {name: int(settings[name]) for name in ("runs", "seed", "batch_size")}
    again = evaluation.run(network, source, asked, old.defenses, **run, progress=False).records
    records = old.records
    kept = records[records["attack"].isin(asked)].reset_index(drop=True)
    for name in ("image", "label", "attack", "defense", "run", "seed", "target"):
        assert list(again[name]) == list(kept[name])
    # At the border of a class another processor may see another one.
    assert np.mean(again["predicted"] == kept["predicted"]) > 0.8
    more = evaluation.run(
        network, source, old.attacks, ["bit_depth"], **run, store=before, progress=False
    )
    assert set(more.records["defense"]) == {"none", "bit_depth"}
    both = Study.open(before).records
    assert len(both) == len(records) + len(more.records.query("defense == 'bit_depth'"))
