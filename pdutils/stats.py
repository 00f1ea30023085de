"""Rates, their differences and means over images, each with its 95% interval."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True)
class Rate:
    """How many of n, with the 95% interval of Wilson; 0 <= successes <= n and n >= 1."""

    successes: int
    n: int

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.successes <= self.n:
            raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {self!r}")

    @classmethod
    def of(cls, hits: NDArray[np.bool_]) -> "Rate":
        """Count the hits of a boolean array (n,)."""
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

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True)
class PairedDifference:
    """The first of two rates on the same images minus the second: of hits of both, of one, of none.

    `note` is what must be known besides, such as that the two differ in more than one knob.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    note: str = ""

    def __post_init__(self) -> None:
        counts = (self.both, self.first_only, self.second_only, self.neither)
        if min(counts) < 0 or sum(counts) == 0:
            raise ValueError(f"expected counts of at least 0, not all of them 0, got {self!r}")

    @classmethod
    def of(
        cls, first_hits: NDArray[np.bool_], second_hits: NDArray[np.bool_]
    ) -> "PairedDifference":
        """Count two boolean arrays (n,), the i-th of both belonging to the same image."""
        first, second = np.asarray(first_hits), np.asarray(second_hits)
        if first.dtype != np.bool_ or second.dtype != np.bool_ or first.shape != second.shape:
            raise ValueError(
                "expected two boolean arrays of one shape, got "
                f"{first.dtype} {first.shape} and {second.dtype} {second.shape}"
            )
        # Of a pair's two bits the first's counts twice: neither, the second alone, and so on.
        counts = np.bincount((2 * first + second).ravel(), minlength=4).tolist()
        return cls(*reversed(counts))

    @property
    def n(self) -> int:
        """The number of images."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def first(self) -> Rate:
        """The first rate."""
        return Rate(self.both + self.first_only, self.n)

    @property
    def second(self) -> Rate:
        """The second rate."""
        return Rate(self.both + self.second_only, self.n)

    @property
    def value(self) -> float:
        """The first rate minus the second, in [-1, 1]."""
        return (self.first_only - self.second_only) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% hybrid score interval for paired data.

        Method 10 of Newcombe 1998, DOI
        10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C.
        """
        arms = []
        for rate in (self.first, self.second):
            low, high = rate.interval
            arms.append((rate.value - low, high - rate.value))
        # The coefficient phi of the two rows of hits, drawn towards 0 where it is positive.
        excess: float = self.both * self.neither - self.first_only * self.second_only
        if excess > 0:
            excess = max(excess - self.n / 2, 0.0)
        spread = math.prod(r.successes * (r.n - r.successes) for r in (self.first, self.second))
        phi = excess / math.sqrt(spread) if spread else 0.0
        # |phi| <= 1 leaves both a sum of squares; rounding may take them below 0 by a hair.
        low, high = (
            math.sqrt(max(a**2 - 2 * phi * a * b + b**2, 0.0))
            for a, b in zip(arms[0], reversed(arms[1]), strict=True)
        )
        return self.value - low, self.value + high

    @property
    def p_value(self) -> float:
        """The exact two-sided p-value of McNemar's test (1947, DOI 10.1007/BF02295996).

        How likely so lopsided a split of the images that only one of the two hits would be if
        both hit equally often; 1 if there is no such image.
        """
        discordant = self.first_only + self.second_only
        return float(stats.binomtest(self.first_only, discordant).pvalue) if discordant else 1.0

    @property
    def verdict(self) -> str:
        """What the interval and the test say, in words: "more", "fewer" or "not told apart".

        For few images the two may disagree, since only the test is exact; then nothing is told.
        """
        low, high = self.interval
        if low <= 0 <= high or self.p_value >= 0.05:
            return "not told apart"
        return "more" if low > 0 else "fewer"

    def __str__(self) -> str:
        low, high = self.interval
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        return f"{self.value:+.2f} [{low:+.2f}, {high:+.2f}], {p}"


@dataclass(frozen=True)
class Mean:
    """A mean over n images, with its 95% interval, which is NaN for n = 1."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(
        cls, values: NDArray[np.floating], *, least: float = 0.0, greatest: float = math.inf
    ) -> "Mean":
        """Take the mean of values (n,), one an image, that could be `least` to `greatest`.

        That is from 0 on by default, as norms and ratios; 0 to 1 for shares, -1 to 1 for
        correlations, from minus infinity on for differences. The interval does not leave that
        range. Without bounds it is Student's, m - t s to m + t s; with one, Student's for the
        logarithm of the distance d from it, whose standard error is that of the mean divided by d
        (delta method); with two, for the logit, the logarithm of the ratio of the two distances.
        None assumes more than the first. A mean on a bound, or a value beyond `least`, has the
        first too.
        """
        if np.ndim(values) != 1 or len(values) == 0:
            raise ValueError(f"expected a row of values, got shape {np.shape(values)}")
        n, mean = len(values), float(np.mean(values))
        if n == 1:
            return cls(mean, math.nan, math.nan, n)
        error = float(np.std(values, ddof=1)) / math.sqrt(n)
        reach = float(stats.t.ppf(0.975, n - 1)) * error
        if least == -math.inf or np.min(values) < least or not reach or not least < mean < greatest:
            return cls(mean, mean - reach, mean + reach, n)
        above, below = mean - least, greatest - mean
        # Without a greatest value 1 / below and the ratio are 0: the logarithm's interval is left.
        width, ratio = math.exp(reach * (1 / above + 1 / below)), above / below
        low, high = (above * (1 + ratio) / (w + ratio) for w in (width, 1 / width))
        return cls(mean, least + low, least + high, n)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval."""
        return self.low, self.high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}]"
