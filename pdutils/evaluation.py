"""Rates with intervals, over many images."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pdutils.classifiers import Classifier
from pdutils.images import Array, load_image


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


@dataclass(frozen=True)
class FolderResult:
    """What a classifier makes of a folder of labelled images.

    Attributes
    ----------
    top1, top5 : Rate
        Images whose label is the most probable class, or one of the five most probable.
    skipped : tuple of (Path, str)
        Images that could not be read, each with the reason.
    """

    top1: Rate
    top5: Rate
    skipped: tuple[tuple[Path, str], ...]


def evaluate_folder(
    classifier: Classifier,
    files: Iterable[tuple[Path, str]],
    predict: Callable[[Array], Array],
    *,
    batch_size: int = 32,
) -> FolderResult:
    """Classify labelled files in batches; memory does not grow with their number.

    Parameters
    ----------
    classifier : Classifier
        It knows the labels and the size of the images.
    files : iterable of (Path, str)
        Such as `pdutils.data.labelled_files` gives.
    predict : callable
        From a batch (N, H, W, 3) to probabilities (N, K): the classifier's own `predict`, or a
        defence in front of it.
    batch_size : int
        How many images are read and classified at once, at least 1.

    Returns
    -------
    FolderResult

    Raises
    ------
    ValueError
        If a label is no class of the classifier, there is no file, or not one can be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    numbered = [(path, _index(classifier, path, label)) for path, label in files]
    skipped: list[tuple[Path, str]] = []
    top1 = top5 = n = 0
    for batch in _read_ahead(numbered, classifier.input_size, batch_size):
        skipped += batch.skipped
        if batch.images:
            labels = np.array(batch.labels)
            ranks = np.argsort(-predict(np.stack(batch.images)), axis=1, kind="stable")
            n += len(labels)
            top1 += int(np.sum(ranks[:, 0] == labels))
            top5 += int(np.sum(ranks[:, :5] == labels[:, np.newaxis]))
    if n == 0:
        first = f"; the first: {skipped[0][1]}" if skipped else ""
        raise ValueError(f"expected images that can be read, got none{first}")
    return FolderResult(Rate(top1, n), Rate(top5, n), tuple(skipped))


class _Batch(NamedTuple):
    """What could be read of some files, with the labels, and what could not."""

    images: list[Array]
    labels: list[int]
    skipped: list[tuple[Path, str]]


def _read_ahead(
    files: list[tuple[Path, int]], size: tuple[int, int], batch_size: int
) -> Iterator[_Batch]:
    """Read batch after batch, the next one while the network works on the one before."""
    starts = range(0, len(files), batch_size)
    first, *others = [files[start : start + batch_size] for start in starts] or [[]]
    with ThreadPoolExecutor(max_workers=1) as reader:
        upcoming = reader.submit(_read, first, size)
        for chunk in [*others, []]:
            batch = upcoming.result()
            upcoming = reader.submit(_read, chunk, size)
            yield batch


def _index(classifier: Classifier, path: Path, label: str) -> int:
    try:
        return classifier.index(label)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(files: list[tuple[Path, int]], size: tuple[int, int]) -> _Batch:
    batch = _Batch([], [], [])
    for path, label in files:
        try:
            image = load_image(path, size)
        except (ValueError, OSError) as error:
            batch.skipped.append((path, str(error)))
        else:
            batch.images.append(image)
            batch.labels.append(label)
    return batch
