"""What an evaluation found: its tables, and the sentences that must go with them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdutils import tables
from pdutils._utils import extra, whole_file
from pdutils.evaluation.registry import parse_defense, unlike_knobs, unlike_settings
from pdutils.evaluation.scores import (
    AGGREGATES,
    PROTOCOLS,
    Cells,
    ComparisonError,
    Rates,
    Strengths,
    compare,
)
from pdutils.stats import Mean, PairedDifference, Rate

with extra("evaluation"):
    import pandas as pd

#: Which sentences name a cost on clean images: those with a p-value below this.
SIGNIFICANT = 0.05

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

Differences = dict[Hashable, dict[Hashable, PairedDifference | None]]


@dataclass(frozen=True)
class Report:
    """The tables of an evaluation and what must be said with them; printed, a page of Markdown.

    Attributes
    ----------
    tables : dict of str to pandas.DataFrame
        As `TITLES` names them; what was not measured is left out.
    numbers : pandas.DataFrame
        All rates as numbers, a row each: measure ("accuracy", "destruction" or "targeted"),
        protocol, aggregate, attack, defense, n, successes, rate, low, high.
    sentences : list of str
        The protocol and the aggregate, then whatever a reader of the tables must know.
    """

    tables: dict[str, pd.DataFrame]
    numbers: pd.DataFrame
    sentences: list[str]

    @classmethod
    def of(
        cls,
        found: Cells,
        protocol: str,
        aggregate: str,
        baseline: Hashable | None = None,
        skipped: Sequence[tuple[object, str]] = (),
    ) -> "Report":
        """Report on outcomes; the defences are held against the baseline, by default "none"."""
        base = _checked_baseline(found, baseline)
        measures = {"accuracy": found.accuracy(protocol), "destruction": found.destruction()}
        measures["targeted"] = found.targeted_success(protocol)
        strengths = found.strengths(protocol)
        differences = _differences(found, base, protocol)
        comparisons = sum(cell is not None for row in differences.values() for cell in row.values())
        sentences = [
            *_basis(found, protocol, aggregate),
            *_skipped(skipped),
            *_uneven(found),
            *_weak_attacks(strengths),
            *_adaptive_attacks(strengths),
            *_single_runs(found),
            *_costs(found, base),
            *_uncorrected(comparisons),
            *unlike_settings(found.defenses),
        ]
        return cls(
            _tables(found, base, measures, strengths, differences),
            _numbers(found, measures, protocol, aggregate),
            sentences,
        )

    def __str__(self) -> str:
        parts = ["\n".join(f"- {sentence}" for sentence in self.sentences)]
        for name, table in self.tables.items():
            if table.size:
                parts += [f"### {TITLES[name]}", _markdown(table)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write everything into a folder, which is made, each file whole or not at all.

        The files are, for each table, stem_name.csv and stem_name.tex, then stem_numbers.csv and
        stem.md.
        """
        texts = {}
        for name, table in self.tables.items():
            texts[f"{stem}_{name}.csv"] = table.to_csv(lineterminator="\n")
            texts[f"{stem}_{name}.tex"] = _latex(table, TITLES[name])
        texts[f"{stem}_numbers.csv"] = self.numbers.to_csv(index=False, lineterminator="\n")
        texts[f"{stem}.md"] = str(self)
        for name, text in texts.items():
            with whole_file(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
        return [folder / name for name in texts]


def short_names(texts: Sequence[str]) -> dict[str, str]:
    """Shorten texts of attacks or defences to what tells them apart.

    Each keeps its name and those knobs alone that others of that name do not share: "igsm", or
    "igsm eps=4" beside an "igsm:eps=2,iterations=10".
    """
    parts = {text: (text.partition(":")[0], text.partition(":")[2].split(",")) for text in texts}
    short = {}
    for text, (name, knobs) in parts.items():
        family = [others for other, others in parts.values() if other == name]
        own = [knob for knob in knobs if not all(knob in others for others in family)]
        short[text] = " ".join([name, *filter(None, own)])
    return short if len(set(short.values())) == len(short) else {text: text for text in texts}


def _shown(names: Mapping[Hashable, str]) -> dict[Hashable, str]:
    """Give what stands in tables for each name: itself, or what is short of a text."""
    if all(name == text for name, text in names.items()):
        short = short_names(list(names.values()))
        return {name: short[text] for name, text in names.items()}
    return {name: str(name) for name in names}


def _checked_baseline(found: Cells, baseline: Hashable | None) -> Hashable:
    if baseline is None:
        return next(name for name, text in found.defenses.items() if text == "none")
    if baseline not in found.defenses:
        raise ValueError(
            f"baseline: expected one of the defences {_joined(found.defenses)}, got {baseline!r}"
        )
    return baseline


def _differences(found: Cells, baseline: Hashable, protocol: str) -> Differences:
    return {
        defense: {
            attack: _difference(found, attack, defense, baseline, protocol)
            for attack in found.attacks
        }
        for defense in found.defenses
        if defense != baseline
    }


def _difference(
    found: Cells, attack: Hashable, first: Hashable, second: Hashable, protocol: str
) -> PairedDifference | None:
    try:
        return compare(found, (first, attack), found, (second, attack), protocol)
    except ComparisonError:
        return None


def _tables(
    found: Cells,
    baseline: Hashable,
    measures: Mapping[str, Rates],
    strengths: Strengths,
    differences: Differences,
) -> dict[str, pd.DataFrame]:
    attacks, defenses = _shown(found.attacks), _shown(found.defenses)
    if "clean" not in attacks.values():
        attacks = {name: "clean" if name == "none" else short for name, short in attacks.items()}
    made = {
        measure: _grid(rates, attacks, defenses, "defense")
        for measure, rates in measures.items()
        if measure != "targeted" or any(next(iter(rates.values())))
    }
    made["strength"] = _strength_table(strengths, attacks, defenses)
    minus = f"defense, minus {defenses[baseline]}"
    made["differences"] = _grid(differences, attacks, defenses, minus)
    rows = [
        {"name": shorts[name], "kind": kind, "in full": text}
        for kind, names, shorts in (
            ("attack", found.attacks, attacks),
            ("defense", found.defenses, defenses),
        )
        for name, text in names.items()
    ]
    unlike: list[dict[str, str]] = [{}] * len(attacks) + list(unlike_knobs(found.defenses).values())
    if any(unlike):
        for row, knobs in zip(rows, unlike, strict=True):
            row["settings that differ"] = ", ".join(f"{k}={value}" for k, value in knobs.items())
    made["names"] = pd.DataFrame(rows, dtype=object).set_index("name")
    return made


def _grid(
    values: Mapping[Hashable, Mapping[Hashable, Any]],
    columns: Mapping[Hashable, str],
    rows: Mapping[Hashable, str],
    corner: str,
) -> pd.DataFrame:
    named = {
        rows[row]: {columns[column]: value for column, value in cells.items()}
        for row, cells in values.items()
    }
    return tables.rate_table(named).rename_axis(corner) if named else pd.DataFrame()


def _strength_table(
    measured: Strengths, attacks: Mapping[Hashable, str], defenses: Mapping[Hashable, str]
) -> pd.DataFrame:
    rows = {}
    for (attack, defense), found in measured.items():
        against = f" against {defenses[defense]}" if defense is not None else ""
        rows[attacks[attack] + against] = {
            "n": str(found.n),
            "success": "-" if found.success is None else _with_n(found.success, found.n),
            "relative L2": _mean(found.l2, 4, found.n),
            "L-infinity of 255": _mean(found.linf, 1, found.n),
            "relative L2, successes": _mean(found.l2_of_successes, 4, found.n),
            "L-infinity of 255, successes": _mean(found.linf_of_successes, 1, found.n),
        }
    return pd.DataFrame.from_dict(rows, orient="index", dtype=object).rename_axis("attack")


def _mean(mean: Mean | None, digits: int, n: int) -> str:
    if mean is None:
        return "-"
    low, high = mean.interval
    interval = "" if mean.n == 1 else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean.value:.{digits}f}{interval}" + (f", n = {mean.n}" if mean.n != n else "")


def _with_n(rate: Rate, n: int) -> str:
    """Write a rate; its n only where it is not that of its row."""
    return f"{rate}, n = {rate.n}" if rate.n != n else str(rate)


def _numbers(
    found: Cells, measures: Mapping[str, Rates], protocol: str, aggregate: str
) -> pd.DataFrame:
    columns = ["measure", "protocol", "aggregate", "attack", "defense", "n", "successes", "rate",
               "low", "high"]  # fmt: skip
    rows = [
        # A destruction rate is one of images right when clean, whatever the protocol.
        (measure, "paper" if measure == "destruction" else protocol, aggregate,
         found.attacks[attack], found.defenses[defense], rate.n, rate.successes, rate.value,
         *rate.interval)
        for measure, rates in measures.items()
        for defense, row in rates.items()
        for attack, rate in row.items()
        if rate is not None
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _basis(found: Cells, protocol: str, aggregate: str) -> list[str]:
    right = {image for cell in found.cells.values() for image in cell["image"][cell["right_clean"]]}
    said = [
        f"Protocol {protocol}: {PROTOCOLS[protocol]}. The undefended network gets {len(right)} of "
        f"{_counted_noun(found.images, 'image')} right when clean.",
        f"Aggregate {aggregate}: {AGGREGATES[aggregate]}.",
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
    listed = _joined(f"{name} ({reason})" for name, reason in skipped)
    return [f"{_counted_noun(len(skipped), 'image')} skipped: {listed}."]


def _uneven(found: Cells) -> list[str]:
    cells = {(a, d): found.cell(d, a) for d in found.defenses for a in found.attacks}
    counts = {pair: 0 if cell is None else len(cell) for pair, cell in cells.items()}
    short = [f"{a} with {d} ({n})" for (a, d), n in counts.items() if n < found.images]
    if not short:
        return []
    return [
        f"Not all {found.images} images were evaluated with every attack and defence: "
        f"{_joined(short)}. A dash stands where a comparison lacks the same images."
    ]


def _weak_attacks(strengths: Strengths) -> list[str]:
    said = []
    for (attack, defense), measured in strengths.items():
        success = measured.success
        if success is not None and success.successes == 0:
            against = f" against {defense}" if defense is not None else ""
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


def _single_runs(found: Cells) -> list[str]:
    most = {name: 0 for name in found.defenses}
    for (_, text), cell in found.cells.items():
        for name in (name for name, other in found.defenses.items() if other == text):
            most[name] = max(most[name], int(cell["runs"].max()))
    single = [n for n, runs in most.items() if runs == 1 and _draws(found.defenses[n])]
    if not single:
        return []
    return [
        f"A single run each of {_joined(single)}: how much the result depends on the random "
        "numbers drawn is not seen."
    ]


def _draws(text: str) -> bool:
    """Tell whether a defence may draw random numbers; one of another name may."""
    try:
        return parse_defense(text).random
    except ValueError:
        return True


def _costs(found: Cells, baseline: Hashable) -> list[str]:
    """Name defences that cost clean accuracy.

    All images count, since of those that the undefended network gets right none can be gained.
    """
    clean = next(name for name, text in found.attacks.items() if text == "none")
    said = []
    for defense in found.defenses:
        cost = None
        if defense != baseline:
            cost = _difference(found, clean, defense, baseline, "plain")
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


def _joined(items: Iterable[Hashable], most: int = 5) -> str:
    listed = [str(item) for item in items]
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def _markdown(table: pd.DataFrame) -> str:
    """Write a table in Markdown, its columns aligned for a terminal."""
    rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in _rows(table)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def _latex(table: pd.DataFrame, caption: str) -> str:
    """Write a table in LaTeX, with the rules of the package booktabs."""
    head, *body = [" & ".join(map(_escaped, row)) + r" \\" for row in _rows(table)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            rf"\caption{{{_escaped(caption)}}}",
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
