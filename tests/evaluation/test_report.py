import pandas as pd
import pytest
from records import cell, random_records, records_of, small

from pdutils.evaluation.report import Report, short_names
from pdutils.evaluation.scores import Cells
from pdutils.stats import PairedDifference, Rate


def test_tables_of_small_records_read_as_worked_by_hand():
    tables = Report.of(small(), "paper", "majority").tables
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
        "success": str(Rate(2, 3)),
        # Student's t for 2 degrees of freedom is 4.303, the standard error 0.4 of the mean.
        "relative L2": "0.0167 [0.0030, 0.0932]",
        "L-infinity of 255": "2.0 [2.0, 2.0]",
        "relative L2, successes": "0.0100 [0.0100, 0.0100], n = 2",
        "L-infinity of 255, successes": "2.0 [2.0, 2.0], n = 2",
    }
    assert tables["names"].to_dict("index")["fgsm"] == {"kind": "attack", "in full": "fgsm:eps=2"}


def test_a_baseline_of_one_s_own_is_what_the_others_are_compared_with():
    table = Report.of(small(), "paper", "majority", "pd:deflections=200").tables["differences"]
    assert table.index.name == "defense, minus pd"
    assert list(table.index) == ["none"]
    assert list(table["clean (n = 3)"]) == [str(PairedDifference(2, 1, 0, 0))]


def test_n_stands_in_the_cells_where_it_differs_and_a_dash_where_nothing_is():
    records = small()
    gone = (records["defense"] == "none") & (
        (records["attack"] == "fgsm:eps=2") | (records["image"] == "a")
    )
    tables = Report.of(records[~gone], "plain", "one").tables
    assert list(tables["accuracy"]["clean"]) == [f"{Rate(2, 3)}, n = 3", f"{Rate(3, 4)}, n = 4"]
    assert list(tables["accuracy"]["fgsm (n = 4)"]) == ["-", str(Rate(3, 4))]
    assert tables["differences"].to_dict("list") == {"clean": ["-"], "fgsm": ["-"]}


def test_a_targeted_attack_has_a_table_of_its_own():
    tables = Report.of(random_records(0), "plain", "one").tables
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
    expected = {"accuracy": Cells.of(records, "mean").accuracy("plain"),
                "destruction": Cells.of(records, "mean").destruction(),
                "targeted": Cells.of(records, "mean").targeted_success()}  # fmt: skip
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


def test_records_are_not_changed():
    records = small()
    Report.of(records, "paper", "majority")
    pd.testing.assert_frame_equal(records, small())


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
