"""Progress bars: on a terminal and in a notebook, none in a log file."""

import os
from typing import Any

from tqdm.auto import tqdm


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
    return tqdm(disable=None if shown is None else not shown, **options)
