"""Rates and means over images, each with its 95% interval."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True)
class Rate:
    """How many of n, with the 95% interval of Wilson.

    Attributes
    ----------
    successes, n : int
        0 <= successes <= n.

    Raises
    ------
    ValueError
        If n is below 1 or `successes` is not in [0, n].
    """

    successes: int
    n: int

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.successes <= self.n:
            raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {self!r}")

    @classmethod
    def of(cls, hits: NDArray[np.bool_]) -> "Rate":
        """Count the hits of a boolean array.

        Parameters
        ----------
        hits : ndarray of bool, shape (n,)
            True for each success.

        Returns
        -------
        Rate
        """
        return cls(int(np.sum(hits)), int(np.size(hits)))

    @property
    def value(self) -> float:
        """The share of successes, in [0, 1]."""
        return self.successes / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% score interval (Wilson 1927, DOI 10.1080/01621459.1927.10502953)."""
        bounds = stats.binomtest(self.successes, self.n).proportion_ci(method="wilson")
        return float(bounds.low), float(bounds.high)

    def __repr__(self) -> str:
        return f"Rate({self.successes}, {self.n})"

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class Mean:
    """A mean over n images, with its 95% interval.

    Attributes
    ----------
    value : float
        The mean.
    half_width : float
        Half of the interval: Student's t times the standard error. NaN for n = 1.
    n : int
        The number of values.
    """

    value: float
    half_width: float
    n: int

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> "Mean":
        """Take the mean of some values.

        Parameters
        ----------
        values : ndarray, shape (n,)
            One an image.

        Returns
        -------
        Mean

        Raises
        ------
        ValueError
            If there are no values, or they are no row of numbers.
        """
        if np.ndim(values) != 1 or len(values) == 0:
            raise ValueError(f"expected a row of values, got shape {np.shape(values)}")
        n = len(values)
        error = float(np.std(values, ddof=1)) / np.sqrt(n) if n > 1 else np.nan
        return cls(float(np.mean(values)), float(stats.t.ppf(0.975, max(n - 1, 1)) * error), n)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval."""
        return self.value - self.half_width, self.value + self.half_width

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}]"


def correlation(field: NDArray[Any], other: NDArray[Any]) -> float:
    """Correlate two fields over their pixels (Pearson).

    Parameters
    ----------
    field, other : ndarray, the same shape
        Such as two maps of the same image.

    Returns
    -------
    float
        From -1 to 1; 0 if one of them is constant, since nothing varies with it.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if field.shape != other.shape:
        raise ValueError(f"expected two fields of one shape, got {field.shape} and {other.shape}")
    pair = np.stack([field.ravel(), other.ravel()]).astype(np.float64)
    if (np.ptp(pair, axis=1) == 0).any():
        return 0.0
    return float(np.asarray(np.corrcoef(pair))[0, 1])
