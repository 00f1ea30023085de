import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from records import by_cell, decided, random_records, small

from pdutils.evaluation.report import Report
from pdutils.evaluation.scores import Cells, ComparisonError, named, outcomes
from pdutils.stats import Mean, PairedDifference, Rate


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("decision", ["one", "majority", "mean", "worst"])
def test_outcomes_and_rates_equal_a_loop_over_the_cells(decision, seed):
    records = random_records(seed)
    cells = by_cell(records)
    found = outcomes(records, decision)
    assert len(found) == len(cells)
    hits: dict = {}
    for row in found.itertuples():
        rows = cells[row.attack, row.defense, row.image]
        kind, first = decided(rows, decision), rows[0]
        assert (row.predicted, row.right, row.runs) == (kind, kind == first.label, len(rows))
        assert (row.label, row.target, row.right_clean, row.success) == (
            first.label, first.target, first.right_clean, first.success)  # fmt: skip
        assert math.isclose(row.psnr, sum(r.psnr for r in rows) / len(rows))
        assert math.isclose(row.ssim, sum(r.ssim for r in rows) / len(rows))
        add = hits.setdefault((row.defense, row.attack), []).append
        add((kind == first.label, kind == first.target, first.right_clean, first.success))
    plain, paper = (
        Cells.of(records, decision).accuracy(protocol) for protocol in ("plain", "paper")
    )
    turned, aimed = (
        Cells.of(records, decision).destruction(),
        Cells.of(records, decision).targeted_success(),
    )
    aimed_paper = Cells.of(records, decision).targeted_success("paper")
    for (defense, attack), seen in hits.items():
        assert plain[defense][attack] == Rate(sum(s[0] for s in seen), 25)
        right = [s for s in seen if s[2]]
        assert paper[defense][attack] == Rate(sum(s[0] for s in right), len(right))
        if attack != "none":
            fooled = [s for s in right if s[3]]
            assert turned[defense][attack] == Rate(sum(s[0] for s in fooled), len(fooled))
        if attack == "aimed":
            assert aimed[defense] == {"aimed": Rate(sum(s[1] for s in seen), 25)}
            assert aimed_paper[defense] == {"aimed": Rate(sum(s[1] for s in right), len(right))}
    assert "none" not in turned["wd"]


@pytest.mark.parametrize("protocol", ["paper", "plain"])
def test_differences_equal_a_loop_over_the_images(protocol):
    records = random_records(3)
    cells = by_cell(records)
    for attack in ("none", "aimed"):
        counts = Counter()
        for i in range(25):
            one, other = (cells[attack, d, f"{i}.png"] for d in ("pd:deflections=9", "wd"))
            if one[0].right_clean or protocol == "plain":
                counts[tuple(decided(r, "majority") == r[0].label for r in (one, other))] += 1
        expected = PairedDifference(*(counts[a, b] for a in (True, False) for b in (True, False)))
        found = Cells.of(records, "majority").paired(attack, "pd:deflections=9", "wd", protocol)
        assert found == expected


def test_accuracy_of_small_records_is_the_one_worked_by_hand():
    pd_, fgsm = "pd:deflections=200", "fgsm:eps=2"
    assert Cells.of(small(), "majority").accuracy("paper") == {
        "none": {"none": Rate(3, 3), fgsm: Rate(1, 3)},
        pd_: {"none": Rate(2, 3), fgsm: Rate(2, 3)},
    }
    assert Cells.of(small(), "one").accuracy("plain")[pd_] == {"none": Rate(3, 4), fgsm: Rate(3, 4)}
    assert Cells.of(small(), "worst").accuracy("plain")[pd_] == {
        "none": Rate(0, 4),
        fgsm: Rate(1, 4),
    }
    assert Cells.of(small(), "mean").accuracy("plain")[pd_][fgsm] == Rate(4, 4)


def test_destruction_counts_the_adversaries_that_succeeded_on_images_right_when_clean():
    assert Cells.of(small(), "majority").destruction() == {
        "none": {"fgsm:eps=2": Rate(0, 2)},
        "pd:deflections=200": {"fgsm:eps=2": Rate(1, 2)},
    }


def test_an_attack_that_never_succeeded_has_no_destruction_rate():
    records = small().assign(success=False)
    assert Cells.of(records, "one").destruction()["none"] == {"fgsm:eps=2": None}


def test_an_attack_that_never_succeeded_is_refused_where_successes_are_wanted():
    records = small()
    Cells.of(records).check_successes(["fgsm:eps=2"])
    records["success"] = False
    with pytest.raises(ValueError, match="fgsm:eps=2 fooled the network on none of the images"):
        Cells.of(records).check_successes(["fgsm:eps=2"])


def test_a_case_that_was_not_evaluated_has_no_rate():
    records = small()
    gone = (records["attack"] == "fgsm:eps=2") & (records["defense"] == "none")
    found = Cells.of(records[~gone], "one").accuracy("plain")
    assert found["none"] == {"none": Rate(3, 4), "fgsm:eps=2": None}


def test_strength_is_measured_over_all_images_that_count_and_over_the_successes():
    found = Cells.of(small()).strength()["fgsm:eps=2"]
    assert (found.n, found.success) == (3, Rate(2, 3))
    assert found.l2 == Mean.of(np.array([0.01, 0.01, 0.03]))
    assert found.l2_of_successes == Mean.of(np.array([0.01, 0.01]))
    assert found.linf == Mean.of(np.array([2.0, 2.0, 2.0]))
    plain = Cells.of(small()).strength("plain")["fgsm:eps=2"]
    assert (plain.n, plain.success) == (4, Rate(2, 3))
    assert plain.l2 == Mean.of(np.array([0.01, 0.01, 0.03, 0.05]))
    assert plain.l2_of_successes == found.l2_of_successes
    assert list(Cells.of(small()).strength()) == ["fgsm:eps=2"]


def test_an_attack_made_for_each_defence_has_a_strength_against_each():
    records = random_records(0)
    found = Cells.of(records).strength("plain")
    others = [d for d in records["defense"].unique() if d != "none"]
    against = [name for name in found if name.startswith("bpda")]
    assert against == [f"bpda against {d}" for d in ("none", *others)]
    own = records[(records["attack"] == "bpda") & (records["defense"] == "wd")]
    assert math.isclose(found["bpda against wd"].l2.value, own["l2"].mean())
    assert "igsm:eps=4" in found


def test_without_an_image_right_when_clean_nothing_counts():
    records = small().assign(right_clean=False)
    assert Cells.of(records, "one").accuracy("paper")["none"] == {"none": None, "fgsm:eps=2": None}
    found = Cells.of(records).strength()["fgsm:eps=2"]
    assert (found.n, found.success, found.l2, found.linf_of_successes) == (0, None, None, None)
    with pytest.raises(ValueError, match="expected an image that is right when clean, got none"):
        Cells.of(records).paired("none", "none", "pd:deflections=200")


def test_numbers_from_a_database_and_categories_are_read_alike():
    records = random_records(4)
    other = records.astype({"right_clean": int, "success": int, "image": "category",
                            "attack": "category", "defense": "category"})  # fmt: skip
    assert Cells.of(other, "majority").accuracy("paper") == Cells.of(records, "majority").accuracy(
        "paper"
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda p: Cells.of(small()).accuracy(p),
        lambda p: Cells.of(small()).strength(p),
        lambda p: Cells.of(small(), "one").targeted_success(p),
        lambda p: Cells.of(small()).paired("none", "none", "none", p),
        lambda p: Report.of(small(), p),
    ],
)
def test_an_unknown_protocol_is_refused(call):
    with pytest.raises(ValueError, match="protocol: expected one of paper, plain, got 'fair'"):
        call("fair")


def test_a_comparison_of_different_images_is_refused():
    records = small()
    gone = (records["image"] == "b") & (records["defense"] == "none")
    other = records.replace({"image": {"b": "e"}})
    swapped = pd.concat([records[~gone], other[gone]])
    for changed, n in ((records[~gone], 3), (swapped, 4)):
        with pytest.raises(ValueError, match=f"on the same images, got 4 and {n} im"):
            Cells.of(changed).paired("none", "pd:deflections=200", "none", "plain")


def test_a_comparison_with_what_was_not_evaluated_is_refused():
    with pytest.raises(ValueError, match="'none' with defence 'wd', got the attacks none, f"):
        Cells.of(small()).paired("none", "wd", "none", "plain")
    with pytest.raises(ValueError, match=r"baseline: expected one of the defences none, pd.*'wd'"):
        Report.of(small(), "paper", "one", "wd")


def test_two_attacks_and_two_decisions_are_compared_on_the_same_images():
    fgsm, pd_ = "fgsm:eps=2", "pd:deflections=200"
    one, worst = Cells.of(small()), Cells.of(small(), "worst")
    right = {key: list(cell["right"]) for key, cell in one.cells.items()}
    expected = PairedDifference.of(np.array(right["none", pd_]), np.array(right[fgsm, pd_]))
    assert one.between_attacks(pd_, "none", fgsm, "plain") == expected
    stricter = worst.against(one, "none", pd_, "plain")
    # Of four images three are right in the first run, and none in every run.
    assert (stricter.first, stricter.second) == (Rate(0, 4), Rate(3, 4))
    with pytest.raises(ComparisonError, match="expected records of attack 'igsm'"):
        one.between_attacks(pd_, "none", "igsm")


def test_rates_are_called_by_other_names():
    rates = Cells.of(small()).accuracy("plain")
    found = named(rates, {"PD": "pd:deflections=200"}, {2: "fgsm:eps=2"})
    assert found == {"PD": {2: rates["pd:deflections=200"]["fgsm:eps=2"]}}


def test_records_that_come_in_blocks_give_what_they_give_at_once():
    records = random_records(5)
    whole = Cells.of(records, "majority")
    images = list(dict.fromkeys(records["image"]))
    halves = [set(images[:3]), set(images[3:])]
    blocks = (records[records["image"].isin(half)] for half in halves)
    parts = Cells.of_blocks(blocks, "majority")
    assert parts.images == whole.images
    for protocol in ("paper", "plain"):
        assert parts.accuracy(protocol) == whole.accuracy(protocol)
    assert parts.destruction() == whole.destruction()
    assert parts.targeted_success() == whole.targeted_success()
    assert {key: s.n for key, s in parts.strength().items()} == {
        key: s.n for key, s in whole.strength().items()
    }
    first, second = whole.defenses[:2]
    assert parts.paired("none", first, second) == whole.paired("none", first, second)
    with pytest.raises(ValueError, match="at least one row, got none"):
        Cells.of_blocks([])
