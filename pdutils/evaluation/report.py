"""What an evaluation found: its tables, and the sentences that must go with them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pdutils.evaluation.registry import parse_defense
from pdutils.evaluation.scores import DECISIONS, PROTOCOLS, Cells, Rates, Strengths
from pdutils.images import whole_file
from pdutils.stats import Mean, PairedDifference, Rate

#: Which sentences name a cost on clean images: those with a p-value below this.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Report:
    """The tables of an evaluation and what must be said with them.

    Attributes
    ----------
    tables : dict of str to pandas.DataFrame
        As `report_tables` gives them.
    numbers : pandas.DataFrame
        All rates as numbers, a row each: measure ("accuracy", "destruction" or "targeted"),
        protocol, decision, attack, defense, n, successes, rate, low, high.
    sentences : list of str
        The protocol and the decision, then whatever a reader of the tables must know.
    """

    tables: dict[str, pd.DataFrame]
    numbers: pd.DataFrame
    sentences: list[str]

    @classmethod
    def of(
        cls,
        records: pd.DataFrame,
        protocol: str = "paper",
        decision: str = "one",
        baseline: str | None = None,
        *,
        skipped: Iterable[tuple[object, str]] | None = None,
    ) -> "Report":
        """Report on the records of an evaluation.

        Parameters
        ----------
        records : pandas.DataFrame
            The records.
        protocol : {"paper", "plain"}
            Only images right when clean, or all.
        decision : {"one", "majority", "mean", "worst"}
            As in `outcomes`.
        baseline : str, optional
            The defence that the others are compared with, by default "none".
        skipped : iterable of (name, reason), optional
            Images that could not be read; by default `records.attrs["skipped"]`, if it is there.

        Returns
        -------
        Report

        Raises
        ------
        ValueError
            As `outcomes`; if there is no such protocol, or `baseline` is given and is no defence
            of the records.
        """
        if skipped is None:
            skipped = records.attrs.get("skipped", ())
        found = Cells.of(records, decision)
        return cls.of_cells(found, protocol, decision, baseline, skipped=skipped)

    @classmethod
    def of_cells(
        cls,
        found: Cells,
        protocol: str,
        decision: str,
        baseline: str | None = None,
        *,
        skipped: Iterable[tuple[object, str]] = (),
    ) -> "Report":
        """Report on outcomes, where the records themselves are too many to be held at once.

        Parameters
        ----------
        found : Cells
            The outcomes.
        protocol, baseline, skipped
            As in `of`.
        decision : str
            By which they were decided.

        Returns
        -------
        Report

        Raises
        ------
        ValueError
            If there is no such protocol, or `baseline` is given and is no defence of theirs.
        """
        baseline = _checked_baseline(found, baseline)
        measures = {"accuracy": found.accuracy(protocol), "destruction": found.destruction()}
        measures["targeted"] = found.targeted_success(protocol)
        strengths = found.strengths(protocol)
        differences = _differences(found, baseline, protocol)
        comparisons = sum(cell is not None for row in differences.values() for cell in row.values())
        sentences = [
            *_basis(found, protocol, decision),
            *_skipped(list(skipped)),
            *_uneven(found),
            *_weak_attacks(strengths),
            *_adaptive_attacks(strengths),
            *_run_numbers(found),
            *_costs(found, baseline),
            *_uncorrected(comparisons),
        ]
        return cls(
            _tables(found, baseline, measures, strengths, differences),
            _numbers(measures, protocol, decision),
            sentences,
        )

    def __str__(self) -> str:
        return page(self.tables, self.sentences)

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write everything into a folder.

        Parameters
        ----------
        folder, stem
            As in `write_tables`.

        Returns
        -------
        list of Path
            The files.

        Raises
        ------
        ValueError
            As `write_tables`.
        """
        return write_tables(
            self.tables, folder, stem, numbers=self.numbers, sentences=self.sentences
        )


def short_names(texts: Sequence[str]) -> dict[str, str]:
    """Shorten the texts of attacks or defences to what tells them apart.

    Parameters
    ----------
    texts : sequence of str
        Such as "igsm:eps=4,iterations=10".

    Returns
    -------
    dict of str to str
        For each text its name with those knobs alone that others of that name do not share:
        "igsm", or "igsm eps=4" beside an "igsm:eps=2,iterations=10".
    """
    parts = {text: (text.partition(":")[0], text.partition(":")[2].split(",")) for text in texts}
    short = {}
    for text, (name, knobs) in parts.items():
        family = [others for other, others in parts.values() if other == name]
        own = [knob for knob in knobs if not all(knob in others for others in family)]
        short[text] = " ".join([name, *filter(None, own)])
    return short if len(set(short.values())) == len(short) else {text: text for text in texts}


def _checked_baseline(found: Cells, baseline: str | None) -> str:
    if baseline is not None and baseline not in found.defenses:
        raise ValueError(
            f"baseline: expected one of the defences {', '.join(found.defenses)}, got {baseline!r}"
        )
    return baseline or "none"


Differences = dict[str, dict[str, PairedDifference | None]]


def _differences(found: Cells, baseline: str, protocol: str) -> Differences:
    return {
        defense: {
            attack: found.difference(attack, defense, baseline, protocol)
            for attack in found.attacks
        }
        for defense in found.defenses
        if defense != baseline
    }


def _tables(
    found: Cells,
    baseline: str,
    measures: Mapping[str, Rates],
    strengths: Strengths,
    differences: Differences,
) -> dict[str, pd.DataFrame]:
    attacks = short_names(found.attacks)
    if "clean" not in attacks.values():
        attacks = {text: "clean" if text == "none" else short for text, short in attacks.items()}
    defenses = short_names(found.defenses)
    tables = {
        measure: _grid(rates, attacks, defenses, "defense")
        for measure, rates in measures.items()
        if measure != "targeted" or any(rates[found.defenses[0]])
    }
    tables["strength"] = _strength_table(strengths, attacks, defenses)
    minus = f"defense, minus {defenses.get(baseline, baseline)}"
    tables["differences"] = _grid(differences, attacks, defenses, minus)
    tables["names"] = _names_table({"attack": attacks, "defense": defenses})
    return tables


def _grid(
    values: Mapping[str, Mapping[str, Rate | None]]
    | Mapping[str, Mapping[str, PairedDifference | None]],
    columns: Mapping[str, str],
    rows: Mapping[str, str],
    corner: str,
) -> pd.DataFrame:
    """Set values in a table; n stands in the head of a column, or in its cells where it differs."""
    index = pd.Index([rows[row] for row in values], name=corner, dtype=object)
    table = {}
    for column in next(iter(values.values()), {}):
        cells = [row[column] for row in values.values()]
        counts = {cell.n for cell in cells if cell is not None}
        same = len(counts) == 1
        head = columns[column] + (f" (n = {min(counts)})" if same else "")
        table[head] = [
            "-" if cell is None else str(cell) if same else f"{cell}, n = {cell.n}"
            for cell in cells
        ]
    return pd.DataFrame(table, index=index, dtype=object)


def _strength_table(
    measured: Strengths,
    attacks: Mapping[str, str],
    defenses: Mapping[str, str],
) -> pd.DataFrame:
    rows = [
        {
            "attack": attacks[attack] + (f" against {defenses[defense]}" if defense else ""),
            "n": str(found.n),
            "success": "-" if found.success is None else _with_n(found.success, found.n),
            "relative L2": _mean(found.l2, 4, found.n),
            "L-infinity of 255": _mean(found.linf, 1, found.n),
            "relative L2, successes": _mean(found.l2_of_successes, 4, found.n),
            "L-infinity of 255, successes": _mean(found.linf_of_successes, 1, found.n),
        }
        for (attack, defense), found in measured.items()
    ]
    columns = ["attack", "n", "success", "relative L2", "L-infinity of 255",
               "relative L2, successes", "L-infinity of 255, successes"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns, dtype=object).set_index("attack")


def _mean(mean: Mean | None, digits: int, n: int) -> str:
    if mean is None:
        return "-"
    low, high = mean.interval
    interval = "" if mean.n == 1 else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean.value:.{digits}f}{interval}" + (f", n = {mean.n}" if mean.n != n else "")


def _with_n(rate: Rate, n: int) -> str:
    """Write a rate; its n only where it is not that of its row."""
    return f"{rate}, n = {rate.n}" if rate.n != n else str(rate)


def _names_table(names: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    rows = [
        {"name": short, "kind": kind, "in full": text}
        for kind, shorts in names.items()
        for text, short in shorts.items()
    ]
    return pd.DataFrame(rows, dtype=object).set_index("name")


def _numbers(measures: Mapping[str, Rates], protocol: str, decision: str) -> pd.DataFrame:
    columns = ["measure", "protocol", "decision", "attack", "defense", "n", "successes", "rate",
               "low", "high"]  # fmt: skip
    rows = [
        # A destruction rate is one of images right when clean, whatever the protocol.
        (measure, "paper" if measure == "destruction" else protocol, decision, attack, defense,
         rate.n, rate.successes, rate.value, *rate.interval)
        for measure, rates in measures.items()
        for defense, row in rates.items()
        for attack, rate in row.items()
        if rate is not None
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _basis(found: Cells, protocol: str, decision: str) -> list[str]:
    right = {
        image
        for cell in found.cells.values()
        for image in cell["image"].cat.codes[cell["right_clean"].to_numpy()].unique()
    }
    said = [
        f"Protocol {protocol}: {PROTOCOLS[protocol]}. The undefended network gets {len(right)} of "
        f"{_counted_noun(found.images, 'image')} right when clean.",
        f"Decision {decision}: {DECISIONS[decision]}.",
    ]
    if not right:
        said.append(
            "No image is right when clean, so there is no destruction rate, no success of an "
            "attack, and nothing that counts under the protocol paper."
        )
    return said


def _skipped(skipped: Sequence[tuple[object, str]]) -> list[str]:
    if not skipped:
        return []
    listed = _listed([f"{name} ({reason})" for name, reason in skipped])
    return [f"{_counted_noun(len(skipped), 'image')} skipped: {listed}."]


def _uneven(found: Cells) -> list[str]:
    cells = {
        (a, d): len(found.cells.get((a, d), ())) for d in found.defenses for a in found.attacks
    }
    short = [
        f"{attack} with {defense} ({n})" for (attack, defense), n in cells.items()
        if n < found.images
    ]  # fmt: skip
    if not short:
        return []
    return [
        f"Not all {found.images} images were evaluated with every attack and defence: "
        f"{_listed(short)}. A dash stands where a comparison lacks the same images."
    ]


def _weak_attacks(strengths: Strengths) -> list[str]:
    said = []
    for (attack, defense), measured in strengths.items():
        success = measured.success
        if success is not None and success.successes == 0:
            against = f" against {defense}" if defense else ""
            said.append(
                f"Attack {attack}{against} never succeeded without a defence, on "
                f"{_counted_noun(success.n, 'image')} right when clean: it has no destruction rate."
            )
    return said


def _adaptive_attacks(strengths: Strengths) -> list[str]:
    made = [attack for attack, defense in strengths if defense is not None]
    return [
        f"Attack {attack} made another adversary for each defence; its success and its destruction "
        "rate speak of the undefended network, its accuracy of the defended one."
        for attack in dict.fromkeys(made)
    ]


def _run_numbers(found: Cells) -> list[str]:
    said, single = [], []
    for defense in found.defenses:
        runs = [cell["runs"] for (_, other), cell in found.cells.items() if other == defense]
        least, most = min(r.min() for r in runs), max(r.max() for r in runs)
        if most == 1 and _draws(defense):
            single.append(defense)
        elif least < most:
            said.append(f"Defence {defense} has {least} to {most} runs an image.")
    if single:
        said.append(
            f"A single run each of {_listed(single)}: how much the result depends on the random "
            "numbers drawn is not seen."
        )
    return said


def _draws(defense: str) -> bool:
    """Tell whether a defence may draw random numbers; one of another name may."""
    try:
        return parse_defense(defense).random
    except ValueError:
        return True


def _costs(found: Cells, baseline: str) -> list[str]:
    """Name defences that cost clean accuracy.

    All images count, since of those that the undefended network gets right none can be gained.
    """
    said = []
    for defense in found.defenses:
        cost = None
        if defense != baseline:
            cost = found.difference("none", defense, baseline, "plain")
        if cost is not None and cost.value < 0 and cost.p_value < SIGNIFICANT:
            said.append(
                f"Defence {defense} costs clean accuracy: {cost} against {baseline}, over all "
                f"{_counted_noun(cost.n, 'image')}."
            )
    return said


def _uncorrected(comparisons: int) -> list[str]:
    if comparisons < 2:
        return []
    return [f"The p-values of the {comparisons} differences stand uncorrected."]


def _counted_noun(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _listed(items: Sequence[str], most: int = 5) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


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
