"""What the defences before ART's estimators and ART's attacks share."""

import logging.config
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import extra

#: The least and the greatest value, as ART takes them: numbers, or arrays for channels or values.
ClipValues = tuple[float | NDArray[Any], float | NDArray[Any]] | NDArray[Any]


@contextmanager
def importing_art() -> Iterator[None]:
    """Import parts of ART (Nicolae et al. 2018, arXiv 1807.01069), and nothing more.

    ART warns of each framework that is not installed, and sets up logging for the whole process,
    which closes the handlers of everybody else.
    """
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        with extra("art"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.config.dictConfig = configure


def checked_range(clip_values: ClipValues) -> float:
    """Give the greatest value of a range, 1 or 255; arrays may say it for each channel or value."""
    try:
        low, high = (np.unique(np.asarray(bound, dtype=np.float64)) for bound in clip_values)
    except (TypeError, ValueError):
        low = high = np.empty(0)
    if low.tolist() != [0] or high.tolist() not in ([1], [255]):
        raise ValueError(
            f"clip_values: expected (0, 255) or (0, 1), for all channels the same, "
            f"got {clip_values!r}"
        )
    return float(high[0])
