import csv
import math
import re
from collections import Counter
from functools import cache

import numpy as np
import pandas as pd
import pytest

from pdutils.report import (
    Report,
    accuracy,
    destruction,
    latex,
    markdown,
    outcomes,
    paired,
    report_tables,
    short_names,
    strength,
    targeted_success,
    write_tables,
)
from pdutils.statistics import Mean, PairedDifference, Rate
from pdutils.store import COLUMNS

# Records written out


def cell(image, attack, defense, predicted, mean=None, *, label=0, target=-1, right_clean=True,
         success=False, l2=0.0, linf=0.0, psnr=40.0, ssim=1.0):  # fmt: skip
    """The rows of one image, attack and defence: one for each class of `predicted`."""
    same = {"image": image, "attack": attack, "defense": defense, "label": label, "target": target,
            "right_clean": right_clean, "success": success, "l2": l2, "linf": linf, "psnr": psnr,
            "ssim": ssim, "p_label": 0.5, "p_attack": 0.25, "attack_class": 1, "rank": 1,
            "seconds": 0.01, "seed": 7}  # fmt: skip
    return [
        same | {"run": run, "predicted": seen, "mean_predicted": of_mean}
        for run, (seen, of_mean) in enumerate(zip(predicted, mean or predicted, strict=True))
    ]


def records_of(*cells) -> pd.DataFrame:
    """Records of some cells."""
    return pd.DataFrame([row for rows in cells for row in rows])[list(COLUMNS)].astype(COLUMNS)


def small() -> pd.DataFrame:
    """Four images, of which d is wrong when clean; fgsm fools the network on all but c."""
    cells = []
    for image, right, fooled in (("a", 1, 1), ("b", 1, 1), ("c", 1, 0), ("d", 0, 1)):
        same = {"right_clean": bool(right)}
        size = {"success": bool(fooled), "l2": {"c": 0.03, "d": 0.05}.get(image, 0.01), "linf": 2.0}
        cells += [
            cell(image, "none", "none", [0 if right else 5], **same),
            cell(image, "none", "pd:deflections=200", [0, 0, 5] if image != "c" else [5, 5, 5],
                 **same),
            cell(image, "fgsm:eps=2", "none", [1 if fooled or not right else 0], **same, **size),
            cell(image, "fgsm:eps=2", "pd:deflections=200",
                 {"a": [1, 0, 0], "b": [0, 1, 1], "c": [0, 0, 0], "d": [0, 1, 0]}[image],
                 [1, 0, 0], **same, **size),
        ]  # fmt: skip
    return records_of(*cells)


# From runs to outcomes


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
    assert targeted_success(records, "worst") == {"pd": {"t": Rate(1, 1)}}
    assert targeted_success(records, "majority") == {"pd": {"t": Rate(0, 1)}}


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
    assert [list(row) for row in accuracy(records, "plain", "one").values()] == [
        ["none", "z", "c"]
    ] * 3  # fmt: skip


@cache
def random_records(seed: int) -> pd.DataFrame:
    """Records of 25 images, with ties, one targeted attack and one made for each defence."""
    rng = np.random.default_rng(seed)
    right, labels = rng.random(25) < 0.7, rng.integers(0, 3, 25)
    cells = []
    for attack in ("igsm:eps=4", "none", "aimed", "bpda"):
        for defense in ("wd", "none", "pd:deflections=5", "pd:deflections=9"):
            for i in range(25):
                own = rng if attack == "bpda" else np.random.default_rng([seed, i, len(attack)])
                made = attack != "none"
                runs = int(rng.integers(2, 6)) if defense.startswith("pd") else 1
                cells.append(
                    cell(
                        f"{i}.png", attack, defense, [*rng.integers(0, 3, runs)],
                        [*rng.integers(0, 3, runs)], label=labels[i], right_clean=right[i],
                        target=(labels[i] + own.integers(1, 3)) % 3 if attack == "aimed" else -1,
                        success=bool(own.random() < 0.6) and made, l2=own.random() * made,
                        linf=float(own.integers(1, 9)) * made, psnr=rng.random(), ssim=rng.random(),
                    )
                )  # fmt: skip
    return records_of(*cells).sample(frac=1, random_state=seed)


def by_cell(records: pd.DataFrame) -> dict:
    cells: dict = {}
    for row in records.sort_values("run").itertuples():
        cells.setdefault((row.attack, row.defense, row.image), []).append(row)
    return cells


def decided(rows, decision: str) -> int:
    """The decision as a loop over the runs."""
    seen, mean, label = [row.predicted for row in rows], rows[-1].mean_predicted, rows[0].label
    if decision == "one":
        return seen[0]
    if decision == "mean":
        return mean
    if decision == "worst":
        wrong = [kind for kind in seen if kind != label]
        return rows[0].target if rows[0].target in wrong else (wrong or [label])[0]
    votes = Counter(seen)
    tied = [kind for kind in seen if votes[kind] == max(votes.values())]
    return mean if mean in tied else tied[0]


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
    plain, paper = (accuracy(records, protocol, decision) for protocol in ("plain", "paper"))
    turned, aimed = destruction(records, decision), targeted_success(records, decision)
    aimed_paper = targeted_success(records, decision, "paper")
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
        found = paired(records, attack, "pd:deflections=9", "wd", protocol, "majority")
        assert found == expected


# Small records, worked by hand


def test_accuracy_of_small_records_is_the_one_worked_by_hand():
    pd_, fgsm = "pd:deflections=200", "fgsm:eps=2"
    assert accuracy(small(), "paper", "majority") == {
        "none": {"none": Rate(3, 3), fgsm: Rate(1, 3)},
        pd_: {"none": Rate(2, 3), fgsm: Rate(2, 3)},
    }
    assert accuracy(small(), "plain", "one")[pd_] == {"none": Rate(3, 4), fgsm: Rate(3, 4)}
    assert accuracy(small(), "plain", "worst")[pd_] == {"none": Rate(0, 4), fgsm: Rate(1, 4)}
    assert accuracy(small(), "plain", "mean")[pd_][fgsm] == Rate(4, 4)


def test_destruction_counts_the_adversaries_that_succeeded_on_images_right_when_clean():
    assert destruction(small(), "majority") == {
        "none": {"fgsm:eps=2": Rate(0, 2)},
        "pd:deflections=200": {"fgsm:eps=2": Rate(1, 2)},
    }


def test_an_attack_that_never_succeeded_has_no_destruction_rate():
    records = small().assign(success=False)
    assert destruction(records, "one")["none"] == {"fgsm:eps=2": None}


def test_a_case_that_was_not_evaluated_has_no_rate():
    records = small()
    gone = (records["attack"] == "fgsm:eps=2") & (records["defense"] == "none")
    found = accuracy(records[~gone], "plain", "one")
    assert found["none"] == {"none": Rate(3, 4), "fgsm:eps=2": None}


def test_strength_is_measured_over_all_images_that_count_and_over_the_successes():
    found = strength(small())["fgsm:eps=2"]
    assert (found.n, found.success) == (3, Rate(2, 3))
    assert found.l2 == Mean.of(np.array([0.01, 0.01, 0.03]))
    assert found.l2_of_successes == Mean.of(np.array([0.01, 0.01]))
    assert found.linf == Mean.of(np.array([2.0, 2.0, 2.0]))
    plain = strength(small(), "plain")["fgsm:eps=2"]
    assert (plain.n, plain.success) == (4, Rate(2, 3))
    assert plain.l2 == Mean.of(np.array([0.01, 0.01, 0.03, 0.05]))
    assert plain.l2_of_successes == found.l2_of_successes
    assert list(strength(small())) == ["fgsm:eps=2"]


def test_an_attack_made_for_each_defence_has_a_strength_against_each():
    records = random_records(0)
    found = strength(records, "plain")
    others = [d for d in records["defense"].unique() if d != "none"]
    against = [name for name in found if name.startswith("bpda")]
    assert against == [f"bpda against {d}" for d in ("none", *others)]
    own = records[(records["attack"] == "bpda") & (records["defense"] == "wd")]
    assert math.isclose(found["bpda against wd"].l2.value, own["l2"].mean())
    assert "igsm:eps=4" in found


def test_without_an_image_right_when_clean_nothing_counts():
    records = small().assign(right_clean=False)
    assert accuracy(records, "paper", "one")["none"] == {"none": None, "fgsm:eps=2": None}
    found = strength(records)["fgsm:eps=2"]
    assert (found.n, found.success, found.l2, found.linf_of_successes) == (0, None, None, None)
    with pytest.raises(ValueError, match="expected an image that is right when clean, got none"):
        paired(records, "none", "none", "pd:deflections=200", "paper", "one")


def test_numbers_from_a_database_and_categories_are_read_alike():
    records = random_records(4)
    other = records.astype({"right_clean": int, "success": int, "image": "category",
                            "attack": "category", "defense": "category"})  # fmt: skip
    assert accuracy(other, "paper", "majority") == accuracy(records, "paper", "majority")


def test_records_are_not_changed():
    records = small()
    Report.of(records, "paper", "majority")
    pd.testing.assert_frame_equal(records, small())


# What is refused


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


@pytest.mark.parametrize("call", [outcomes, destruction, targeted_success])
def test_an_unknown_decision_is_refused(call):
    with pytest.raises(ValueError, match="one of one, majority, mean, worst, got 'best'"):
        call(small(), "best")


@pytest.mark.parametrize(
    "call",
    [
        lambda p: accuracy(small(), p, "one"),
        lambda p: strength(small(), p),
        lambda p: targeted_success(small(), "one", p),
        lambda p: paired(small(), "none", "none", "none", p, "one"),
        lambda p: report_tables(small(), p, "one"),
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
        with pytest.raises(ValueError, match=f"on the same images under 'none', got 4 and {n} im"):
            paired(changed, "none", "pd:deflections=200", "none", "plain", "one")


def test_a_comparison_with_what_was_not_evaluated_is_refused():
    with pytest.raises(ValueError, match="'none' with defence 'wd', got the attacks none, f"):
        paired(small(), "none", "wd", "none", "plain", "one")
    with pytest.raises(ValueError, match=r"baseline: expected one of the defences none, pd.*'wd'"):
        report_tables(small(), "paper", "one", "wd")


# Tables


def test_tables_of_small_records_read_as_worked_by_hand():
    tables = report_tables(small(), "paper", "majority")
    assert list(tables) == ["accuracy", "destruction", "strength", "differences", "names"]
    assert tables["accuracy"].index.name == "defense"
    assert tables["accuracy"].to_dict("index") == {
        "none": {"clean (n = 3)": "1.00 [0.44, 1.00]", "fgsm (n = 3)": "0.33 [0.06, 0.79]"},
        "pd": {"clean (n = 3)": "0.67 [0.21, 0.94]", "fgsm (n = 3)": "0.67 [0.21, 0.94]"},
    }
    assert tables["destruction"].to_dict("index") == {
        "none": {"fgsm (n = 2)": "0.00 [0.00, 0.66]"},
        "pd": {"fgsm (n = 2)": "0.50 [0.09, 0.91]"},
    }
    assert tables["differences"].index.name == "defense, minus none"
    assert tables["differences"].to_dict("index") == {
        "pd": {
            "clean (n = 3)": str(PairedDifference(2, 0, 1, 0)),
            "fgsm (n = 3)": str(PairedDifference(1, 1, 0, 1)),
        }
    }
    (row,) = tables["strength"].to_dict("index").values()
    assert row == {
        "n": "3",
        "success": f"{Rate(2, 3)}, n = 3",
        "relative L2": "0.0167 [-0.0120, 0.0454], n = 3",
        "L-infinity of 255": "2.0 [2.0, 2.0], n = 3",
        "relative L2, successes": "0.0100 [0.0100, 0.0100], n = 2",
        "L-infinity of 255, successes": "2.0 [2.0, 2.0], n = 2",
    }
    assert tables["names"].to_dict("index")["fgsm"] == {"kind": "attack", "in full": "fgsm:eps=2"}


def test_a_baseline_of_one_s_own_is_what_the_others_are_compared_with():
    table = report_tables(small(), "paper", "majority", "pd:deflections=200")["differences"]
    assert table.index.name == "defense, minus pd"
    assert list(table.index) == ["none"]
    assert list(table["clean (n = 3)"]) == [str(PairedDifference(2, 1, 0, 0))]


def test_n_stands_in_the_cells_where_it_differs_and_a_dash_where_nothing_is():
    records = small()
    gone = (records["defense"] == "none") & (
        (records["attack"] == "fgsm:eps=2") | (records["image"] == "a")
    )
    tables = report_tables(records[~gone], "plain", "one")
    assert list(tables["accuracy"]["clean"]) == [f"{Rate(2, 3)}, n = 3", f"{Rate(3, 4)}, n = 4"]
    assert list(tables["accuracy"]["fgsm (n = 4)"]) == ["-", str(Rate(3, 4))]
    assert tables["differences"].to_dict("list") == {"clean": ["-"], "fgsm": ["-"]}


def test_a_targeted_attack_has_a_table_of_its_own():
    tables = report_tables(random_records(0), "plain", "one")
    assert list(tables["targeted"].columns) == ["aimed (n = 25)"]


def test_clean_images_alone_make_a_report():
    records = small().query("attack == 'none'")
    report = Report.of(records, "paper", "one")
    assert list(report.tables["accuracy"].columns) == ["clean (n = 3)"]
    assert "### Destruction" not in str(report)
    assert set(report.numbers["measure"]) == {"accuracy"}


def test_numbers_hold_every_rate_with_its_interval():
    records = random_records(0)
    numbers = Report.of(records, "plain", "mean").numbers
    assert list(numbers.columns) == ["measure", "protocol", "decision", "attack", "defense", "n",
                                     "successes", "rate", "low", "high"]  # fmt: skip
    expected = {"accuracy": accuracy(records, "plain", "mean"),
                "destruction": destruction(records, "mean"),
                "targeted": targeted_success(records, "mean")}  # fmt: skip
    assert len(numbers) == 16 + 12 + 4
    for row in numbers.itertuples():
        rate = expected[row.measure][row.defense][row.attack]
        assert (row.n, row.successes, row.rate) == (rate.n, rate.successes, rate.value)
        assert (row.low, row.high) == rate.interval
        assert row.protocol == ("paper" if row.measure == "destruction" else "plain")


def test_short_names_keep_what_tells_them_apart():
    texts = ["none", "fgsm:eps=2", "igsm:eps=4,iterations=10", "igsm:eps=2,iterations=10", "igsm"]
    assert list(short_names(texts).values()) == [
        "none", "fgsm", "igsm eps=4 iterations=10", "igsm eps=2 iterations=10", "igsm"]  # fmt: skip
    assert list(short_names(texts[:4]).values()) == ["none", "fgsm", "igsm eps=4", "igsm eps=2"]
    assert short_names(["a:x=1", "a x=1", "a"]) == {t: t for t in ("a:x=1", "a x=1", "a")}


# What must be said


def said(records, *arguments, **options) -> str:
    return "\n".join(Report.of(records, *arguments, **options).sentences)


def test_the_protocol_and_the_decision_are_always_said():
    assert said(small(), "paper", "worst").splitlines()[:2] == [
        "Protocol paper: only images that the undefended network gets right when clean. The "
        "undefended network gets 3 of 4 images right when clean.",
        "Decision worst: right only if every run is right.",
    ]


def test_nothing_more_is_said_where_nothing_more_is_to_be_said():
    records = records_of(cell("a", "none", "none", [0]), cell("a", "none", "pd", [0, 0]))
    assert len(Report.of(records, "plain", "majority").sentences) == 2


@pytest.mark.parametrize("protocol", ["paper", "plain"])
def test_it_is_said_that_no_image_is_right_when_clean(protocol):
    assert "No image is right when clean" in said(
        small().assign(right_clean=False), protocol, "one"
    )
    assert "No image is right" not in said(small(), protocol, "one")


def test_an_attack_that_never_succeeded_is_named():
    records = small().assign(success=lambda r: r["success"] & ~r["right_clean"])
    expected = "Attack fgsm:eps=2 never succeeded without a defence, on 3 images right when clean"
    assert expected in said(records, "plain", "one")
    assert "never succeeded" not in said(small(), "plain", "one")


def test_skipped_images_are_named_with_the_reason():
    records = small()
    assert "skipped" not in said(records, "paper", "one")
    listed = [(f"{i}.png", "no such file") for i in range(7)]
    text = said(records, "paper", "one", skipped=listed)
    assert "7 images skipped: 0.png (no such file), 1.png" in text
    assert "4.png (no such file) and 2 more." in text
    records.attrs["skipped"] = listed[:1]
    assert "1 image skipped: 0.png (no such file)." in said(records, "paper", "one")


def test_missing_cases_are_named():
    records = small()
    gone = (records["image"] == "a") & (records["defense"] == "none")
    expected = "Not all 4 images were evaluated with every attack and defence: none with none (3)"
    assert expected in said(records[~gone], "plain", "one")
    assert "Not all" not in said(records, "plain", "one")


def test_single_runs_and_uneven_runs_are_named():
    expected = "A single run each of pd:deflections=200:"
    assert expected in said(small().query("run == 0"), "plain", "one")
    assert "single run" not in said(small(), "plain", "one")
    # Of a defence that draws nothing there is only one; of an unknown one there may be more.
    single = [cell("a", "none", defense, [0]) for defense in ("none", "wd", "mine", "pd")]
    assert "A single run each of mine, pd:" in said(records_of(*single), "plain", "one")
    uneven = small().query("run == 0 or image != 'a'")
    assert "Defence pd:deflections=200 has 1 to 3 runs an image." in said(uneven, "plain", "one")


def test_an_attack_made_for_each_defence_is_named():
    text = said(random_records(0), "plain", "one")
    assert text.count("made another adversary for each defence") == 1
    assert "Attack bpda made another" in text


def clean(right: int, kept: int, gained: int) -> pd.DataFrame:
    """Clean images: `right` without a defence, `kept` of them with it, `gained` of ten more."""
    cells = []
    for i in range(right + 10):
        seen = i < kept or right <= i < right + gained
        cells += [
            cell(f"{i}", "none", "none", [0 if i < right else 1], right_clean=i < right),
            cell(f"{i}", "none", "wd", [0 if seen else 1] * 2, right_clean=i < right),
        ]
    return records_of(*cells)


def test_a_defence_that_costs_clean_accuracy_significantly_is_named_with_all_images():
    for protocol in ("paper", "plain"):
        text = said(clean(20, 12, 0), protocol, "one")
        expected = PairedDifference(12, 0, 8, 10)
        assert f"wd costs clean accuracy: {expected} against none, over all 30 images." in text
    # As many lost, but others gained: the paper's protocol would see the losses alone.
    assert "costs" not in said(clean(20, 12, 7), "paper", "one")
    # Five losses and no gain have p = 0.0625.
    assert "costs" not in said(clean(20, 15, 0), "paper", "one")


def test_several_p_values_are_said_to_stand_uncorrected():
    assert "The p-values of the 2 differences stand uncorrected." in said(small(), "paper", "one")
    assert "uncorrected" not in said(small().query("attack == 'none'"), "paper", "one")


# Writing


def test_written_tables_read_back_equal(tmp_path):
    report = Report.of(random_records(0), "plain", "majority")
    files = report.write(tmp_path / "new" / "folder", "run")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(
        p.name for p in files
    )
    for name, table in report.tables.items():
        path = tmp_path / "new" / "folder" / f"run_{name}.csv"
        read = pd.read_csv(path, dtype=str, index_col=0, keep_default_na=False)
        pd.testing.assert_frame_equal(read, table, check_dtype=False, check_index_type=False,
                                      check_column_type=False)  # fmt: skip
    with (tmp_path / "new" / "folder" / "run_numbers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name, values in report.numbers.items():
        assert [type(values[0])(row[name]) for row in rows] == list(values)


def test_the_page_holds_the_sentences_and_every_table(tmp_path):
    report = Report.of(small(), "paper", "majority")
    report.write(tmp_path, "run")
    page = (tmp_path / "run.md").read_text(encoding="utf-8")
    assert page == str(report)
    for sentence in report.sentences:
        assert f"- {sentence}\n" in page
    for table in report.tables.values():
        assert markdown(table) in page


def test_a_table_that_fails_leaves_the_older_files_whole(tmp_path, monkeypatch):
    tables = report_tables(small(), "paper", "one")
    write_tables(tables, tmp_path, "run")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(path, text, **options):
        with path.open("w") as file:
            file.write(text[:10])
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tables(report_tables(small(), "plain", "one"), tmp_path, "run")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("stem", ["", "a/b", "../run"])
def test_a_stem_that_is_no_file_name_is_refused(tmp_path, stem):
    with pytest.raises(ValueError, match="stem: expected a file name without a folder, got"):
        write_tables({}, tmp_path, stem)


def test_markdown_is_aligned_and_keeps_its_cells_apart():
    table = pd.DataFrame({"a|b": ["x", "long cell"]}, index=pd.Index(["one", "two"], name="row"))
    assert markdown(table) == (
        "| row | a\\|b      |\n| --- | --------- |\n| one | x         |\n| two | long cell |"
    )


def unescaped(text: str) -> list[str]:
    """The signs that LaTeX would read as commands."""
    return re.findall(r"(?<!\\)[&%$#_{}~^]", text)


def test_latex_escapes_what_it_would_read_as_commands():
    table = pd.DataFrame({"50% & #1": ["a_b", r"x\y{z}~^$<"]}, index=pd.Index(["p", "q"], name="r"))
    lines = latex(table, "5 % of a_b").splitlines()
    assert lines[2] == r"\caption{5 \% of a\_b}"
    head, first, second = lines[5], lines[7], lines[8]
    assert head == r"r & 50\% \& \#1 \\"
    assert first == r"p & a\_b \\"
    assert second == (
        r"q & x\textbackslash{}y\{z\}\textasciitilde{}\textasciicircum{}\$\textless{} \\"
    )


def test_latex_of_a_report_is_balanced_and_every_row_has_its_cells():
    for name, table in report_tables(random_records(0), "paper", "majority").items():
        text = latex(table, name)
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == [
            ("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table")
        ]  # fmt: skip
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 1 + len(table)
        for row in rows:
            assert set(unescaped(re.sub(r"\\text\w+\{\}", "", row))) <= {"&"}
            assert unescaped(row).count("&") == len(table.columns)
        for rule in ("toprule", "midrule", "bottomrule"):
            assert text.count(f"\\{rule}") == 1
