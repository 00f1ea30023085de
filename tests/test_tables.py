import json
from dataclasses import dataclass

import numpy as np
import pytest

from pdutils import tables
from pdutils.stats import Mean, PairedDifference, Rate

NAMES = ("badger", "skunk", "fox")


@dataclass
class Point:
    x: float
    ends: tuple[int, int]


def steps():
    return {
        "adversary": np.array([0.2, 0.7, 0.1]),
        "PD 600": np.array([[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.8, 0.1, 0.1]]),
    }


def test_step_table_gives_means_extremes_and_the_class_seen_most():
    table = tables.step_table(steps(), label=0, attacked_label=1, names=NAMES)
    row = table.loc["PD 600"]
    assert (row["badger"], row["skunk"]) == ("0.60", "0.30")
    assert (row["range"], row["draws"]) == ("0.40 to 0.80", "3")
    assert table.loc["adversary", "range"] == ""
    assert list(table["seen as"]) == ["skunk", "badger"]


def test_step_table_sets_the_blog_beside_its_own_steps_only():
    others = {"clean, PD 600": np.array([1.0, 0, 0]), "mine": np.array([1.0, 0, 0])}
    table = tables.step_table(steps() | others, label=0, attacked_label=1, names=NAMES)
    # Of the clean image after deflection the blog states the true class alone.
    assert list(table["blog: badger, skunk"]) == ["0.15, 0.59", "0.75, 0.16", "1.00", ""]


def test_zone_table_counts_what_lies_inside_beside_an_even_spread():
    zone = np.zeros((4, 5), dtype=bool)
    zone[:2, :2] = True
    changed = np.zeros((4, 5), dtype=bool)
    changed[0, 0] = changed[3, 3] = changed[3, 4] = changed[2, 0] = True
    half = np.eye(4, 5, dtype=bool)
    table = tables.zone_table({"PD": changed, "half": half, "none": np.zeros_like(zone)}, zone)
    assert list(table.loc["half"]) == ["2", "2", "50%"]
    assert list(table.loc["PD"]) == ["1", "3", "25%"]
    assert list(table.loc["none"]) == ["0", "0", "-"]
    assert list(table.loc["all pixels"]) == ["4", "16", "20%"]


def test_step_table_leaves_out_the_blog_and_the_attack_s_class_where_there_are_none():
    mine = {"mine": np.array([1.0, 0, 0])}
    table = tables.step_table(mine, label=0, attacked_label=1, names=NAMES)
    assert list(table.columns) == ["badger", "skunk", "seen as"]
    table = tables.step_table(mine, label=0, attacked_label=0, names=NAMES)
    assert list(table.columns) == ["badger", "seen as"]


def test_rate_table_states_n_and_the_interval_in_the_cell_where_n_differs_between_rows():
    table = tables.rate_table({"PD": {"clean": Rate(9, 10)}})
    assert table.loc["PD", "clean (n = 10)"] == str(Rate(9, 10))
    table = tables.rate_table({"PD": {"clean": Rate(9, 10)}, "WD": {"clean": Rate(4, 8)}})
    assert table.loc["WD", "clean"] == f"{Rate(4, 8)}, n = 8"


def test_rate_table_has_a_dash_where_nothing_was_counted():
    table = tables.rate_table({"PD": {"fgsm": None}, "WD": {"fgsm": Rate(4, 8)}})
    assert list(table["fgsm (n = 8)"]) == ["-", str(Rate(4, 8))]
    assert list(tables.rate_table({"PD": {"fgsm": None}})["fgsm"]) == ["-"]
    assert tables.rate_table({}).size == 0


def test_plain_figures_are_shown_as_they_are():
    table = tables.number_table({"PD": {"FGSM": 0.735, "IGSM": None}})
    assert table.to_dict("index") == {"PD": {"FGSM": "0.735", "IGSM": "-"}}


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def test_show_results_is_json_whatever_numbers_it_is_given(shown):
    tables.show_results(
        {
            "headline": "a",
            "rate": Rate(1, 2),
            "mean": Mean.of(np.array([1.0])),
            "paired": PairedDifference(5, 3, 0, 2),
            "array": np.array([0.5, np.nan], dtype=np.float32),
            "number": np.int64(3),
            "point": Point(0.1, (1, 2)),
            "deep": {"none": None, "flag": True},
        }
    )
    (bundle,) = shown
    read = json.loads(json.dumps(bundle["application/json"], allow_nan=False))
    assert read["rate"]["value"] == 0.5
    assert read["rate"]["n"] == 2
    assert read["rate"]["interval"] == pytest.approx(Rate(1, 2).interval, abs=1e-6)
    assert read["mean"]["interval"] == [None, None]
    # Of three images that one of the two alone gets right, all fall to the first: 2 / 2^3.
    assert (read["paired"]["value"], read["paired"]["n"], read["paired"]["p"]) == (0.3, 10, 0.25)
    assert read["array"] == [0.5, None]
    assert read["number"] == 3
    assert read["point"] == {"x": 0.1, "ends": [1, 2]}
    assert read["deep"] == {"none": None, "flag": True}


def test_show_results_reads_as_short_text(shown):
    tables.show_results({"headline": "a", "draws": list(range(20))})
    text = json.loads(shown[0]["text/plain"])
    assert text == {"headline": "a", "draws": "20 values"}
