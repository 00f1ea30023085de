"""The tables of the notebooks and of the evaluation."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import extra
from pdutils.stats import Mean, PairedDifference, Rate

with extra("evaluation"):
    import pandas as pd

Counted = Rate | Mean | PairedDifference


def rate_table(rows: Mapping[str, Mapping[str, Counted | None]]) -> pd.DataFrame:
    """Set rates, means or differences, each with its 95% interval, in a table.

    Each row has the same columns; None, where nothing was counted, becomes a dash. The columns
    state n; where it differs between rows, the cells do.
    """
    table = {}
    for column in next(iter(rows.values()), {}):
        found = [row[column] for row in rows.values()]
        counts = {one.n for one in found if one is not None}
        same = len(counts) == 1
        table[f"{column} (n = {counts.pop()})" if same else column] = [
            "-" if one is None else str(one) if same else f"{one}, n = {one.n}" for one in found
        ]
    return pd.DataFrame(table, index=list(rows), dtype=object)


def number_table(rows: Mapping[str, Mapping[str, float | None]]) -> pd.DataFrame:
    """Set plain figures, such as published ones, in a table; None becomes a dash."""
    return pd.DataFrame(rows).T.map(lambda figure: "-" if pd.isna(figure) else f"{figure:.3g}")


def zone_table(changes: Mapping[str, NDArray[np.bool_]], zone: NDArray[np.bool_]) -> pd.DataFrame:
    """Count changed pixels inside a zone (H, W), such as where a map is hot, and outside it.

    `changes` says for each row where an image was changed. A last row for the zone itself says
    what an even spread would have inside.
    """
    table = {}
    for name, changed in {**changes, "all pixels": np.ones_like(zone)}.items():
        there, everywhere = int((changed & zone).sum()), int(changed.sum())
        share = f"{there / everywhere:.0%}" if everywhere else "-"
        table[name] = str(there), str(everywhere - there), share
    return pd.DataFrame(table, index=["inside", "outside", "share inside"], dtype=object).T


def show_results(results: Mapping[str, Any]) -> None:
    """Show a notebook's results as data, for a test or a table to read.

    They are what JSON can hold, numpy's numbers and arrays, what `pdutils.stats` counts, and
    dataclasses of these. A key `headline` holds one sentence for the index of the collection.
    """
    with extra("notebooks"):
        from IPython.display import display

    plain = _plain(results)
    text = json.dumps(_short(plain), indent=1, ensure_ascii=False)
    display({"application/json": plain, "text/plain": text}, raw=True)  # type: ignore[no-untyped-call]


def _short(value: Any) -> Any:
    """Leave long rows of numbers out."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return f"{len(value)} values" if isinstance(value, list) and len(value) > 4 else value


def _plain(value: Any) -> Any:
    if isinstance(value, Counted):
        plain = {"value": value.value, "n": value.n, "interval": value.interval}
        return _plain(plain | ({"p": value.p_value} if isinstance(value, PairedDifference) else {}))
    if is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        # JSON has no NaN.
        return round(value, 6) if np.isfinite(value) else None
    return value
