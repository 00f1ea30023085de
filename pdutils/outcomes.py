"""From the records of an evaluation to outcomes.

Records have one row for each image, attack, defence and run; a decision turns the runs of a cell
(one image, one attack, one defence) into one outcome.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
