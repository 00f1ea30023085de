"""Ratios of two times that were taken in turn, so that a machine that slows down slows both."""

import timeit
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Side:
    """One side of a ratio.

    Attributes
    ----------
    what : str
        In words.
    run : callable
        The work, finished when it returns.
    units : int
        How many units of work a run does; the time of one counts.
    """

    what: str
    run: Callable[[], Any]
    units: int = 1


@dataclass(frozen=True)
class Measurement:
    """Repeated values of one figure, and the settings they were taken with.

    Attributes
    ----------
    values : list of float
        At least one.
    settings : dict
        What JSON can hold.
    """

    values: list[float]
    settings: dict[str, Any]

    def summary(self) -> dict[str, float]:
        """Give the median as `value`, and `min` and `max`.

        Returns
        -------
        dict of str to float
        """
        return {"value": median(self.values), "min": min(self.values), "max": max(self.values)}


def ratio(above: Side, below: Side, *, repeats: int, seconds: float) -> Measurement:
    """Time two sides in turn, after warm-up.

    Parameters
    ----------
    above, below : Side
        The time of `above` is divided by that of `below`.
    repeats : int
        Pairs of times, at least 1.
    seconds : float
        A side that takes less runs several times for one value.

    Returns
    -------
    Measurement
        One ratio a pair; the settings hold what the sides are and their median times.
    """
    numbers = [_warmed(side, seconds) for side in (above, below)]
    pairs = [
        [_seconds(side, n) for side, n in zip((above, below), numbers, strict=True)]
        for _ in range(repeats)
    ]
    times = [median(column) for column in zip(*pairs, strict=True)]
    return Measurement(
        [over / under for over, under in pairs],
        {
            "above": above.what,
            "below": below.what,
            "above_seconds": times[0],
            "below_seconds": times[1],
            "repeats": repeats,
        },
    )


def _warmed(side: Side, seconds: float) -> int:
    """Run a side until it is compiled and cached; give how many runs fill `seconds`."""
    side.run()
    return max(1, int(seconds / timeit.timeit(side.run, number=1)))


def _seconds(side: Side, number: int) -> float:
    return timeit.timeit(side.run, number=number) / number / side.units
