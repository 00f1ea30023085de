"""From the records of an evaluation to outcomes.

Records have one row for each image, attack, defence and run; a decision turns the runs of a cell
(one image, one attack, one defence) into one outcome.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pdutils.stats import Mean, PairedDifference, Rate

#: What the runs of a defence on an image amount to.
DECISIONS: Mapping[str, str] = {
    "one": "the first run alone",
    "majority": "the class that most runs see; a tie goes to the class of the mean probability",
    "mean": "the class of the mean probability over the runs",
    "worst": "right only if every run is right",
}


_NAMES = ("image", "attack", "defense")


_WHOLE = ("label", "run", "predicted", "mean_predicted", "target")


_FLAGS = ("right_clean", "success")


_MEASURES = ("l2", "linf", "psnr", "ssim")


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
    check_word("decision", decision, DECISIONS)
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


def check_word(name: str, word: str, words: Iterable[str]) -> None:
    """Refuse a word that is none of those known.

    Parameters
    ----------
    name : str
        What the error calls it.
    word : str
        What was given.
    words : iterable of str
        Those known.

    Raises
    ------
    ValueError
        If it is none of them.
    """
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


#: Which images count. The paper's own protocol is the first.
PROTOCOLS: Mapping[str, str] = {
    "paper": "only images that the undefended network gets right when clean",
    "plain": "all images",
}


Rates = dict[str, dict[str, Rate | None]]


Key = TypeVar("Key", bound=Hashable)


class ComparisonError(ValueError):
    """Two cells that were not evaluated, not on the same images, or of which no image counts."""


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


Strengths = dict[tuple[str, str | None], Strength]


@dataclass(frozen=True)
class Cells:
    """The outcomes of an evaluation by attack and defence.

    Attributes
    ----------
    attacks, defenses : list of str
        In the order of the records.
    cells : dict of (str, str) to DataFrame
        By attack and defence, the rows of `pdutils.evaluation.scores.outcomes`.
    images : int
        How many there are in all.
    """

    attacks: list[str]
    defenses: list[str]
    cells: dict[tuple[str, str], pd.DataFrame]
    images: int

    @classmethod
    def of(cls, records: pd.DataFrame, decision: str = "one") -> "Cells":
        """Decide the outcome of each image, attack and defence.

        Parameters
        ----------
        records : pandas.DataFrame
            The records of an evaluation.
        decision : {"one", "majority", "mean", "worst"}
            As in `pdutils.evaluation.scores.outcomes`.

        Returns
        -------
        Cells

        Raises
        ------
        ValueError
            As `pdutils.evaluation.scores.outcomes`.
        """
        return cls.of_blocks([records], decision)

    @classmethod
    def of_blocks(cls, blocks: Iterable[pd.DataFrame], decision: str = "one") -> "Cells":
        """Do as `of` for records that come in parts, each with all the records of its images.

        Of a part no more than its outcomes stays in memory.

        Parameters
        ----------
        blocks : iterable of pandas.DataFrame
            The records of some images each, such as `evaluation.store.StoredRecords.blocks` gives.
        decision : {"one", "majority", "mean", "worst"}
            As in `pdutils.evaluation.scores.outcomes`.

        Returns
        -------
        Cells

        Raises
        ------
        ValueError
            As `pdutils.evaluation.scores.outcomes`, or if there is no block.
        """
        found = [outcomes(block, decision) for block in blocks]
        if not found:
            raise ValueError("records: expected at least one row, got none")
        texts = {name: _categories(found, name) for name in ("attack", "defense", "image")}
        parts: dict[tuple[str, str], list[pd.DataFrame]] = {}
        for block in found:
            recoded = block.assign(
                **{name: block[name].cat.set_categories(known) for name, known in texts.items()}
            )
            for key, cell in recoded.groupby(["attack", "defense"], observed=True, sort=False):
                parts.setdefault((str(key[0]), str(key[1])), []).append(cell)
        cells = {key: pd.concat(several) for key, several in parts.items()}
        return cls(texts["attack"], texts["defense"], cells, len(texts["image"]))

    @property
    def made(self) -> list[str]:
        """The attacks without "none"."""
        return [attack for attack in self.attacks if attack != "none"]

    def accuracy(self, protocol: str = "paper") -> Rates:
        """Give the share of images classified right, for each defence and attack.

        Parameters
        ----------
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        dict of str to dict of str to (Rate or None)
            By defence, then attack. None where nothing was evaluated or no image counts.

        Raises
        ------
        ValueError
            If there is no such protocol.
        """
        check_word("protocol", protocol, PROTOCOLS)
        marked = self._marked(counted=lambda cell: _counted(cell, protocol))
        return marked._rates(self.attacks, "right", "counted")

    def destruction(self) -> Rates:
        """Give the share of adversaries that are turned back.

        An adversary counts if it succeeded without a defence on an image right when clean; it is
        turned back if the defended network sees the true class (the destruction rate of Kurakin
        2017, arXiv 1607.02533, as in Table 4 of the paper).

        Returns
        -------
        dict of str to dict of str to (Rate or None)
            By defence, then attack, without "none". None where no adversary succeeded.
        """
        marked = self._marked(counted=lambda cell: cell["success"] & cell["right_clean"])
        return marked._rates(self.made, "right", "counted")

    def check_successes(self, attacks: Iterable[str]) -> None:
        """Refuse to go on with an attack that leaves nothing to turn back.

        Parameters
        ----------
        attacks : iterable of str
            Those whose destruction rate is wanted.

        Raises
        ------
        ValueError
            If one of them fooled the network on no image that is right when clean.
        """
        turned = self.destruction()
        for attack in attacks:
            if all(rates[attack] is None for rates in turned.values()):
                raise ValueError(
                    f"{attack} fooled the network on none of the images that are right when clean, "
                    "so there is nothing to turn back: take a stronger one"
                )

    def targeted_success(self, protocol: str = "plain") -> Rates:
        """Give the share of adversaries that are seen as the class that the attack aims at.

        With the decision "worst" an attack reaches its target if any run sees it.

        Parameters
        ----------
        protocol : {"plain", "paper"}
            All images, or only those right when clean.

        Returns
        -------
        dict of str to dict of str to (Rate or None)
            By defence, then targeted attack; other attacks are left out.

        Raises
        ------
        ValueError
            If there is no such protocol.
        """
        check_word("protocol", protocol, PROTOCOLS)
        aimed = {attack for (attack, _), cell in self.cells.items() if (cell["target"] >= 0).any()}
        marked = self._marked(
            counted=lambda cell: _counted(cell, protocol) & (cell["target"] >= 0),
            reached=lambda cell: cell["predicted"] == cell["target"],
        )
        return marked._rates([a for a in self.attacks if a in aimed], "reached", "counted")

    def strengths(self, protocol: str = "paper") -> Strengths:
        """Give the strength of each attack, without which no rate means anything.

        Parameters
        ----------
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        dict of (str, str or None) to Strength
            By attack, without "none", and by defence where the attack made another adversary for
            each; else None stands for the defence.

        Raises
        ------
        ValueError
            If there is no such protocol.
        """
        check_word("protocol", protocol, PROTOCOLS)
        measured: Strengths = {}
        for attack in self.made:
            cells = {d: self.cells[attack, d] for d in self.defenses if (attack, d) in self.cells}
            if _adaptive(cells.values()):
                measured |= {(attack, d): _strength(cell, protocol) for d, cell in cells.items()}
            else:
                once = pd.concat(cells.values()).drop_duplicates("image")
                measured[attack, None] = _strength(once, protocol)
        return measured

    def strength(self, protocol: str = "paper") -> dict[str, Strength]:
        """Do as `strengths`, by name: "attack against defence" where it is another for each.

        Parameters
        ----------
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        dict of str to Strength

        Raises
        ------
        ValueError
            If there is no such protocol.
        """
        return {
            attack if defense is None else f"{attack} against {defense}": measured
            for (attack, defense), measured in self.strengths(protocol).items()
        }

    def paired(
        self, attack: str, first: str, second: str, protocol: str = "paper"
    ) -> PairedDifference:
        """Compare two defences on the same images under one attack.

        Parameters
        ----------
        attack, first, second : str
            The attack ("none" for clean images) and the two defences.
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        PairedDifference
            The share that is right with the first minus the share that is right with the second.

        Raises
        ------
        ValueError
            If there is no such protocol, no such attack with such a defence, the two were
            evaluated on different images, or no image counts.
        """
        return _paired(self, self, (attack, first), (attack, second), protocol)

    def between_attacks(
        self, defense: str, first: str, second: str, protocol: str = "paper"
    ) -> PairedDifference:
        """Compare two attacks on the same images with one defence.

        Parameters
        ----------
        defense, first, second : str
            The defence and the two attacks.
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        PairedDifference
            The share that is right under the first minus the share that is right under the second.

        Raises
        ------
        ValueError
            If there is no such protocol, no such attack with such a defence, or no image counts.
        """
        return _paired(self, self, (first, defense), (second, defense), protocol)

    def against(
        self, other: "Cells", attack: str, defense: str, protocol: str = "paper"
    ) -> PairedDifference:
        """Compare two decisions on the same images.

        Parameters
        ----------
        other : Cells
            The same records under the other decision.
        attack, defense : str
            The attack and the defence.
        protocol : {"paper", "plain"}
            Only images right when clean, or all.

        Returns
        -------
        PairedDifference
            The share that is right here minus the share that is right there.

        Raises
        ------
        ValueError
            As `between_attacks`.
        """
        return _paired(self, other, (attack, defense), (attack, defense), protocol)

    def difference(
        self, attack: str, first: str, second: str, protocol: str
    ) -> PairedDifference | None:
        """Do as `paired`, but give None for a comparison that cannot be made.

        Parameters
        ----------
        attack, first, second, protocol
            As in `paired`.

        Returns
        -------
        PairedDifference or None

        Raises
        ------
        ValueError
            If there is no such protocol.
        """
        try:
            return self.paired(attack, first, second, protocol)
        except ComparisonError:
            return None

    def _rates(self, attacks: Iterable[str], hits: str, of: str) -> Rates:
        """Count a column of hits over the images that another column marks."""

        def rate(cell: pd.DataFrame | None) -> Rate | None:
            counted = None if cell is None else cell[hits].to_numpy()[cell[of].to_numpy()]
            return None if counted is None or len(counted) == 0 else Rate.of(counted)

        return {
            defense: {attack: rate(self.cells.get((attack, defense))) for attack in attacks}
            for defense in self.defenses
        }

    def _marked(self, **columns: Any) -> "Cells":
        """Add columns, each made by a function of a cell."""
        cells = {key: cell.assign(**columns) for key, cell in self.cells.items()}
        return Cells(self.attacks, self.defenses, cells, self.images)


def _paired(
    first: Cells, second: Cells, one: tuple[str, str], other: tuple[str, str], protocol: str
) -> PairedDifference:
    """Compare the cell `one` of the first with the cell `other` of the second."""
    check_word("protocol", protocol, PROTOCOLS)
    for cells, (attack, defense) in ((first, one), (second, other)):
        if (attack, defense) not in cells.cells:
            raise ComparisonError(
                f"expected records of attack {attack!r} with defence {defense!r}, got the attacks "
                f"{', '.join(cells.attacks)} and the defences {', '.join(cells.defenses)}"
            )
    left, right = first.cells[one], second.cells[other]
    if list(left["image"]) != list(right["image"]):
        raise ComparisonError(
            f"expected {' with '.join(one)} and {' with '.join(other)} on the same images, got "
            f"{len(left)} and {len(right)} images"
        )
    counted = _counted(left, protocol)
    if not counted.any():
        raise ComparisonError("expected an image that is right when clean, got none")
    return PairedDifference.of(
        left["right"].to_numpy()[counted], right["right"].to_numpy()[counted]
    )


def named(
    rates: Rates, defenses: Mapping[str, str], attacks: Mapping[Key, str]
) -> dict[str, dict[Key, Rate | None]]:
    """Pick rates and call their defences and attacks by other names.

    Parameters
    ----------
    rates : dict of str to dict of str to (Rate or None)
        As `Cells` gives them, by the texts of defences and attacks.
    defenses : mapping of str to str
        The texts of the defences wanted, by name.
    attacks : mapping of key to str
        The texts of the attacks wanted, by name, or by the value of the knob that is moved.

    Returns
    -------
    dict of str to dict of key to (Rate or None)

    Raises
    ------
    KeyError
        If one of them was not evaluated.
    """
    return {
        name: {key: rates[text][attack] for key, attack in attacks.items()}
        for name, text in defenses.items()
    }


def _categories(found: Iterable[pd.DataFrame], name: str) -> list[str]:
    """List the texts of a column in the order in which they are first seen."""
    return list(dict.fromkeys(text for block in found for text in block[name].cat.categories))


def _counted(cell: pd.DataFrame, protocol: str) -> NDArray[np.bool_]:
    right_clean: NDArray[np.bool_] = cell["right_clean"].to_numpy()
    return right_clean if protocol == "paper" else np.ones_like(right_clean)


def _adaptive(cells: Iterable[pd.DataFrame]) -> bool:
    """Tell whether the adversaries of one attack differ between defences."""
    kinds = pd.concat([cell[["image", "l2", "linf", "success", "target"]] for cell in cells])
    kinds = kinds.drop_duplicates()
    return bool(kinds["image"].duplicated().any())


def _strength(cell: pd.DataFrame, protocol: str) -> Strength:
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
