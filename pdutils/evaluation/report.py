"""From the records of an evaluation to rates, tables, and the sentences that must go with them.

Records have a row for each image, attack, defence and run. An aggregate turns the runs of one
image, attack and defence into one outcome.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pdutils import tables
from pdutils._utils import check_one_of, extra, whole_file
from pdutils.evaluation.registry import (
    DEFENSES,
    parse_defense,
    unlike_knobs,
    unlike_settings,
    without_digest,
)
from pdutils.stats import Mean, PairedDifference, Rate

with extra("evaluation"):
    import pandas as pd

#: What the runs of a defence on an image amount to. Of tied classes the majority takes that of the
#: mean probability if it is among them, else the one seen first. Where the worst run is wrong, the
#: class is that which the attack aims at if any run saw it, else the first wrong one.
AGGREGATES: Mapping[str, str] = {
    "one": "the first run alone",
    "majority": "the class that most runs see; a tie goes to the class of the mean probability",
    "mean": "the class of the mean probability over the runs",
    "worst": "right only if every run is right",
}

#: Which images count. The paper's own protocol is the first.
PROTOCOLS: Mapping[str, str] = {
    "paper": "only images that the undefended network gets right when clean",
    "plain": "all images",
}

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

#: By defence, then attack; None where nothing was evaluated or no image counts.
Rates = dict[Hashable, dict[Hashable, Rate | None]]
Differences = dict[Hashable, dict[Hashable, PairedDifference | None]]
Names = Mapping[Hashable, str]


@dataclass(frozen=True)
class Strength:
    """How strong an attack was on the undefended network; None stands where no image counts.

    `success` is of the images right when clean; `l2` (||x - x'|| / ||x||) and `linf` (in grey
    levels of 255) are of all n that count, or of the successes among those right when clean.
    """

    n: int
    success: Rate | None
    l2: Mean | None
    linf: Mean | None
    l2_of_successes: Mean | None
    linf_of_successes: Mean | None


#: By attack, and by defence where the attack made another adversary for each, else None.
Strengths = dict[tuple[Hashable, Hashable | None], Strength]


@dataclass(frozen=True)
class Cells:
    """The outcomes of an evaluation under one aggregate: a row an image, by two texts.

    `attacks` and `defenses` are the texts by name; the keys of `cells` an attack's and a defence's.
    """

    attacks: Names
    defenses: Names
    cells: dict[tuple[str, str], pd.DataFrame]
    images: int

    @classmethod
    def of(
        cls, blocks: Iterable[pd.DataFrame], aggregate: str, attacks: Names, defenses: Names
    ) -> "Cells":
        """Aggregate records, sorted as a store gives them, in blocks of whole images."""
        check_one_of("aggregate", aggregate, tuple(AGGREGATES))
        parts: dict[Any, list[pd.DataFrame]] = defaultdict(list)
        images = 0
        for block in blocks:
            numbers, names = pd.factorize(block["image"])
            numbered = block.assign(image=images + numbers)
            images += len(names)
            for key, rows in numbered.groupby(["attack", "defense"], sort=False):
                parts[key].append(_outcomes(rows, aggregate))
        cells = {key: pd.concat(several, ignore_index=True) for key, several in parts.items()}
        return cls(attacks, defenses, cells, images)

    def cell(self, defense: Hashable, attack: Hashable) -> pd.DataFrame:
        """Give the outcomes of one pair, no row where nothing was evaluated."""
        key = self.attacks.get(attack, ""), self.defenses.get(defense, "")
        return self.cells.get(key, next(iter(self.cells.values())).iloc[:0])

    @property
    def made(self) -> list[Hashable]:
        """The attacks but for the clean images."""
        return [name for name, text in self.attacks.items() if text != "none"]

    def rates(self, measure: str, protocol: str = "paper") -> Rates:
        """Count "accuracy", "destruction" or "targeted", see `TITLES`, by defence and attack."""
        check_one_of("protocol", protocol, tuple(PROTOCOLS))
        columns: Iterable[Hashable] = self.attacks if measure == "accuracy" else self.made
        if measure == "targeted":
            aimed = {text for (text, _), cell in self.cells.items() if (cell["target"] >= 0).any()}
            columns = [name for name in self.made if self.attacks[name] in aimed]

        def rate(cell: pd.DataFrame) -> Rate | None:
            hits, counted = cell["right"], _counted(cell, protocol)
            if measure == "destruction":
                counted = cell["success"] & cell["right_clean"]
            elif measure == "targeted":
                hits, counted = cell["predicted"] == cell["target"], counted & (cell["target"] >= 0)
            return Rate.of(hits[counted].to_numpy()) if counted.any() else None

        return {d: {a: rate(self.cell(d, a)) for a in columns} for d in self.defenses}

    def strengths(self, protocol: str) -> Strengths:
        """Give the strength of each attack, without which no rate means anything."""
        measured: Strengths = {}
        for attack in self.made:
            cells = {name: self.cell(name, attack) for name in self.defenses}
            kinds = pd.concat(cells.values()).drop_duplicates(
                ["image", "l2", "linf", "success", "target"]
            )
            if kinds["image"].duplicated().any():
                found = {(attack, name): cell for name, cell in cells.items()}
            else:
                found = {(attack, None): kinds}
            measured |= {key: _strength(cell, protocol) for key, cell in found.items() if len(cell)}
        return measured


def compare(
    first: Cells, one: Sequence[Hashable], second: Cells, other: Sequence[Hashable], protocol: str
) -> PairedDifference:
    """Compare two cells, each a defence and an attack, image by image."""
    left, right = first.cell(*one), second.cell(*other)
    if left.empty or right.empty:
        cells, (defense, attack) = (first, one) if left.empty else (second, other)
        raise ValueError(
            f"expected records of attack {attack!r} with defence {defense!r}, got the attacks "
            f"{_joined(cells.attacks)} and the defences {_joined(cells.defenses)}"
        )
    if list(left["image"]) != list(right["image"]):
        pairs = (" under ".join(map(str, pair)) for pair in (one, other))
        raise ValueError(
            f"expected {' and '.join(pairs)} on the same images, got {len(left)} and {len(right)} "
            "images"
        )
    counted = _counted(left, protocol)
    if not counted.any():
        raise ValueError("expected an image that is right when clean, got none")
    return PairedDifference.of(*(cell["right"][counted].to_numpy() for cell in (left, right)))


def _outcomes(rows: pd.DataFrame, aggregate: str) -> pd.DataFrame:
    """Decide each image of one attack and defence; all images have as many runs."""
    runs = int(rows["run"].max()) + 1
    cases = rows[["image", "label", "target", "right_clean", "success", "l2", "linf"]].iloc[::runs]
    seen = rows["predicted"].to_numpy().reshape(-1, runs)
    mean = rows["mean_predicted"].to_numpy()[runs - 1 :: runs, np.newaxis]
    label, target = (cases[name].to_numpy()[:, np.newaxis] for name in ("label", "target"))
    if aggregate == "mean":
        seen = mean
    # The class of the first run of the greatest worth.
    worth = np.zeros(seen.shape)
    if aggregate == "majority":
        worth = 2 * (seen[:, :, np.newaxis] == seen[:, np.newaxis]).sum(axis=2) + (seen == mean)
    elif aggregate == "worst":
        worth = (seen != label) * (1 + (seen == target))
    predicted = np.take_along_axis(seen, worth.argmax(axis=1)[:, np.newaxis], axis=1)
    right = predicted == label
    return cases.assign(runs=runs, predicted=predicted[:, 0], right=right[:, 0])


def _counted(cell: pd.DataFrame, protocol: str) -> "pd.Series[bool]":
    check_one_of("protocol", protocol, tuple(PROTOCOLS))
    return cell["right_clean"] | (protocol == "plain")


def _strength(cell: pd.DataFrame, protocol: str) -> Strength:
    right, counted = cell["right_clean"], _counted(cell, protocol)

    def mean(name: str, which: "pd.Series[bool]") -> Mean | None:
        return Mean.of(cell[name][which].to_numpy()) if which.any() else None

    success = Rate.of(cell["success"][right].to_numpy()) if right.any() else None
    fooled = cell["success"] & right
    sizes = (mean(name, which) for which in (counted, fooled) for name in ("l2", "linf"))
    return Strength(int(counted.sum()), success, *sizes)


@dataclass(frozen=True)
class Report:
    """The tables of an evaluation and what must be said with them; printed, a page of Markdown.

    `tables` go by the names of `TITLES`, but for what was not measured; `numbers` has a row a rate.
    """

    tables: dict[str, pd.DataFrame]
    numbers: pd.DataFrame
    sentences: list[str]

    @classmethod
    def of(
        cls, found: Cells, protocol: str, aggregate: str, baseline: Any = None, skipped: Any = ()
    ) -> "Report":
        """Report on outcomes; the defences are held against the baseline, by default "none"."""
        if baseline is None:
            baseline = next(name for name, text in found.defenses.items() if text == "none")
        check_one_of("baseline", baseline, list[Any](found.defenses))
        measures = "accuracy", "destruction", "targeted"
        rates = {measure: found.rates(measure, protocol) for measure in measures}
        strengths = found.strengths(protocol)
        differences = {
            defense: {a: _difference(found, a, defense, baseline, protocol) for a in found.attacks}
            for defense in found.defenses
            if defense != baseline
        }
        sentences = [
            *_said_of_images(found, protocol, aggregate, skipped),
            *_said_of_attacks(strengths),
            *_said_of_defenses(found, baseline, differences),
        ]
        made = _tables(found, baseline, rates, strengths, differences)
        return cls(made, _numbers(found, rates, protocol, aggregate), sentences)

    def __str__(self) -> str:
        parts = ["\n".join(f"- {sentence}" for sentence in self.sentences)]
        for name, table in self.tables.items():
            if table.size:
                parts += [f"### {TITLES[name]}", _markdown(table)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write all tables into a folder as CSV and LaTeX, and the page, each file whole or not."""
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


def _difference(
    found: Cells, attack: Hashable, first: Hashable, second: Hashable, protocol: str
) -> PairedDifference | None:
    try:
        return compare(found, (first, attack), found, (second, attack), protocol)
    except ValueError:
        return None


def _shown(names: Names) -> dict[Hashable, str]:
    """Give what stands in tables for each name: itself, or of texts what tells them apart.

    That is "igsm", or "igsm eps=4" beside an "igsm:eps=2,iterations=10"; of a function of one's own
    its name, which may be written in the same way.
    """
    itself = {name: str(name) for name in names}
    parts = {text: without_digest(text).partition(":")[::2] for text in names.values()}
    short = {}
    for text, (name, knobs) in parts.items():
        family = [others.split(",") for other, others in parts.values() if other == name]
        own = [knob for knob in knobs.split(",") if not all(knob in others for others in family)]
        short[text] = " ".join([name, *filter(None, own)])
    if itself != dict(names) or len(set(short.values())) < len(short):
        return itself
    return {name: short[text] for name, text in names.items()}


def _tables(
    found: Cells, base: Hashable, rates: dict[str, Rates], strengths: Strengths, minus: Differences
) -> dict[str, pd.DataFrame]:
    attacks, defenses = _shown(found.attacks), _shown(found.defenses)
    if "clean" not in attacks.values():
        attacks = {name: "clean" if name == "none" else short for name, short in attacks.items()}

    def grid(values: Mapping[Hashable, Mapping[Hashable, Any]], corner: str) -> pd.DataFrame:
        named = {
            defenses[row]: {attacks[column]: value for column, value in cells.items()}
            for row, cells in values.items()
        }
        return tables.rate_table(named).rename_axis(corner) if named else pd.DataFrame()

    made = {measure: grid(values, "defense") for measure, values in rates.items()}
    if not made["targeted"].size:
        del made["targeted"]
    made["strength"] = _strength_table(strengths, attacks, defenses)
    made["differences"] = grid(minus, f"defense, minus {defenses[base]}")
    kinds = ("attack", found.attacks, attacks), ("defense", found.defenses, defenses)
    rows = [(shown[n], kind, text) for kind, own, shown in kinds for n, text in own.items()]
    names = pd.DataFrame(rows, columns=["name", "kind", "in full"], dtype=object).set_index("name")
    unlike: list[dict[str, str]] = [{}] * len(attacks) + [*unlike_knobs(found.defenses).values()]
    if any(unlike):
        told = [", ".join(f"{knob}={value}" for knob, value in own.items()) for own in unlike]
        names["settings that differ"] = told
    return made | {"names": names}


def _strength_table(measured: Strengths, attacks: Names, defenses: Names) -> pd.DataFrame:
    rows = {}
    for (attack, defense), found in measured.items():
        against = f" against {defenses[defense]}" if defense is not None else ""
        rows[attacks[attack] + against] = {
            "n": str(found.n),
            "success": _cell(found.success, 2, found.n),
            "relative L2": _cell(found.l2, 4, found.n),
            "L-infinity of 255": _cell(found.linf, 1, found.n),
            "relative L2, successes": _cell(found.l2_of_successes, 4, found.n),
            "L-infinity of 255, successes": _cell(found.linf_of_successes, 1, found.n),
        }
    return pd.DataFrame.from_dict(rows, orient="index", dtype=object).rename_axis("attack")


def _cell(found: Rate | Mean | None, digits: int, n: int) -> str:
    """Write a rate or a mean; its n only where it is not that of its row."""
    if found is None:
        return "-"
    ends = ", ".join(f"{end:.{digits}f}" for end in found.interval)
    interval = "" if "nan" in ends else f" [{ends}]"
    return f"{found.value:.{digits}f}{interval}" + (f", n = {found.n}" if found.n != n else "")


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


def _said_of_images(
    found: Cells, protocol: str, aggregate: str, skipped: Sequence[tuple[object, str]]
) -> Iterator[str]:
    right = {image for cell in found.cells.values() for image in cell["image"][cell["right_clean"]]}
    yield (
        f"Protocol {protocol}: {PROTOCOLS[protocol]}. The undefended network gets {len(right)} of "
        f"{_images(found.images)} right when clean."
    )
    yield f"Aggregate {aggregate}: {AGGREGATES[aggregate]}."
    if not right:
        yield (
            "No image is right when clean, so there is no destruction rate, no success of an "
            "attack, and nothing that counts under the protocol paper."
        )
    if skipped:
        listed = _joined(f"{name} ({reason})" for name, reason in skipped)
        yield f"{_images(len(skipped))} skipped: {listed}."
    counts = {(d, a): len(found.cell(d, a)) for d, a in product(found.defenses, found.attacks)}
    short = [f"{a} with {d} ({n})" for (d, a), n in counts.items() if n < found.images]
    if short:
        yield (
            f"Not all {found.images} images were evaluated with every attack and defence: "
            f"{_joined(short)}. A dash stands where a comparison lacks the same images."
        )


def _said_of_attacks(strengths: Strengths) -> Iterator[str]:
    for (attack, defense), measured in strengths.items():
        success = measured.success
        if success is not None and success.successes == 0:
            against = f" against {defense}" if defense is not None else ""
            yield (
                f"Attack {attack}{against} never succeeded without a defence, on "
                f"{_images(success.n)} right when clean: it has no destruction rate."
            )
    for attack in dict.fromkeys(attack for attack, defense in strengths if defense is not None):
        yield (
            f"Attack {attack} made another adversary for each defence; its success and its "
            "destruction rate speak of the undefended network, its accuracy of the defended one."
        )


def _said_of_defenses(found: Cells, baseline: Hashable, differences: Differences) -> Iterator[str]:
    single = []
    for name, text in found.defenses.items():
        runs = {cell["runs"].max() for (_, own), cell in found.cells.items() if own == text}
        # One that has no name here may draw random numbers.
        random = text.partition(":")[0] not in DEFENSES or parse_defense(text).random
        single += [name] if runs == {1} and random else []
    if single:
        yield (
            f"A single run each of {_joined(single)}: how much the result depends on the random "
            "numbers drawn is not seen."
        )
    clean = next(name for name, text in found.attacks.items() if text == "none")
    for defense in differences:
        # All images count: of those that the undefended network gets right none can be gained.
        cost = _difference(found, clean, defense, baseline, "plain")
        if cost is not None and cost.value < 0 and cost.p_value < 0.05:
            yield (
                f"Defence {defense} costs clean accuracy: {cost} against {baseline}, over all "
                f"{_images(cost.n)}."
            )
    comparisons = sum(cell is not None for row in differences.values() for cell in row.values())
    if comparisons > 1:
        yield f"The p-values of the {comparisons} differences stand uncorrected."
    yield from unlike_settings(found.defenses)


def _images(n: int) -> str:
    return f"{n} image" if n == 1 else f"{n} images"


def _joined(items: Iterable[Hashable], most: int = 5) -> str:
    listed = [str(item) for item in items]
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def _rows(table: pd.DataFrame) -> list[list[str]]:
    head = [str(table.index.name or ""), *map(str, table.columns)]
    return [head, *([str(cell) for cell in row] for row in table.itertuples(name=None))]


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
    head, *body = (" & ".join(map(_escaped, row)) + r" \\" for row in _rows(table))
    rows = "\n".join([head, r"\midrule", *body])
    return rf"""% needs \usepackage{{booktabs}}
\begin{{table}}
\caption{{{_escaped(caption)}}}
\begin{{tabular}}{{{"l" * (1 + len(table.columns))}}}
\toprule
{rows}
\bottomrule
\end{{tabular}}
\end{{table}}
"""


_NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater"}
_ESCAPES = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {sign: rf"\text{name}{{}}" for sign, name in _NAMED.items()}
)


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_ESCAPES)
