"""A folder of labelled images through one defence, a batch at a time."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pdutils.classifiers import Classifier
from pdutils.images import Array, load_image
from pdutils.statistics import Rate


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
