"""The tables of the notebooks, with the blog's own numbers beside the measured ones."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import display
from numpy.typing import NDArray

from pdutils.published import BLOG
from pdutils.stats import Mean, PairedDifference, Rate

Counted = Rate | Mean | PairedDifference


def step_table(
    steps: Mapping[str, NDArray[Any]], *, label: int, attacked_label: int, names: tuple[str, ...]
) -> pd.DataFrame:
    """Set the probabilities at each step beside the blog's.

    Parameters
    ----------
    steps : mapping of str to ndarray, shape (K,) or (draws, K)
        The class probabilities at each step, for one draw or several.
    label, attacked_label : int
        The true class and the class of the attack.
    names : tuple of str
        The K class names.

    Returns
    -------
    pandas.DataFrame
        A row a step: mean probability of the two classes, the class that is seen most, the range
        of the true class's probability if there are several draws, and the blog's numbers,
        in one column, where it has that step.
    """
    several = any(np.ndim(found) == 2 and len(found) > 1 for found in steps.values())
    rows = []
    for step, found in steps.items():
        draws = np.atleast_2d(found)
        true, blog = draws[:, label], BLOG.get(step, (None, None))
        row: dict[str, Any] = {"step": step, names[label]: true.mean()}
        if attacked_label != label:
            row[names[attacked_label]] = draws[:, attacked_label].mean()
        row["seen as"] = names[np.bincount(draws.argmax(axis=1)).argmax()]
        if several:
            ends = f"{true.min():.2f} to {true.max():.2f}"
            row |= {"draws": len(draws), "range": ends if len(draws) > 1 else ""}
        stated = ", ".join(f"{number:.2f}" for number in blog if number is not None)
        rows.append(row | {"blog: badger, skunk": stated or None})
    table = pd.DataFrame(rows).set_index("step").dropna(axis="columns", how="all")
    return table.map(_cell)


def rate_table(rows: Mapping[str, Mapping[str, Counted | None]]) -> pd.DataFrame:
    """Set rates, means or differences with their intervals in a table.

    Parameters
    ----------
    rows : mapping of str to mapping of str to Rate, Mean, PairedDifference or None
        For each row the one in each column; None, where nothing was counted, becomes a dash.

    Returns
    -------
    pandas.DataFrame
        Each cell reads `rate [low, high]` at 95%. The columns state n; where it differs between
        rows, the cells do.
    """
    table = {}
    for column in next(iter(rows.values())):
        found = [row[column] for row in rows.values()]
        counts = {one.n for one in found if one is not None}
        head = f"{column} (n = {counts.pop()})" if len(counts) == 1 else column
        table[head] = [_counted(one, same_n=head != column) for one in found]
    return pd.DataFrame(table, index=list(rows))


def number_table(rows: Mapping[str, Mapping[str, float | None]]) -> pd.DataFrame:
    """Set plain figures in a table, such as published ones.

    Parameters
    ----------
    rows : mapping of str to mapping of str to (float or None)
        For each row the figure in each column; None, where there is none, becomes a dash.

    Returns
    -------
    pandas.DataFrame
    """
    return pd.DataFrame(rows).T.map(lambda figure: "-" if pd.isna(figure) else f"{figure:.3g}")


def zone_table(changes: Mapping[str, NDArray[np.bool_]], zone: NDArray[np.bool_]) -> pd.DataFrame:
    """Count changed pixels inside a zone and outside it.

    Parameters
    ----------
    changes : mapping of str to ndarray of bool, shape (H, W)
        For each row where an image was changed.
    zone : ndarray of bool, shape (H, W)
        The zone, such as where a map is hot.

    Returns
    -------
    pandas.DataFrame
        A row each, and one for the zone itself, which says what an even spread would have inside.
    """
    counted = {name: (changed & zone, changed & ~zone) for name, changed in changes.items()}
    counted["all pixels"] = (zone, ~zone)
    rows = {}
    for name, (inside, outside) in counted.items():
        there, elsewhere = int(inside.sum()), int(outside.sum())
        share = f"{there / (there + elsewhere):.0%}" if there + elsewhere else "-"
        rows[name] = {"inside": str(there), "outside": str(elsewhere), "share inside": share}
    return pd.DataFrame.from_dict(rows, orient="index")


def show_results(results: Mapping[str, Any]) -> None:
    """Show a notebook's results as data, for a test or a table to read.

    Parameters
    ----------
    results : mapping
        What JSON can hold, numpy's numbers and arrays, what `pdutils.stats` counts, and
        dataclasses of these. A key `headline` holds one sentence for the index of the collection.
    """
    plain = _plain(results)
    bundle = {"application/json": plain, "text/plain": _text(plain)}
    display(bundle, raw=True)  # type: ignore[no-untyped-call]


def _text(results: Mapping[str, Any]) -> str:
    """Write the results as JSON, long rows of numbers left out."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items()}
        return f"{len(value)} values" if isinstance(value, list) and len(value) > 4 else value

    return json.dumps(short(results), indent=1, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Counted):
        plain = {"value": value.value, "n": value.n, "interval": value.interval}
        return _plain(plain | ({"p": value.p_value} if isinstance(value, PairedDifference) else {}))
    if is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        # JSON has no NaN.
        return round(value, 6) if np.isfinite(value) else None
    return value


def _counted(value: Counted | None, *, same_n: bool) -> str:
    if value is None:
        return "-"
    return str(value) if same_n else f"{value}, n = {value.n}"


def _cell(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
