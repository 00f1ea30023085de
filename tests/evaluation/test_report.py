import csv
import re

import pandas as pd
import pytest
from records import cell, cells_of, random_records, records_of, small

from pdutils.evaluation.report import Report, _latex, _markdown, short_names
from pdutils.stats import PairedDifference, Rate


def report_of(records, protocol="paper", aggregate="one", baseline=None, **options) -> Report:
    return Report.of(cells_of(records, aggregate), protocol, aggregate, baseline, **options)


def test_tables_of_small_records_read_as_worked_by_hand():
    tables = report_of(small(), "paper", "majority").tables
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
    table = report_of(small(), "paper", "majority", "pd:deflections=200").tables["differences"]
    assert table.index.name == "defense, minus pd"
    assert list(table.index) == ["none"]
    assert list(table["clean (n = 3)"]) == [str(PairedDifference(2, 1, 0, 0))]
    with pytest.raises(ValueError, match=r"baseline: expected one of the defences none, pd.*'wd'"):
        report_of(small(), baseline="wd")


def test_n_stands_in_the_cells_where_it_differs_and_a_dash_where_nothing_is():
    records = small()
    gone = (records["defense"] == "none") & (
        (records["attack"] == "fgsm:eps=2") | (records["image"] == "a")
    )
    tables = report_of(records[~gone], "plain", "one").tables
    rates = tables["accuracy"].to_dict("index")
    assert rates["none"] == {"clean": f"{Rate(2, 3)}, n = 3", "fgsm (n = 4)": "-"}
    assert rates["pd"] == {"clean": f"{Rate(3, 4)}, n = 4", "fgsm (n = 4)": str(Rate(3, 4))}
    assert tables["differences"].to_dict("list") == {"clean": ["-"], "fgsm": ["-"]}


def test_a_targeted_attack_has_a_table_of_its_own():
    tables = report_of(random_records(0), "plain", "one").tables
    assert list(tables["targeted"].columns) == ["aimed (n = 25)"]


def test_clean_images_alone_make_a_report():
    records = small().query("attack == 'none'")
    report = report_of(records, "paper", "one")
    assert list(report.tables["accuracy"].columns) == ["clean (n = 3)"]
    assert "### Destruction" not in str(report)
    assert set(report.numbers["measure"]) == {"accuracy"}


def test_numbers_hold_every_rate_with_its_interval():
    records = random_records(0)
    numbers = report_of(records, "plain", "mean").numbers
    assert list(numbers.columns) == ["measure", "protocol", "aggregate", "attack", "defense", "n",
                                     "successes", "rate", "low", "high"]  # fmt: skip
    found = cells_of(records, "mean")
    expected = {"accuracy": found.accuracy("plain"), "destruction": found.destruction(),
                "targeted": found.targeted_success("plain")}  # fmt: skip
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


def said(records, *arguments, **options) -> str:
    return "\n".join(report_of(records, *arguments, **options).sentences)


def test_the_protocol_and_the_aggregate_are_always_said():
    assert said(small(), "paper", "worst").splitlines()[:2] == [
        "Protocol paper: only images that the undefended network gets right when clean. The "
        "undefended network gets 3 of 4 images right when clean.",
        "Aggregate worst: right only if every run is right.",
    ]


def test_nothing_more_is_said_where_nothing_more_is_to_be_said():
    records = records_of(cell("a", "none", "none", [0]), cell("a", "none", "pd", [0, 0]))
    assert len(report_of(records, "plain", "majority").sentences) == 2


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
    assert "1 image skipped: 0.png (no such file)." in said(records, skipped=listed[:1])


def test_missing_cases_are_named():
    records = small()
    gone = (records["image"] == "a") & (records["defense"] == "none")
    expected = "Not all 4 images were evaluated with every attack and defence: none with none (3)"
    assert expected in said(records[~gone], "plain", "one")
    assert "Not all" not in said(records, "plain", "one")


def test_single_runs_are_named():
    expected = "A single run each of pd:deflections=200:"
    assert expected in said(small().query("run == 0"), "plain", "one")
    assert "single run" not in said(small(), "plain", "one")
    # Of a defence that draws nothing there is only one; of an unknown one there may be more.
    single = [cell("a", "none", defense, [0]) for defense in ("none", "wd", "own:mine@1", "pd")]
    assert "A single run each of own:mine@1, pd:" in said(records_of(*single), "plain", "one")


def test_rows_that_differ_in_more_than_their_names_say_are_told():
    def of(*defenses):
        return records_of(*(cell("a", "none", d, [0, 0]) for d in ("none", *defenses)))

    def told(*defenses) -> str:
        return said(of(*defenses))

    expected = "deflections is 200 in pd, pd+wd and 1500 in pd+rcam+wd"
    assert f"More than one thing differs: {expected}." in told("pd", "pd+wd", "pd+rcam+wd")
    names = report_of(of("pd+wd", "pd+rcam+wd")).tables["names"]
    assert list(names["settings that differ"]) == ["", "", "deflections=200", "deflections=1500"]
    assert "differs" not in told("pd", "wd", "pd+wd", "jpeg", "own:mine@1")


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


def test_written_tables_read_back_equal(tmp_path):
    report, folder = report_of(random_records(0), "plain", "majority"), tmp_path / "new" / "folder"
    files = report.write(folder, "run")
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in files)
    for name, table in report.tables.items():
        read = pd.read_csv(folder / f"run_{name}.csv", dtype=str, index_col=0,
                           keep_default_na=False)  # fmt: skip
        pd.testing.assert_frame_equal(read, table, check_dtype=False, check_index_type=False,
                                      check_column_type=False)  # fmt: skip
    with (folder / "run_numbers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name, values in report.numbers.items():
        assert [type(values[0])(row[name]) for row in rows] == list(values)


def test_the_page_holds_the_sentences_and_every_table(tmp_path):
    report = report_of(small(), "paper", "majority")
    report.write(tmp_path, "run")
    page = (tmp_path / "run.md").read_text(encoding="utf-8")
    assert page == str(report)
    for sentence in report.sentences:
        assert f"- {sentence}\n" in page
    for table in report.tables.values():
        assert _markdown(table) in page


def test_a_table_that_fails_leaves_the_older_files_whole(tmp_path, monkeypatch):
    report_of(small()).write(tmp_path, "run")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(path, text, **options):
        with path.open("w") as file:
            file.write(text[:10])
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        report_of(small(), "plain").write(tmp_path, "run")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_markdown_is_aligned_and_keeps_its_cells_apart():
    table = pd.DataFrame({"a|b": ["x", "long cell"]}, index=pd.Index(["one", "two"], name="row"))
    assert _markdown(table) == (
        "| row | a\\|b      |\n| --- | --------- |\n| one | x         |\n| two | long cell |"
    )


def unescaped(text: str) -> list[str]:
    """The signs that LaTeX would read as commands."""
    return re.findall(r"(?<!\\)[&%$#_{}~^]", text)


def test_latex_escapes_what_it_would_read_as_commands():
    table = pd.DataFrame({"50% & #1": ["a_b", r"x\y{z}~^$<"]}, index=pd.Index(["p", "q"], name="r"))
    lines = _latex(table, "5 % of a_b").splitlines()
    assert lines[2] == r"\caption{5 \% of a\_b}"
    head, first, second = lines[5], lines[7], lines[8]
    assert head == r"r & 50\% \& \#1 \\"
    assert first == r"p & a\_b \\"
    assert second == (
        r"q & x\textbackslash{}y\{z\}\textasciitilde{}\textasciicircum{}\$\textless{} \\"
    )


def test_latex_of_a_report_is_balanced_and_every_row_has_its_cells():
    for name, table in report_of(random_records(0), "paper", "majority").tables.items():
        text = _latex(table, name)
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
