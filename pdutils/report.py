"""From the records of an evaluation to rates, tables and the sentences that go with them.

Records have one row for each image, attack, defence and run. A decision turns the runs of a cell
(one image, one attack, one defence) into one outcome; a protocol says which images count.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pdutils.images import whole_file
from pdutils.statistics import Mean, PairedDifference, Rate
from pdutils.suite import parse_defense

#: Which images count. The paper's own protocol is the first.
PROTOCOLS: Mapping[str, str] = {
    "paper": "only images that the undefended network gets right when clean",
    "plain": "all images",
}

#: What the runs of a defence on an image amount to.
DECISIONS: Mapping[str, str] = {
    "one": "the first run alone",
    "majority": "the class that most runs see; a tie goes to the class of the mean probability",
    "mean": "the class of the mean probability over the runs",
    "worst": "right only if every run is right",
}

#: Which sentences name a cost on clean images: those with a p-value below this.
SIGNIFICANT = 0.05

_NAMES = ("image", "attack", "defense")
_WHOLE = ("label", "run", "predicted", "mean_predicted", "target")
_FLAGS = ("right_clean", "success")
_MEASURES = ("l2", "linf", "psnr", "ssim")

_TITLES = {
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

Rates = dict[str, dict[str, Rate | None]]


# From runs to outcomes


def outcomes(records: pd.DataFrame, decision: str) -> pd.DataFrame:
    """Turn the runs of each image, attack and defence into one outcome.

    Parameters
    ----------
    records : pandas.DataFrame
        The records of an evaluation; rows in any order.
    decision : {"one", "majority", "mean", "worst"}
        The class of the first run; the class that most runs see (of tied classes that of the mean
        probability if it is among them, else the one seen first); the class of the mean
        probability over all runs; or right only if every run is right. A wrong outcome of "worst"
        shows the class that an attack aims at if any run saw it, else the first wrong class.

    Returns
    -------
    pandas.DataFrame
        A row for each image, attack and defence, in the order in which the records name attacks,
        defences and images, "none" first: image, attack, defense (categories in that order),
        label, target, right_clean, success, runs, predicted, right, and l2, linf, psnr and ssim,
        means over the runs.

    Raises
    ------
    ValueError
        If columns are missing or of another kind, there is no row, the runs of a cell are not
        0, 1, 2, ..., or rows contradict each other about an image or an adversary.
    """
    _check_word("decision", decision, DECISIONS)
    runs = _sorted_runs(records)
    columns, starts = runs.columns, runs.starts
    predicted = _decided(runs, decision)
    found: dict[str, Any] = {
        name: pd.Categorical.from_codes(columns[name][starts], categories=pd.Index(names))
        for name, names in runs.names.items()
    }
    for name in ("label", "target", *_FLAGS):
        found[name] = columns[name][starts]
    found |= {"runs": runs.counts, "predicted": predicted}
    found["right"] = predicted == found["label"]
    for name in _MEASURES:
        found[name] = _means(runs, name)
    return pd.DataFrame(found)


@dataclass(frozen=True)
class _Runs:
    """Records sorted by attack, defence, image and run; a cell is the runs of the first three."""

    columns: dict[str, NDArray[Any]]
    names: dict[str, list[str]]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Give each run the value of its cell."""
        return np.repeat(values, self.counts)


def _sorted_runs(records: pd.DataFrame) -> _Runs:
    columns, names = _columns(records)
    _check_constant(columns["image"], columns, ("label", "right_clean"), names["image"])
    cell = columns["attack"]
    for name in ("defense", "image"):
        cell = cell * len(names[name]) + columns[name]
    # Two keys in one number sort several times faster than np.lexsort.
    longest = int(columns["run"].max()) + 1
    order = np.argsort(cell * longest + columns["run"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    cell = cell[order]
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    counts = np.diff(starts, append=len(cell))
    runs = _Runs(columns, names, starts, counts)
    _check_numbering(runs)
    _check_constant(runs.spread(np.arange(len(starts))), columns, ("target", "success"), None)
    return runs


def _columns(records: pd.DataFrame) -> tuple[dict[str, NDArray[Any]], dict[str, list[str]]]:
    """Check the records; give names as numbers in order of appearance, and the names."""
    if not isinstance(records, pd.DataFrame):
        raise ValueError(f"records: expected a pandas.DataFrame, got {type(records).__name__}")
    expected = (*_NAMES, *_WHOLE, *_FLAGS, *_MEASURES)
    missing = [name for name in expected if name not in records.columns]
    if missing:
        raise ValueError(
            f"records: expected the columns {', '.join(expected)}; missing: {', '.join(missing)}"
        )
    if records.empty:
        raise ValueError("records: expected at least one row, got none")
    columns: dict[str, NDArray[Any]] = {}
    names = {}
    for name in _NAMES:
        columns[name], names[name] = _numbered(records[name])
    for name in _WHOLE:
        columns[name] = _whole(records[name], least=-1 if name == "target" else 0)
    for name in _FLAGS:
        columns[name] = _flags(records[name])
    for name in _MEASURES:
        columns[name] = _floats(records[name])
    return columns, names


def _numbered(values: pd.Series) -> tuple[NDArray[np.int64], list[str]]:
    """Turn names into numbers in order of appearance, "none" before all others."""
    if values.isna().any():
        raise ValueError(f"records: expected a name in every row of {values.name}, got none in one")
    texts = values.to_numpy(object)
    # Records come in stretches of one name, and telling neighbours apart costs less than hashing.
    begins = np.flatnonzero(np.append(True, texts[1:] != texts[:-1]))
    codes, seen = pd.factorize(texts[begins])
    names = [str(name) for name in seen]
    order = sorted(range(len(names)), key=lambda i: names[i] != "none")
    stretches = np.diff(begins, append=len(texts))
    return np.repeat(np.argsort(order)[codes], stretches), [names[i] for i in order]


def _whole(values: pd.Series, least: int) -> NDArray[np.int64]:
    if not pd.api.types.is_integer_dtype(values) or values.isna().any() or values.min() < least:
        raise ValueError(
            f"records: expected whole numbers of at least {least} in {values.name}, "
            f"got {_shown(values)}"
        )
    return values.to_numpy(np.int64)


def _flags(values: pd.Series) -> NDArray[np.bool_]:
    # A database gives 0 and 1.
    if not values.isin([False, True]).all():
        raise ValueError(f"records: expected true or false in {values.name}, got {_shown(values)}")
    return values.to_numpy(bool)


def _floats(values: pd.Series) -> NDArray[np.float64]:
    if not pd.api.types.is_numeric_dtype(values):
        raise ValueError(f"records: expected numbers in {values.name}, got {_shown(values)}")
    return values.to_numpy(np.float64)


def _shown(values: pd.Series) -> str:
    return f"{values.dtype} such as {list(values[:3])}"


def _check_word(name: str, word: str, words: Iterable[str]) -> None:
    if word not in words:
        raise ValueError(f"{name}: expected one of {', '.join(words)}, got {word!r}")


def _check_constant(
    groups: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any]],
    constant: Iterable[str],
    images: Sequence[str] | None,
) -> None:
    """Refuse rows of one group that differ in what the group has in common."""
    for name in constant:
        values = columns[name]
        common = np.empty(groups.max() + 1, values.dtype)
        common[groups] = values
        wrong = np.flatnonzero(values != common[groups])
        if len(wrong):
            group = groups[wrong[0]]
            of = "an image" if images is not None else "an image, attack and defence"
            which = f", in {images[group]}" if images is not None else ""
            raise ValueError(
                f"records: expected one {name} for {of}, got {values[wrong[0]]} and "
                f"{common[group]}{which}"
            )


def _check_numbering(runs: _Runs) -> None:
    expected = np.arange(len(runs.columns["run"])) - runs.spread(runs.starts)
    wrong = np.flatnonzero(runs.columns["run"] != expected)
    if len(wrong):
        which = [runs.names[name][runs.columns[name][wrong[0]]] for name in _NAMES]
        raise ValueError(
            "records: expected runs 0, 1, 2, ... once for each image, attack and defence, "
            f"got run {runs.columns['run'][wrong[0]]} where {expected[wrong[0]]} belongs, "
            f"in {', '.join(which)}"
        )


def _decided(runs: _Runs, decision: str) -> NDArray[np.int64]:
    """Give the class of each cell."""
    predicted = runs.columns["predicted"]
    mean: NDArray[np.int64] = runs.columns["mean_predicted"][runs.starts + runs.counts - 1]
    if decision == "mean":
        return mean
    if decision == "one":
        worth = runs.columns["run"] == 0
    elif decision == "majority":
        worth = 2 * _votes(runs) + (predicted == runs.spread(mean))
    else:
        wrong = predicted != runs.columns["label"]
        worth = np.add(wrong, wrong & (predicted == runs.columns["target"]), dtype=np.int64)
    return predicted[_first_greatest(worth, runs)]


def _means(runs: _Runs, name: str) -> NDArray[np.float64]:
    """Average over the runs of each cell."""
    values = runs.columns[name]
    first = values[runs.starts]
    # Equal values give that very value: a sum of them divided again may be off by a bit.
    base = np.where(np.isfinite(first), first, 0.0)
    return base + np.add.reduceat(values - runs.spread(base), runs.starts) / runs.counts


def _votes(runs: _Runs) -> NDArray[np.int64]:
    """Count for each run the runs of its cell that see the same class."""
    predicted = runs.columns["predicted"]
    cell = runs.spread(np.arange(len(runs.starts)))
    codes, _ = pd.factorize(cell * (int(predicted.max()) + 1) + predicted)
    votes: NDArray[np.int64] = np.bincount(codes)[codes]
    return votes


def _first_greatest(worth: NDArray[np.int64], runs: _Runs) -> NDArray[np.int64]:
    """Find in each cell the first run of the greatest worth."""
    greatest = np.maximum.reduceat(worth, runs.starts)
    places = np.flatnonzero(worth == runs.spread(greatest))
    return places[np.searchsorted(places, runs.starts)]


# From outcomes to rates


def accuracy(records: pd.DataFrame, protocol: str, decision: str) -> Rates:
    """Give the share of images classified right, for each defence and attack.

    Parameters
    ----------
    records : pandas.DataFrame
        The records of an evaluation.
    protocol : {"paper", "plain"}
        Only images right when clean, or all.
    decision : {"one", "majority", "mean", "worst"}
        As in `outcomes`.

    Returns
    -------
    dict of str to dict of str to (Rate or None)
        By defence, then attack. None where nothing was evaluated or no image counts.

    Raises
    ------
    ValueError
        As `outcomes`, and if there is no such protocol.
    """
    return _accuracy(_Found.of(records, decision), protocol)


def destruction(records: pd.DataFrame, decision: str) -> Rates:
    """Give the share of successful adversaries that each defence turns back.

    Counted are the adversaries that fool the undefended network, made from images that it gets
    right when clean; turned back are those that are classified right with the defence (Kurakin,
    Goodfellow and Bengio 2017, arXiv 1607.02533; table 4 of Prakash and others 2018, arXiv
    1801.08926).

    Parameters
    ----------
    records : pandas.DataFrame
        The records of an evaluation.
    decision : {"one", "majority", "mean", "worst"}
        As in `outcomes`.

    Returns
    -------
    dict of str to dict of str to (Rate or None)
        By defence, then attack; the attack "none" is left out. None where no adversary succeeded.

    Raises
    ------
    ValueError
        As `outcomes`.
    """
    return _destruction(_Found.of(records, decision))


def targeted_success(records: pd.DataFrame, decision: str, protocol: str = "plain") -> Rates:
    """Give the share of images that are classified as the class that the attack aims at.

    Parameters
    ----------
    records : pandas.DataFrame
        The records of an evaluation.
    decision : {"one", "majority", "mean", "worst"}
        As in `outcomes`; with "worst" an attack reaches its target if any run sees it.
    protocol : {"plain", "paper"}
        All images, or only those right when clean.

    Returns
    -------
    dict of str to dict of str to (Rate or None)
        By defence, then targeted attack; other attacks are left out.

    Raises
    ------
    ValueError
        As `outcomes`, and if there is no such protocol.
    """
    return _targeted(_Found.of(records, decision), protocol)


@dataclass(frozen=True)
class Strength:
    """How strong an attack was on the undefended network.

    Attributes
    ----------
    n : int
        The images that count.
    success : Rate or None
        Those whose adversary succeeded, of the images right when clean; None if there is none.
    l2, linf : Mean or None
        The size of the perturbation over all images that count: ||x - x'|| / ||x||, and the
        greatest difference in grey levels of 255. None if no image counts.
    l2_of_successes, linf_of_successes : Mean or None
        The same over the successful adversaries of images right when clean.
    """

    n: int
    success: Rate | None
    l2: Mean | None
    linf: Mean | None
    l2_of_successes: Mean | None
    linf_of_successes: Mean | None


def strength(records: pd.DataFrame, protocol: str = "paper") -> dict[str, Strength]:
    """Give the strength of each attack, without which no rate means anything.

    Parameters
    ----------
    records : pandas.DataFrame
        The records of an evaluation.
    protocol : {"paper", "plain"}
        Only images right when clean, or all.

    Returns
    -------
    dict of str to Strength
        By attack, without "none". Where an attack made another adversary for each defence, by
        "attack against defence".

    Raises
    ------
    ValueError
        As `outcomes`, and if there is no such protocol.
    """
    found = _Found.of(records, "one")
    return {
        attack if defense is None else f"{attack} against {defense}": measured
        for (attack, defense), measured in _strength(found, protocol).items()
    }


def paired(
    records: pd.DataFrame, attack: str, first: str, second: str, protocol: str, decision: str
) -> PairedDifference:
    """Compare two defences on the same images under one attack.

    Parameters
    ----------
    records : pandas.DataFrame
        The records of an evaluation.
    attack, first, second : str
        The attack ("none" for clean images) and the two defences.
    protocol : {"paper", "plain"}
        Only images right when clean, or all.
    decision : {"one", "majority", "mean", "worst"}
        As in `outcomes`.

    Returns
    -------
    PairedDifference
        The share that is right with the first minus the share that is right with the second.

    Raises
    ------
    ValueError
        As `outcomes`; if the records hold no such attack with such a defence, the two were
        evaluated on different images, or no image counts.
    """
    found = _Found.of(records, decision)
    for defense in (first, second):
        if (attack, defense) not in found.cells:
            raise ValueError(
                f"expected records of attack {attack!r} with defence {defense!r}, got the attacks "
                f"{', '.join(found.attacks)} and the defences {', '.join(found.defenses)}"
            )
    if not found.same_images(attack, first, second):
        raise ValueError(
            f"expected {first!r} and {second!r} on the same images under {attack!r}, got "
            f"{len(found.cells[attack, first])} and {len(found.cells[attack, second])} images"
        )
    difference = _difference(found, attack, first, second, protocol)
    if difference is None:
        raise ValueError("expected an image that is right when clean, got none")
    return difference


@dataclass(frozen=True)
class _Found:
    """Outcomes by attack and defence, in the order of the records."""

    attacks: list[str]
    defenses: list[str]
    cells: dict[tuple[str, str], pd.DataFrame]
    images: int

    @classmethod
    def of(cls, records: pd.DataFrame, decision: str) -> "_Found":
        found = outcomes(records, decision)
        groups = found.groupby(["attack", "defense"], observed=True, sort=False)
        cells = {(str(key[0]), str(key[1])): cell for key, cell in groups}
        attacks, defenses, images = (
            found[name].cat.categories for name in ("attack", "defense", "image")
        )
        return cls(list(attacks), list(defenses), cells, len(images))

    @property
    def made(self) -> list[str]:
        """The attacks without "none"."""
        return [attack for attack in self.attacks if attack != "none"]

    def same_images(self, attack: str, first: str, second: str) -> bool:
        one, other = (self.cells[attack, defense]["image"] for defense in (first, second))
        return bool(np.array_equal(one.cat.codes, other.cat.codes))

    def rates(self, attacks: Iterable[str], hits: str, of: str) -> Rates:
        """Count a column of hits over the images that another column marks."""

        def rate(cell: pd.DataFrame | None) -> Rate | None:
            counted = None if cell is None else cell[hits].to_numpy()[cell[of].to_numpy()]
            return None if counted is None or len(counted) == 0 else Rate.of(counted)

        return {
            defense: {attack: rate(self.cells.get((attack, defense))) for attack in attacks}
            for defense in self.defenses
        }

    def marked(self, **columns: Any) -> "_Found":
        """Add columns, each made by a function of a cell."""
        cells = {key: cell.assign(**columns) for key, cell in self.cells.items()}
        return _Found(self.attacks, self.defenses, cells, self.images)


def _counted(cell: pd.DataFrame, protocol: str) -> NDArray[np.bool_]:
    right_clean: NDArray[np.bool_] = cell["right_clean"].to_numpy()
    return right_clean if protocol == "paper" else np.ones_like(right_clean)


def _accuracy(found: _Found, protocol: str) -> Rates:
    _check_word("protocol", protocol, PROTOCOLS)
    marked = found.marked(counted=lambda cell: _counted(cell, protocol))
    return marked.rates(found.attacks, "right", "counted")


def _destruction(found: _Found) -> Rates:
    marked = found.marked(counted=lambda cell: cell["success"] & cell["right_clean"])
    return marked.rates(found.made, "right", "counted")


def _targeted(found: _Found, protocol: str) -> Rates:
    _check_word("protocol", protocol, PROTOCOLS)
    aimed = {attack for (attack, _), cell in found.cells.items() if (cell["target"] >= 0).any()}
    marked = found.marked(
        counted=lambda cell: _counted(cell, protocol) & (cell["target"] >= 0),
        reached=lambda cell: cell["predicted"] == cell["target"],
    )
    return marked.rates([a for a in found.attacks if a in aimed], "reached", "counted")


Strengths = dict[tuple[str, str | None], Strength]


def _strength(found: _Found, protocol: str) -> Strengths:
    _check_word("protocol", protocol, PROTOCOLS)
    measured: Strengths = {}
    for attack in found.made:
        cells = {d: found.cells[attack, d] for d in found.defenses if (attack, d) in found.cells}
        if _adaptive(cells.values()):
            measured |= {(attack, d): _strength_of(cell, protocol) for d, cell in cells.items()}
        else:
            once = pd.concat(cells.values()).drop_duplicates("image")
            measured[attack, None] = _strength_of(once, protocol)
    return measured


def _adaptive(cells: Iterable[pd.DataFrame]) -> bool:
    """Tell whether the adversaries of one attack differ between defences."""
    kinds = pd.concat([cell[["image", "l2", "linf", "success", "target"]] for cell in cells])
    kinds = kinds.drop_duplicates()
    return bool(kinds["image"].duplicated().any())


def _strength_of(cell: pd.DataFrame, protocol: str) -> Strength:
    right = cell["right_clean"].to_numpy()
    success = cell["success"].to_numpy()
    counted = _counted(cell, protocol)

    def mean(name: str, which: NDArray[np.bool_]) -> Mean | None:
        values = cell[name].to_numpy()[which]
        return Mean.of(values) if len(values) else None

    return Strength(
        n=int(counted.sum()),
        success=Rate.of(success[right]) if right.any() else None,
        l2=mean("l2", counted),
        linf=mean("linf", counted),
        l2_of_successes=mean("l2", success & right),
        linf_of_successes=mean("linf", success & right),
    )


def _difference(
    found: _Found, attack: str, first: str, second: str, protocol: str
) -> PairedDifference | None:
    """Compare two cells; None if one is missing, they differ in images, or no image counts."""
    _check_word("protocol", protocol, PROTOCOLS)
    if any((attack, defense) not in found.cells for defense in (first, second)):
        return None
    if not found.same_images(attack, first, second):
        return None
    one, other = found.cells[attack, first], found.cells[attack, second]
    counted = _counted(one, protocol)
    if not counted.any():
        return None
    return PairedDifference.of(one["right"].to_numpy()[counted], other["right"].to_numpy()[counted])


# From rates to tables


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
        protocol: str,
        decision: str,
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
        found = _Found.of(records, decision)
        baseline = _checked_baseline(found, baseline)
        measures = {"accuracy": _accuracy(found, protocol), "destruction": _destruction(found)}
        measures["targeted"] = _targeted(found, protocol)
        strengths = _strength(found, protocol)
        differences = _differences(found, baseline, protocol)
        if skipped is None:
            skipped = records.attrs.get("skipped", ())
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
        return _page(self.tables, self.sentences)

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


def report_tables(
    records: pd.DataFrame, protocol: str, decision: str, baseline: str | None = None
) -> dict[str, pd.DataFrame]:
    """Set the results of an evaluation in tables of text, each with its n.

    Parameters
    ----------
    records, protocol, decision, baseline
        As in `Report.of`.

    Returns
    -------
    dict of str to pandas.DataFrame
        "accuracy", "destruction", "targeted" (where an attack aims at a class), "differences" and
        "names" have a row a defence; "strength" has a row an attack. Columns and rows bear short
        names, which "names" gives in full; the attack "none" is called "clean". A dash stands
        where nothing was evaluated or nothing can be counted.

    Raises
    ------
    ValueError
        As `Report.of`.
    """
    return Report.of(records, protocol, decision, baseline).tables


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


def _checked_baseline(found: _Found, baseline: str | None) -> str:
    if baseline is not None and baseline not in found.defenses:
        raise ValueError(
            f"baseline: expected one of the defences {', '.join(found.defenses)}, got {baseline!r}"
        )
    return baseline or "none"


Differences = dict[str, dict[str, PairedDifference | None]]


def _differences(found: _Found, baseline: str, protocol: str) -> Differences:
    return {
        defense: {
            attack: _difference(found, attack, defense, baseline, protocol)
            for attack in found.attacks
        }
        for defense in found.defenses
        if defense != baseline
    }


def _tables(
    found: _Found,
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
            "success": "-" if found.success is None else f"{found.success}, n = {found.success.n}",
            "relative L2": _mean(found.l2, 4),
            "L-infinity of 255": _mean(found.linf, 1),
            "relative L2, successes": _mean(found.l2_of_successes, 4),
            "L-infinity of 255, successes": _mean(found.linf_of_successes, 1),
        }
        for (attack, defense), found in measured.items()
    ]
    columns = ["attack", "n", "success", "relative L2", "L-infinity of 255",
               "relative L2, successes", "L-infinity of 255, successes"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns, dtype=object).set_index("attack")


def _mean(mean: Mean | None, digits: int) -> str:
    if mean is None:
        return "-"
    low, high = mean.interval
    interval = "" if mean.n == 1 else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean.value:.{digits}f}{interval}, n = {mean.n}"


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


# What must be said


def _basis(found: _Found, protocol: str, decision: str) -> list[str]:
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


def _uneven(found: _Found) -> list[str]:
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


def _run_numbers(found: _Found) -> list[str]:
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


def _costs(found: _Found, baseline: str) -> list[str]:
    """Name defences that cost clean accuracy.

    All images count, since of those that the undefended network gets right none can be gained.
    """
    said = []
    for defense in found.defenses:
        cost = None
        if defense != baseline:
            cost = _difference(found, "none", defense, baseline, "plain")
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


# Writing


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
        texts[f"{stem}_{name}.tex"] = latex(table, _TITLES.get(name, name))
    if numbers is not None:
        texts[f"{stem}_numbers.csv"] = numbers.to_csv(index=False, lineterminator="\n")
    texts[f"{stem}.md"] = _page(tables, sentences)
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


def _page(tables: Mapping[str, pd.DataFrame], sentences: Sequence[str]) -> str:
    blocks = [f"- {sentence}" for sentence in sentences]
    parts = ["\n".join(blocks)] if blocks else []
    for name, table in tables.items():
        if table.size:
            parts += [f"### {_TITLES.get(name, name)}", markdown(table)]
    return "\n\n".join(parts) + "\n"
