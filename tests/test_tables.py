import json
from dataclasses import make_dataclass

import numpy as np
import pytest

from pdutils import tables
from pdutils.stats import Mean, PairedDifference, Rate


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


@pytest.mark.parametrize(
    ("rates", "column", "cells"),
    [
        ([Rate(9, 10)], "clean (n = 10)", [str(Rate(9, 10))]),
        # n stands in the cell where it differs between rows.
        ([Rate(9, 10), Rate(4, 8)], "clean", [f"{Rate(9, 10)}, n = 10", f"{Rate(4, 8)}, n = 8"]),
        ([None, Rate(4, 8)], "clean (n = 8)", ["-", str(Rate(4, 8))]),
        ([None], "clean", ["-"]),
    ],
)
def test_rate_table_states_n_and_intervals_and_has_a_dash_where_nothing_was_counted(
    rates, column, cells
):
    table = tables.rate_table({f"row {i}": {"clean": rate} for i, rate in enumerate(rates)})
    assert table.to_dict("list") == {column: cells}
    assert list(table.index) == [f"row {i}" for i in range(len(rates))]


def test_rate_table_of_nothing_is_empty():
    assert tables.rate_table({}).size == 0


def test_plain_figures_are_shown_as_they_are():
    table = tables.number_table({"PD": {"FGSM": 0.735, "IGSM": None}})
    assert table.to_dict("index") == {"PD": {"FGSM": "0.735", "IGSM": "-"}}


def test_show_results_is_json_whatever_numbers_it_is_given_and_reads_as_short_text(monkeypatch):
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    tables.show_results(
        {
            "headline": "a",
            "rate": Rate(1, 2),
            "mean": Mean.of(np.array([1.0])),
            "paired": PairedDifference(5, 3, 0, 2),
            "array": np.array([0.5, np.nan], dtype=np.float32),
            "number": np.int64(3),
            "point": make_dataclass("Point", ["x", "ends"])(0.1, (1, 2)),
            "deep": {"none": None, "flag": True, "draws": list(range(20))},
        }
    )
    (bundle,) = bundles
    read = json.loads(json.dumps(bundle["application/json"], allow_nan=False))
    assert read.pop("rate") == {
        "value": 0.5,
        "n": 2,
        "interval": pytest.approx(Rate(1, 2).interval, abs=1e-6),
    }
    # Of three images that one of the two alone gets right, all fall to the first: 2 / 2^3.
    paired = read.pop("paired")
    assert (paired["value"], paired["n"], paired["p"]) == (0.3, 10, 0.25)
    assert read == {
        "headline": "a",
        "mean": {"value": 1, "n": 1, "interval": [None, None]},
        "array": [0.5, None],
        "number": 3,
        "point": {"x": 0.1, "ends": [1, 2]},
        "deep": {"none": None, "flag": True, "draws": list(range(20))},
    }
    text = json.loads(bundle["text/plain"])
    assert text["deep"]["draws"] == "20 values"
    assert text["point"] == read["point"]
