"""Tables as Markdown, LaTeX and CSV, and files of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pdutils.images import whole_file

TITLES = {
    "accuracy": "Share classified right [95% interval, Wilson]",
    "destruction": "Destruction rate: share of the successful adversaries, on images right when "
    "clean, that are classified right [95% interval, Wilson]",
    "targeted": "Share classified as the class that the attack aims at [95% interval, Wilson]",
    "strength": "Strength of the attacks: success without a defence on images right when clean; "
    "mean size of the perturbation [95% interval]",
    "differences": "Difference of the shares classified right, on the same images "
    "[95% interval, Newcombe], exact p-value of McNemar",
    "names": "Names in full",
}


def write_tables(
    tables: Mapping[str, pd.DataFrame],
    folder: Path,
    stem: str,
    *,
    numbers: pd.DataFrame | None = None,
    sentences: Sequence[str] = (),
) -> list[Path]:
    """Write tables as CSV, LaTeX and Markdown, each file whole or not at all.

    Parameters
    ----------
    tables : mapping of str to pandas.DataFrame
        Such as `report_tables` gives.
    folder : Path
        Where the files go; it is made.
    stem : str
        How their names begin.
    numbers : pandas.DataFrame, optional
        The rates as numbers, such as `Report.numbers`.
    sentences : sequence of str
        They stand above the tables of the Markdown file.

    Returns
    -------
    list of Path
        For each table stem_name.csv and stem_name.tex, then stem_numbers.csv and stem.md.

    Raises
    ------
    ValueError
        If `stem` is no plain file name.
    """
    if not stem or Path(stem).name != stem:
        raise ValueError(f"stem: expected a file name without a folder, got {stem!r}")
    texts = {}
    for name, table in tables.items():
        texts[f"{stem}_{name}.csv"] = table.to_csv(lineterminator="\n")
        texts[f"{stem}_{name}.tex"] = latex(table, TITLES.get(name, name))
    if numbers is not None:
        texts[f"{stem}_numbers.csv"] = numbers.to_csv(index=False, lineterminator="\n")
    texts[f"{stem}.md"] = page(tables, sentences)
    for name, text in texts.items():
        with whole_file(Path(folder) / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return [Path(folder) / name for name in texts]


def markdown(table: pd.DataFrame) -> str:
    """Write a table in Markdown, its columns aligned for a terminal.

    Parameters
    ----------
    table : pandas.DataFrame
        The index is the first column.

    Returns
    -------
    str
        Lines without a last line break.
    """
    rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in _rows(table)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def latex(table: pd.DataFrame, caption: str = "") -> str:
    """Write a table in LaTeX, with the rules of the package booktabs.

    Parameters
    ----------
    table : pandas.DataFrame
        The index is the first column.
    caption : str
        Plain text that stands above the table.

    Returns
    -------
    str
        A `table` environment.
    """
    head, *body = [" & ".join(map(_escaped, row)) + r" \\" for row in _rows(table)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            *([rf"\caption{{{_escaped(caption)}}}"] if caption else []),
            rf"\begin{{tabular}}{{{'l' * (1 + len(table.columns))}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _rows(table: pd.DataFrame) -> list[list[str]]:
    head = [str(table.index.name or ""), *map(str, table.columns)]
    return [head, *([str(cell) for cell in row] for row in table.itertuples(name=None))]


_ESCAPES = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_ESCAPES)


def page(tables: Mapping[str, pd.DataFrame], sentences: Sequence[str]) -> str:
    """Write sentences and tables as one Markdown page.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        By name, as in `TITLES`.
    sentences : sequence of str
        What stands above the tables.

    Returns
    -------
    str
    """
    blocks = [f"- {sentence}" for sentence in sentences]
    parts = ["\n".join(blocks)] if blocks else []
    for name, table in tables.items():
        if table.size:
            parts += [f"### {TITLES.get(name, name)}", markdown(table)]
    return "\n\n".join(parts) + "\n"
