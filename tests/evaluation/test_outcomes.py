import math

import pandas as pd
import pytest
from records import cell, records_of, small

from pdutils.evaluation.report import Report
from pdutils.evaluation.scores import Cells, outcomes
from pdutils.stats import Rate


@pytest.mark.parametrize(
    ("predicted", "mean", "one", "majority", "of_mean", "worst"),
    [
        ([0], [0], 0, 0, 0, 0),
        ([2, 0, 0], [2, 2, 0], 2, 0, 0, 2),
        ([0, 3, 3, 2], [0, 0, 0, 2], 0, 3, 2, 3),
        # Two tie, and the mean probability is for one of them, seen second.
        ([3, 0, 0, 3, 1], [3, 3, 3, 3, 0], 3, 0, 0, 3),
        # Two tie, and the mean probability is for neither: the one seen first.
        ([1, 3, 0, 3, 0], [1, 1, 1, 1, 1], 1, 3, 1, 1),
        ([0, 0, 0], [0, 0, 4], 0, 0, 4, 0),
    ],
)
def test_each_decision_gives_the_class_worked_by_hand(
    predicted, mean, one, majority, of_mean, worst
):
    records = records_of(cell("a", "none", "pd", predicted, mean))
    for decision, expected in (("one", one), ("majority", majority), ("mean", of_mean),
                               ("worst", worst)):  # fmt: skip
        found = outcomes(records, decision)
        assert list(found["predicted"]) == [expected], decision
        assert list(found["right"]) == [expected == 0], decision
        assert list(found["runs"]) == [len(predicted)]


def test_the_worst_outcome_is_the_target_if_any_run_saw_it():
    records = records_of(cell("a", "t", "pd", [3, 0, 2, 3], target=2))
    (predicted,) = outcomes(records, "worst")["predicted"]
    assert predicted == 2
    assert Cells.of(records, "worst").targeted_success() == {"pd": {"t": Rate(1, 1)}}
    assert Cells.of(records, "majority").targeted_success() == {"pd": {"t": Rate(0, 1)}}


def test_measures_are_means_over_the_runs_and_equal_values_stay_what_they_are():
    records = records_of(cell("a", "none", "pd", [0, 0, 0], l2=0.1, linf=2.0, psnr=math.inf))
    records["ssim"] = [0.5, 0.25, 0.75]
    (row,) = outcomes(records, "one").itertuples()
    # The sum of three times 0.1, divided by three, is another float.
    assert (row.l2, row.linf, row.psnr, row.ssim) == (0.1, 2.0, math.inf, 0.5)
    records["psnr"] = [30.0, math.inf, 20.0]
    assert list(outcomes(records, "one")["psnr"]) == [math.inf]


def test_rows_follow_the_records_none_first():
    records = records_of(
        *(cell(image, attack, defense, [0])
          for image in ("b", "a")
          for attack in ("z", "none", "c")
          for defense in ("q", "none", "a"))
    )  # fmt: skip
    found = outcomes(records, "one")
    assert list(found["attack"].unique()) == ["none", "z", "c"]
    assert list(found["defense"].unique()) == ["none", "q", "a"]
    assert list(found["image"][:2]) == ["b", "a"]
    assert [list(row) for row in Cells.of(records, "one").accuracy("plain").values()] == [
        ["none", "z", "c"]
    ] * 3  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.drop(columns=["label", "psnr"]), "missing: label, psnr"),
        (lambda r: r[:0], "at least one row, got none"),
        (lambda r: r.to_dict(), "a pandas.DataFrame, got dict"),
        (lambda r: r.assign(predicted=0.5), r"whole numbers of at least 0 in predicted, got float"),
        (lambda r: r.assign(label=-1), r"at least 0 in label, got int64 such as \[-1, -1, -1\]"),
        (lambda r: r.assign(success=2), "true or false in success, got int64"),
        (lambda r: r.assign(l2="small"), "numbers in l2, got str"),
        (lambda r: r.assign(image=r["image"].where(r["image"] != "b")), "every row of image"),
        (lambda r: r[r["run"] != 1], "got run 2 where 1 belongs, in a, none, pd:deflections=200"),
        (lambda r: r[r["run"] != 0], "got run 1 where 0 belongs"),
        (lambda r: pd.concat([r, r]), "got run 0 where 1 belongs, in a, none, none"),
        (lambda r: r.assign(label=range(len(r))), "one label for an image, got 0 and 7, in a"),
        (lambda r: r.assign(right_clean=r["run"] == 0), "one right_clean for an image, got"),
        (lambda r: r.assign(target=range(len(r))), "one target for an image, attack and defence"),
    ],
)  # fmt: skip
def test_records_that_cannot_be_are_refused_with_what_came(change, message):
    with pytest.raises(ValueError, match=f"records: expected .*{message}"):
        outcomes(change(small()), "one")


@pytest.mark.parametrize(
    "call", [outcomes, Cells.of, lambda records, word: Report.of(records, decision=word)]
)
def test_an_unknown_decision_is_refused(call):
    with pytest.raises(ValueError, match="one of one, majority, mean, worst, got 'best'"):
        call(small(), "best")
