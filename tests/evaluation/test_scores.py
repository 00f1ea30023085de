import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from records import by_cell, cell, cells_of, decided, random_records, records_of, small

from pdutils.evaluation.scores import AGGREGATES, Cells, ComparisonError, compare
from pdutils.stats import Mean, PairedDifference, Rate

PD, FGSM = "pd:deflections=200", "fgsm:eps=2"


@pytest.mark.parametrize(
    ("predicted", "mean", "expected"),
    [
        ([0], [0], (0, 0, 0, 0)),
        ([2, 0, 0], [2, 2, 0], (2, 0, 0, 2)),
        ([0, 3, 3, 2], [0, 0, 0, 2], (0, 3, 2, 3)),
        # Two tie, and the mean probability is for one of them, seen second.
        ([3, 0, 0, 3, 1], [3, 3, 3, 3, 0], (3, 0, 0, 3)),
        # Two tie, and the mean probability is for neither: the one seen first.
        ([1, 3, 0, 3, 0], [1, 1, 1, 1, 1], (1, 3, 1, 1)),
        ([0, 0, 0], [0, 0, 4], (0, 0, 4, 0)),
    ],
)
def test_each_aggregate_gives_the_class_worked_by_hand(predicted, mean, expected):
    records = records_of(cell("a", "none", "pd", predicted, mean))
    for aggregate, seen in zip(AGGREGATES, expected, strict=True):
        (row,) = cells_of(records, aggregate).cells["none", "pd"].itertuples()
        assert (row.predicted, row.right, row.runs) == (seen, seen == 0, len(predicted)), aggregate


def test_the_worst_outcome_is_the_target_if_any_run_saw_it():
    records = records_of(cell("a", "t", "pd", [3, 0, 2, 3], target=2))
    worst = cells_of(records, "worst")
    assert list(worst.cells["t", "pd"]["predicted"]) == [2]
    assert worst.targeted_success("plain") == {"pd": {"t": Rate(1, 1)}}
    assert cells_of(records, "majority").targeted_success("plain") == {"pd": {"t": Rate(0, 1)}}


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_outcomes_and_rates_equal_a_loop_over_the_cells(aggregate):
    records = random_records(0)
    cells, found = by_cell(records), cells_of(records, aggregate)
    assert sum(map(len, found.cells.values())) == len(cells)
    hits: dict = {}
    for (attack, defense), table in found.cells.items():
        for row in table.itertuples():
            rows = cells[attack, defense, f"{row.image}.png"]
            kind, first = decided(rows, aggregate), rows[0]
            assert (row.predicted, row.right, row.runs) == (kind, kind == first.label, len(rows))
            for name in ("label", "target", "right_clean", "success", "l2", "linf"):
                assert getattr(row, name) == getattr(first, name)
            add = hits.setdefault((defense, attack), []).append
            add((kind == first.label, kind == first.target, first.right_clean, first.success))
    plain, paper = (found.accuracy(protocol) for protocol in ("plain", "paper"))
    turned, aimed = found.destruction(), found.targeted_success("plain")
    aimed_paper = found.targeted_success("paper")
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
    cells, found = by_cell(records), cells_of(records, "majority")
    for attack in ("none", "aimed"):
        counts: Counter = Counter()
        for i in range(25):
            one, other = (cells[attack, d, f"{i}.png"] for d in ("pd:deflections=9", "wd"))
            if one[0].right_clean or protocol == "plain":
                counts[tuple(decided(r, "majority") == r[0].label for r in (one, other))] += 1
        expected = PairedDifference(*(counts[a, b] for a in (True, False) for b in (True, False)))
        pairs = ("pd:deflections=9", attack), ("wd", attack)
        assert compare(found, pairs[0], found, pairs[1], protocol) == expected


def test_rates_of_small_records_are_those_worked_by_hand():
    assert cells_of(small(), "majority").accuracy("paper") == {
        "none": {"none": Rate(3, 3), FGSM: Rate(1, 3)},
        PD: {"none": Rate(2, 3), FGSM: Rate(2, 3)},
    }
    for aggregate, clean, attacked in (("one", 3, 3), ("worst", 0, 1), ("mean", 0, 4)):
        found = cells_of(small(), aggregate).accuracy("plain")[PD]
        assert found == {"none": Rate(clean, 4), FGSM: Rate(attacked, 4)}, aggregate
    assert cells_of(small(), "majority").destruction() == {
        "none": {FGSM: Rate(0, 2)},
        PD: {FGSM: Rate(1, 2)},
    }


def test_an_attack_that_never_succeeded_has_no_rate_and_is_refused_where_one_is_wanted():
    cells_of(small()).check_successes()
    found = cells_of(small().assign(success=False))
    assert found.destruction()["none"] == {FGSM: None}
    with pytest.raises(ValueError, match="fgsm:eps=2 fooled the network on none of the images"):
        found.check_successes()


def test_strength_is_measured_over_all_images_that_count_and_over_the_successes():
    found = cells_of(small()).strengths("paper")
    assert list(found) == [(FGSM, None)]
    paper, plain = found[FGSM, None], cells_of(small()).strengths("plain")[FGSM, None]
    assert (paper.n, paper.success) == (3, Rate(2, 3))
    assert paper.l2 == Mean.of(np.array([0.01, 0.01, 0.03]))
    assert paper.l2_of_successes == Mean.of(np.array([0.01, 0.01]))
    assert paper.linf == Mean.of(np.array([2.0, 2.0, 2.0]))
    assert (plain.n, plain.success) == (4, Rate(2, 3))
    assert plain.l2 == Mean.of(np.array([0.01, 0.01, 0.03, 0.05]))
    assert plain.l2_of_successes == paper.l2_of_successes


def test_an_attack_made_for_each_defence_has_a_strength_against_each():
    records = random_records(0)
    found = cells_of(records).strengths("plain")
    assert [d for a, d in found if a == "bpda"] == list(dict.fromkeys(records["defense"]))
    own = records[(records["attack"] == "bpda") & (records["defense"] == "wd")]
    assert math.isclose(found["bpda", "wd"].l2.value, own["l2"].mean())
    assert ("igsm:eps=4", None) in found


def test_without_an_image_right_when_clean_nothing_counts():
    found = cells_of(small().assign(right_clean=False))
    assert found.accuracy("paper")["none"] == {"none": None, FGSM: None}
    strength = found.strengths("paper")[FGSM, None]
    assert (strength.n, strength.success, strength.l2, strength.linf_of_successes) == (
        0, None, None, None)  # fmt: skip
    with pytest.raises(ComparisonError, match="an image that is right when clean, got none"):
        compare(found, ("none", "none"), found, (PD, "none"), "paper")


def test_a_case_that_was_not_evaluated_has_no_rate_and_no_comparison():
    records = small()
    gone = (records["attack"] == FGSM) & (records["defense"] == "none")
    found = cells_of(records[~gone])
    assert found.accuracy("plain")["none"] == {"none": Rate(3, 4), FGSM: None}
    for pair in (("none", FGSM), ("wd", "none")):
        with pytest.raises(ComparisonError, match=r"expected records of attack '.*got the attacks"):
            compare(found, pair, found, (PD, "none"), "plain")


def test_a_comparison_of_different_images_is_refused():
    records = small()
    gone = (records["image"] == "b") & (records["defense"] == "none")
    found = cells_of(records[~gone])
    with pytest.raises(ComparisonError, match=r"pd:deflections=200 under none and .* got 4 and 3"):
        compare(found, (PD, "none"), found, ("none", "none"), "plain")


def test_names_stand_for_texts_and_two_may_stand_for_one():
    names = {"clean": "none", "weak": FGSM, "again": FGSM}
    found = Cells.of([small()], "one", names, {"PD": PD})
    plain = cells_of(small()).accuracy("plain")
    assert found.accuracy("plain") == {
        "PD": {name: plain[PD][text] for name, text in names.items()}
    }
    assert found.made == ["weak", "again"]


def test_records_that_come_in_blocks_give_what_they_give_at_once():
    records = random_records(5)
    whole = cells_of(records, "majority")
    images = list(dict.fromkeys(records["image"]))
    blocks = (records[records["image"].isin(half)] for half in (images[:3], images[3:]))
    parts = Cells.of(blocks, "majority")
    assert parts.images == whole.images == 25
    for key, cell_ in whole.cells.items():
        pd.testing.assert_frame_equal(parts.cells[key].reset_index(drop=True), cell_)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match=r"aggregate: expected one of \('one', .*got 'best'"):
        cells_of(small(), "best")
    found = cells_of(small())
    pair = ("none", "none")
    for call in (
        found.accuracy,
        found.strengths,
        found.targeted_success,
        lambda protocol: compare(found, pair, found, pair, protocol),
    ):
        with pytest.raises(ValueError, match=r"protocol: expected one of .* got 'fair'"):
            call("fair")
