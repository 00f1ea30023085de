"""A folder of labelled images through one defence, a batch at a time."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pdutils.classifiers import Classifier
from pdutils.images import Array, load_image, load_map
from pdutils.stats import Rate


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
    predict: Callable[..., Array],
    *,
    batch_size: int = 32,
    maps: Mapping[Path, Path] | None = None,
) -> FolderResult:
    """Classify labelled files in batches; memory does not grow with their number.

    Parameters
    ----------
    classifier : Classifier
        It knows the labels and the size of the images.
    files : iterable of (Path, str)
        Such as `pdutils.files.labelled_files` gives.
    predict : callable
        From a batch (N, H, W, 3) to probabilities (N, K): the classifier's own `predict`, or a
        defence in front of it.
    batch_size : int
        How many images are read and classified at once, at least 1.
    maps : mapping of Path to Path, optional
        The file of each picture's map, as `maps_by_name` gives them; `predict` gets a second batch
        then, of maps (N, H, W).

    Returns
    -------
    FolderResult

    Raises
    ------
    ValueError
        If a label is no class of the classifier, there is no file, not one can be read, or a map
        cannot be read or has another size than the classifier's images.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    numbered = [(path, _index(classifier, path, label)) for path, label in files]
    skipped: list[tuple[Path, str]] = []
    top1 = top5 = n = 0
    for batch in _read_ahead(numbered, maps, classifier.input_size, batch_size):
        skipped += batch.skipped
        if batch.images:
            labels = np.array(batch.labels)
            found = predict(np.stack(batch.images), *([np.stack(batch.maps)] if maps else []))
            ranks = np.argsort(-found, axis=1, kind="stable")
            n += len(labels)
            top1 += int(np.sum(ranks[:, 0] == labels))
            top5 += int(np.sum(ranks[:, :5] == labels[:, np.newaxis]))
    if n == 0:
        first = f"; the first: {skipped[0][1]}" if skipped else ""
        raise ValueError(f"expected images that can be read, got none{first}")
    return FolderResult(Rate(top1, n), Rate(top5, n), tuple(skipped))


def maps_by_name(
    folder: str | os.PathLike[str], files: Iterable[Path], maps: str | os.PathLike[str]
) -> dict[Path, Path]:
    """Find the map of each picture by its name, as the authors' `main.py` does.

    Parameters
    ----------
    folder : str or path
        Where the pictures are.
    files : iterable of Path
        The pictures, in that folder or below it.
    maps : str or path
        A folder with `<same name>`, or the same name with .png, for each picture; of a picture in
        a folder of its class, in a folder of that name or in `maps` itself if no other picture
        bears the name.

    Returns
    -------
    dict of Path to Path

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or a picture has no map; the message counts those and names the
        first map that is missing.
    """
    if not Path(maps).is_dir():
        raise FileNotFoundError(f"{maps}: no such map or folder of maps")
    pictures = list(files)
    times = Counter(path.name for path in pictures)
    found, missing = {}, []
    for path in pictures:
        places = [Path(maps) / path.relative_to(folder)]
        places += [Path(maps) / path.name] if times[path.name] == 1 else []
        candidates = [named for place in places for named in (place, place.with_suffix(".png"))]
        own = next((candidate for candidate in candidates if candidate.is_file()), None)
        if own is None:
            missing.append(places[0].with_suffix(".png"))
        else:
            found[path] = own
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: no such map; {len(missing)} of {len(pictures)} pictures have none"
        )
    return found


def fitting_map(path: Path, size: tuple[int, int]) -> Array:
    """Load a map that must have the size of the classifier's images.

    Parameters
    ----------
    path : Path
        As `pdutils.images.load_map` takes it.
    size : (int, int)
        Height and width.

    Returns
    -------
    ndarray of float32, shape (H, W), values in [0, 1]

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no map, or of another size; the message names the file.
    """
    loaded = load_map(path)
    if loaded.shape != size:
        raise ValueError(
            f"{path}: expected a map of {size[0]} x {size[1]}, as the classifier's images, got "
            f"{loaded.shape[0]} x {loaded.shape[1]}"
        )
    return loaded


class _Batch(NamedTuple):
    """What could be read of some files, with labels and maps, and what could not."""

    images: list[Array]
    labels: list[int]
    maps: list[Array]
    skipped: list[tuple[Path, str]]


def _read_ahead(
    files: list[tuple[Path, int]],
    maps: Mapping[Path, Path] | None,
    size: tuple[int, int],
    batch_size: int,
) -> Iterator[_Batch]:
    """Read batch after batch, the next one while the network works on the one before."""
    starts = range(0, len(files), batch_size)
    first, *others = [files[start : start + batch_size] for start in starts] or [[]]
    with ThreadPoolExecutor(max_workers=1) as reader:
        upcoming = reader.submit(_read, first, maps, size)
        for chunk in [*others, []]:
            batch = upcoming.result()
            upcoming = reader.submit(_read, chunk, maps, size)
            yield batch


def _index(classifier: Classifier, path: Path, label: str) -> int:
    try:
        return classifier.index(label)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(
    files: list[tuple[Path, int]], maps: Mapping[Path, Path] | None, size: tuple[int, int]
) -> _Batch:
    batch = _Batch([], [], [], [])
    for path, label in files:
        try:
            image = load_image(path, size)
        except (ValueError, OSError) as error:
            batch.skipped.append((path, str(error)))
        else:
            batch.images.append(image)
            batch.labels.append(label)
            batch.maps.extend([fitting_map(maps[path], size)] if maps else [])
    return batch
