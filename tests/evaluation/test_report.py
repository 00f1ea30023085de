import re

import numpy as np
import pandas as pd
import pytest
from made_records import by_cell, cell, cells_of, decided, random_records, records_of, small

from pdutils.evaluation import report as module
from pdutils.evaluation.report import AGGREGATES, Cells, Report, Strength, compare
from pdutils.stats import Mean, PairedDifference, Rate

PD, FGSM = "pd:deflections=200", "fgsm:eps=2"
MEASURES = ("accuracy", "destruction", "targeted")


def report_of(records, protocol="paper", aggregate="one", baseline=None, **options) -> Report:
    return Report.of(cells_of(records, aggregate), protocol, aggregate, baseline, **options)


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
    for protocol in ("plain", "paper"):
        rates = {measure: found.rates(measure, protocol) for measure in MEASURES}
        for (defense, attack), seen in hits.items():
            right = [s for s in seen if s[2]]
            counted = right if protocol == "paper" else seen
            fooled = [s for s in right if s[3]]
            expected = {"accuracy": Rate(sum(s[0] for s in counted), len(counted))}
            if attack != "none":
                expected["destruction"] = Rate(sum(s[0] for s in fooled), len(fooled))
            if attack == "aimed":
                expected["targeted"] = Rate(sum(s[1] for s in counted), len(counted))
            own = {measure: rates[measure][defense] for measure in MEASURES}
            assert {m: row[attack] for m, row in own.items() if attack in row} == expected


def test_strength_is_measured_over_all_images_that_count_and_over_the_successes():
    def mean(*sizes):
        return Mean.of(np.array(sizes))

    won = mean(0.01, 0.01), mean(2.0, 2.0)
    for protocol, *expected in (
        ("paper", 3, Rate(2, 3), mean(0.01, 0.01, 0.03), mean(2.0, 2.0, 2.0)),
        ("plain", 4, Rate(2, 3), mean(0.01, 0.01, 0.03, 0.05), mean(*[2.0] * 4)),
    ):
        found = cells_of(small()).strengths(protocol)
        assert found == {(FGSM, None): Strength(*expected, *won)}
    # Without an image right when clean nothing counts.
    found = cells_of(small().assign(right_clean=False))
    assert found.rates("accuracy")["none"] == {"none": None, FGSM: None}
    assert found.strengths("paper")[FGSM, None] == Strength(0, *[None] * 5)
    with pytest.raises(ValueError, match="an image that is right when clean, got none"):
        compare(found, ("none", "none"), found, (PD, "none"), "paper")


def test_a_case_that_was_not_evaluated_has_no_rate_and_no_comparison():
    found = cells_of(small().query(f"not (attack == '{FGSM}' and defense == 'none')"))
    assert found.rates("accuracy", "plain")["none"] == {"none": Rate(3, 4), FGSM: None}
    fewer = cells_of(small().query("not (image == 'b' and defense == 'none')"))
    for cells, pair, message in (
        (found, ("none", FGSM), r"expected records of attack '.*got the attacks"),
        (found, ("wd", "none"), r"expected records of attack '.*got the attacks"),
        (fewer, ("none", "none"), r"none under none and pd:deflections=200 under .* got 3 and 4"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(cells, pair, cells, (PD, "none"), "plain")


def test_names_stand_for_texts_and_two_may_stand_for_one():
    names = {"clean": "none", "weak": FGSM, "again": FGSM}
    found = Cells.of([small()], "one", names, {"PD": PD})
    assert found.rates("accuracy", "plain") == {"PD": dict.fromkeys(names, Rate(3, 4))}
    assert found.made == ["weak", "again"]


def test_records_that_come_in_blocks_give_what_they_give_at_once():
    records = random_records(5)
    whole, images = cells_of(records, "majority"), records["image"].unique()
    blocks = (records[records["image"].isin(half)] for half in (images[:3], images[3:]))
    parts = Cells.of(blocks, "majority", whole.attacks, whole.defenses)
    assert parts.images == whole.images == 25
    for key, cell_ in whole.cells.items():
        pd.testing.assert_frame_equal(parts.cells[key], cell_)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match=r"aggregate: expected one of \('one', .*got 'best'"):
        cells_of(small(), "best")
    found, pair = cells_of(small()), ("none", "none")
    for call, given in (
        (found.rates, ("targeted", "fair")),
        (found.strengths, ("fair",)),
        (compare, (found, pair, found, pair, "fair")),
    ):
        with pytest.raises(ValueError, match=r"protocol: expected one of .* got 'fair'"):
            call(*given)
    with pytest.raises(ValueError, match=r"baseline: expected one of \('none', 'pd.*got 'wd'"):
        report_of(small(), baseline="wd")


def test_tables_of_small_records_read_as_worked_by_hand():
    tables = report_of(small(), "paper", "majority").tables
    assert list(tables) == ["accuracy", "destruction", "strength", "differences", "names"]
    assert tables["accuracy"].to_csv() == (
        "defense,clean (n = 3),fgsm (n = 3)\n"
        'none,"1.00 [0.44, 1.00]","0.33 [0.06, 0.79]"\n'
        'pd,"0.67 [0.21, 0.94]","0.67 [0.21, 0.94]"\n'
    )
    assert tables["destruction"].to_csv() == (
        'defense,fgsm (n = 2)\nnone,"0.00 [0.00, 0.66]"\npd,"0.50 [0.09, 0.91]"\n'
    )
    assert tables["differences"].to_csv() == (
        '"defense, minus none",clean (n = 3),fgsm (n = 3)\n'
        f'pd,"{PairedDifference(2, 0, 1, 0)}","{PairedDifference(1, 1, 0, 1)}"\n'
    )
    # Student's t for 2 degrees of freedom is 4.303, the standard error 0.4 of the mean.
    assert tables["strength"].reset_index().to_dict("records") == [
        {"attack": "fgsm", "n": "3", "success": str(Rate(2, 3)),
         "relative L2": "0.0167 [0.0030, 0.0932]", "L-infinity of 255": "2.0 [2.0, 2.0]",
         "relative L2, successes": "0.0100 [0.0100, 0.0100], n = 2",
         "L-infinity of 255, successes": "2.0 [2.0, 2.0], n = 2"},
    ]  # fmt: skip
    assert tables["names"].to_dict("index")["fgsm"] == {"kind": "attack", "in full": FGSM}
    alone = report_of(small().query("image == 'a'")).tables["strength"]
    assert list(alone["relative L2"]) == ["0.0100"]


def test_n_stands_in_the_cells_where_it_differs_and_a_dash_where_nothing_is():
    kept = small().query(f"not (defense == 'none' and (attack == '{FGSM}' or image == 'a'))")
    tables = report_of(kept, "plain").tables
    rates = tables["accuracy"].to_dict("index")
    assert rates["none"] == {"clean": f"{Rate(2, 3)}, n = 3", "fgsm (n = 4)": "-"}
    assert rates["pd"] == {"clean": f"{Rate(3, 4)}, n = 4", "fgsm (n = 4)": str(Rate(3, 4))}
    assert tables["differences"].to_dict("list") == {"clean": ["-"], "fgsm": ["-"]}
    report = report_of(small().query("attack == 'none'"))
    assert list(report.tables["accuracy"].columns) == ["clean (n = 3)"]
    assert "### Destruction" not in str(report)


def test_numbers_hold_every_rate_with_its_interval():
    records = random_records(0)
    found, report = cells_of(records, "mean"), report_of(records, "plain", "mean")
    assert list(report.tables["targeted"].columns) == ["aimed (n = 25)"]
    assert len(report.numbers) == 16 + 12 + 4
    for row in report.numbers.to_dict("records"):
        measure = row["measure"]
        rate = found.rates(measure, "plain")[row["defense"]][row["attack"]]
        assert list(row.items())[3:] == [
            ("attack", row["attack"]), ("defense", row["defense"]), ("n", rate.n),
            ("successes", rate.successes), ("rate", rate.value), ("low", rate.interval[0]),
            ("high", rate.interval[1]),
        ]  # fmt: skip
        protocol = "paper" if measure == "destruction" else "plain"
        assert (row["protocol"], row["aggregate"]) == (protocol, "mean")


def test_short_names_keep_what_tells_them_apart():
    def shown(*texts):
        return list(module._shown({text: text for text in texts}).values())

    texts = ["none", "fgsm:eps=2", "igsm:eps=4,iterations=10", "igsm:eps=2,iterations=10", "igsm"]
    assert shown(*texts) == [
        "none", "fgsm", "igsm eps=4 iterations=10", "igsm eps=2 iterations=10", "igsm"]  # fmt: skip
    assert shown(*texts[:4]) == ["none", "fgsm", "igsm eps=4", "igsm eps=2"]
    assert shown("a:x=1", "a x=1", "a") == ["a:x=1", "a x=1", "a"]
    assert module._shown({"F": "fgsm:eps=2", 4: "none"}) == {"F": "F", 4: "4"}
    own = "own:sharp: a, b@12345678", "own:tour@12345678", "own:tour:eps=1,n=2@12345678"
    assert shown(*own) == ["sharp", "tour", "tour eps=1 n=2"]
    assert shown("own:tour:eps=1,n=2@12345678", "own:tour:eps=4,n=2@90abcdef") == [
        "tour eps=1", "tour eps=4"]  # fmt: skip
    again = "own:tour@12345678", "own:tour@90abcdef"
    assert shown(*again) == list(again)
    assert shown("pd", "own:pd@12345678") == ["pd", "own:pd@12345678"]


def evaluated(*defenses, runs=2) -> pd.DataFrame:
    """One clean image, right with every defence."""
    return records_of(*(cell("a", "none", d, [0] * runs) for d in ("none", *defenses)))


def clean(right: int, kept: int, gained: int) -> pd.DataFrame:
    """Clean images: `right` without a defence, `kept` of them with it, `gained` of ten more."""
    cells = []
    for i in range(right + 10):
        seen = i < kept or right <= i < right + gained
        same = {"right_clean": i < right}
        cells.append(cell(f"{i}", "none", "none", [0 if i < right else 1], **same))
        cells.append(cell(f"{i}", "none", "wd", [0 if seen else 1] * 2, **same))
    return records_of(*cells)


@pytest.mark.parametrize("protocol", ["paper", "plain"])
@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (small().assign(right_clean=False), "No image is right when clean"),
        (small().assign(success=lambda r: r["success"] & ~r["right_clean"]),
         "Attack fgsm:eps=2 never succeeded without a defence, on 3 images right when clean"),
        (small().query("not (image == 'a' and defense == 'none' and attack == 'none')"),
         "Not all 4 images were evaluated with every attack and defence: none with none (3)"),
        (small().query("run == 0"), "A single run each of pd:deflections=200:"),
        # Of a defence that draws nothing there is only one; of an unknown one there may be more.
        (evaluated("wd", "own:mine@1", "pd", runs=1), "A single run each of own:mine@1, pd:"),
        (random_records(0), "Attack bpda made another adversary for each defence"),
        (clean(20, 12, 0), f"wd costs clean accuracy: {PairedDifference(12, 0, 8, 10)} against "
         "none, over all 30 images."),
        (evaluated("pd", "pd+wd", "pd+rcam+wd"), "More than one thing differs: deflections is 200 "
         "in pd, pd+wd and 1500 in pd+rcam+wd."),
        (small(), "The p-values of the 2 differences stand uncorrected."),
    ],
)  # fmt: skip
def test_what_a_reader_must_know_is_said_once(records, expected, protocol):
    assert "\n".join(report_of(records, protocol).sentences).count(expected) == 1


@pytest.mark.parametrize(
    ("records", "absent"),
    [
        (small(), "No image|never succeeded|skipped|Not all|single run|made another|costs|differs"),
        # As many lost, but others gained: the paper's protocol would see the losses alone.
        (clean(20, 12, 7), "costs"),
        # Five losses and no gain have p = 0.0625.
        (clean(20, 15, 0), "costs"),
        (small().query("attack == 'none'"), "uncorrected"),
        (evaluated("pd", "wd", "pd+wd", "jpeg", "own:mine@1"), "differs"),
    ],
)
def test_nothing_is_said_without_a_cause(records, absent):
    assert not re.search(absent, "\n".join(report_of(records).sentences))


def test_the_protocol_the_aggregate_and_skipped_images_are_always_said():
    assert report_of(small(), "paper", "worst").sentences[:2] == [
        "Protocol paper: only images that the undefended network gets right when clean. The "
        "undefended network gets 3 of 4 images right when clean.",
        "Aggregate worst: right only if every run is right.",
    ]
    assert len(report_of(evaluated("pd"), "plain", "majority").sentences) == 2
    names = report_of(evaluated("pd+wd", "pd+rcam+wd")).tables["names"]
    assert list(names["settings that differ"]) == ["", "", "deflections=200", "deflections=1500"]
    few, many = ([(f"{i}.png", "gone") for i in range(n)] for n in (1, 7))
    assert "1 image skipped: 0.png (gone)." in report_of(small(), skipped=few).sentences
    text = "\n".join(report_of(small(), skipped=many).sentences)
    assert re.search(r"7 images skipped: 0\.png \(gone\), .*, 4\.png \(gone\) and 2 more\.", text)


def test_written_tables_read_back_equal(tmp_path):
    report, folder = report_of(random_records(0), "plain", "majority"), tmp_path / "new" / "folder"
    assert {*report.write(folder, "run")} == {*folder.iterdir()}
    for name, table in report.tables.items():
        path = folder / f"run_{name}.csv"
        read = pd.read_csv(path, dtype=str, index_col=0, keep_default_na=False)
        alike = dict.fromkeys(("check_dtype", "check_index_type", "check_column_type"), False)
        pd.testing.assert_frame_equal(read, table, **alike)
    read = pd.read_csv(folder / "run_numbers.csv")
    pd.testing.assert_frame_equal(read, report.numbers, check_dtype=False, rtol=1e-14)


def test_the_page_holds_the_sentences_and_every_table_and_a_failure_leaves_it_whole(
    tmp_path, monkeypatch
):
    report = report_of(small(), "paper", "majority")
    report.write(tmp_path, "run")
    page = (tmp_path / "run.md").read_text(encoding="utf-8")
    assert page == str(report)
    assert all(f"- {sentence}\n" in page for sentence in report.sentences)
    assert all(module._markdown(table) in page for table in report.tables.values())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(path, text, **options):
        path.write_bytes(text[:10].encode())
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        report_of(small(), "plain").write(tmp_path, "run")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    # The tables are aligned and keep their cells apart.
    table = pd.DataFrame({"a|b": ["x", "long cell"]}, index=pd.Index(["one", "two"], name="row"))
    assert module._markdown(table) == (
        "| row | a\\|b      |\n| --- | --------- |\n| one | x         |\n| two | long cell |"
    )


def test_latex_escapes_what_it_would_read_as_commands():
    table = pd.DataFrame({"50% & #1": ["a_b", r"x\y{z}~^$<"]}, index=pd.Index(["p", "q"], name="r"))
    text = r"""% needs \usepackage{booktabs}
\begin{table}
\caption{5 \% of a\_b}
\begin{tabular}{ll}
\toprule
r & 50\% \& \#1 \\
\midrule
p & a\_b \\
q & x\textbackslash{}y\{z\}\textasciitilde{}\textasciicircum{}\$\textless{} \\
\bottomrule
\end{tabular}
\end{table}
"""
    assert module._latex(table, "5 % of a_b") == text
    for table in report_of(random_records(0), "paper", "majority").tables.values():
        rows = [line for line in module._latex(table, "").splitlines() if line.endswith(r"\\")]
        assert len(rows) == 1 + len(table)
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table.columns)}
