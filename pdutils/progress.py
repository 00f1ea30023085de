"""Progress bars: on a terminal and in a notebook, none in a log file."""

import os
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*, shown: bool | None = None, **options: Any) -> "tqdm[Any]":
    """Make a bar of tqdm, a widget in a notebook.

    Parameters
    ----------
    shown : bool, optional
        By default the bar is shown where somebody looks: on a terminal and in a notebook, unless
        the environment variable TQDM_DISABLE is set, as it is in a run without a screen.
    **options
        For `tqdm.tqdm`, such as `total=100, unit="image"`.

    Returns
    -------
    tqdm.tqdm
    """
    if shown is None:
        # tqdm itself reads this variable only where `disable` is not given.
        shown = False if os.environ.get("TQDM_DISABLE") else None
    disable = None if shown is None else not shown
    if "ipykernel" not in sys.modules:
        return tqdm(disable=disable, **options)
    from tqdm.auto import tqdm as widget

    in_a_notebook: tqdm[Any] = widget(disable=disable, **options)
    return in_a_notebook
