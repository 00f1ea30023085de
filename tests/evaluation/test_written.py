import csv
import re

import pandas as pd
import pytest
from records import random_records, small

from pdutils.evaluation.report import Report, latex, markdown, write_tables


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
    tables = Report.of(small(), "paper", "one").tables
    write_tables(tables, tmp_path, "run")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(path, text, **options):
        with path.open("w") as file:
            file.write(text[:10])
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tables(Report.of(small(), "plain", "one").tables, tmp_path, "run")
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
    for name, table in Report.of(random_records(0), "paper", "majority").tables.items():
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
