"""Where the images of an evaluation come from, a chunk at a time: folders, lists, drawings, arrays.

A source is small: it holds names and numbers and reads a picture when it is asked for one, so that
it can be sent to another process, and fifty thousand pictures need no more memory than one.
"""

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from pdutils._utils import Array, check_whole, generator
from pdutils.classifiers import Classifier, read_text
from pdutils.demo.drawing import CLASS_NAMES, draw_animal
from pdutils.demo.examples import Collection
from pdutils.images import IMAGE_SUFFIXES, displayed, find_pictures, load_image, load_map
from pdutils.stats import Rate

_WORDNET_ID = re.compile(r"n\d{8}")

#: The first line of Kaggle's list of ImageNet's validation set.
_KAGGLE = ["ImageId", "PredictionString"]


class Source(Protocol):
    """Labelled images with unique names, loaded one at a time."""

    @property
    def names(self) -> Sequence[str]:
        """One name an image, all different."""

    @property
    def labels(self) -> Sequence[int]:
        """The number of the true class of each image."""

    @property
    def digest(self) -> str:
        """SHA-256 in hex of what tells this source from another; it does not read the pictures."""

    def load(self, i: int) -> Array:
        """Load image i, shape (H, W, 3); ValueError or OSError if it cannot be read."""


class FolderSource:
    r"""Pictures in files, each with the id, name or number of its class.

    Names are the paths from `root`, by default from the folder that holds all the files, with
    forward slashes; a byte that is no UTF-8 is written out, such as `caf\xe9.png`. What else lies
    there is remembered: folders without a picture, and in words what was passed over.
    """

    def __init__(
        self,
        files: Sequence[tuple[str | os.PathLike[str], str | int]],
        classifier: Classifier,
        *,
        root: str | os.PathLike[str] | None = None,
        empty_classes: Sequence[str] = (),
        passed_over: str = "",
    ) -> None:
        if not files:
            raise ValueError("expected at least one labelled picture, got none")
        # A worker may have another working directory.
        self._paths = tuple(Path(path).absolute() for path, _ in files)
        above = os.path.commonpath([path.parent for path in self._paths])
        self._root = Path(above if root is None else root).absolute()
        self._size = classifier.input_size
        self.names = _unique(_name(path, self._root) for path in self._paths)
        self.labels = _class_numbers(classifier, files)
        self.empty_classes = tuple(empty_classes)
        self.passed_over = passed_over

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the names, labels and sizes of the files, and the images' size."""
        sizes = (path.stat().st_size for path in self._paths)
        rows = zip(self.names, self.labels, sizes, strict=True)
        return _sha256(["files", self._size, *rows])

    def load(self, i: int) -> Array:
        """Load image i, scaled to the classifier's size."""
        return load_image(self._paths[i], self._size)


class DrawingSource:
    """Fresh drawings of the demo, right or not: class i % 10 in turn, a stream for each.

    Drawing i depends on the seed alone, not on n, and is the one that
    `demo.drawing.draw_animals` and `demo.examples.load_collection` draw in that place.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        check_whole("n", n, 1)
        generator(seed)
        self._seed = int(seed)
        self.labels = tuple(i % len(CLASS_NAMES) for i in range(n))
        self.names = tuple(f"{CLASS_NAMES[label]}_{i:05d}" for i, label in enumerate(self.labels))

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the names, labels and the seed."""
        return _sha256(["drawings", self._seed, *zip(self.names, self.labels, strict=True)])

    def load(self, i: int) -> Array:
        """Draw image i, shape (224, 224, 3)."""
        # The i-th stream that the seed's generator would spawn, without spawning those before it.
        seeds = np.random.SeedSequence(self._seed, spawn_key=(range(len(self.names))[i],))
        return draw_animal(self.labels[i], rng=np.random.default_rng(seeds)).image


class CollectionSource:
    """The images of a collection, called `image_00000`, `image_00001`, ..."""

    def __init__(self, collection: Collection) -> None:
        self._images = collection.images
        self.labels = tuple(int(label) for label in collection.labels)
        self.names = tuple(f"image_{i:05d}" for i in range(len(self.labels)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the labels and the images."""
        pixels = hashlib.sha256(self._images.tobytes()).hexdigest()
        return _sha256(["arrays", self._images.shape, pixels, *self.labels])

    def load(self, i: int) -> Array:
        """Give a copy of image i."""
        return np.array(self._images[i], dtype=np.float32)


class Chosen:
    """Some of the images of another source, by their places in it, in an order of their own."""

    def __init__(self, source: Source, places: Sequence[int]) -> None:
        self.source = source
        self._places = tuple(int(place) for place in places)
        self.names = _unique(source.names[place] for place in self._places)
        self.labels = tuple(source.labels[place] for place in self._places)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the source's digest and the places."""
        return _sha256(["chosen", self.source.digest, *self._places])

    def load(self, i: int) -> Array:
        """Load image i of the choice."""
        return self.source.load(self._places[i])


def chosen(source: Source, n: int, seed: int = 0) -> Source:
    """Choose n images of a source at random; the source itself if it has no more.

    They come in random order, so that what an interrupted evaluation has done is a random choice
    too; those of a smaller n are the first of those of a larger one.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 image, got {n}")
    order = generator(seed).permutation(len(source.names))
    return source if n >= len(order) else Chosen(source, order[:n].tolist())


def folder_source(folder: str | os.PathLike[str], classifier: Classifier) -> FolderSource:
    """Take the labelled pictures of a folder, see `pdutils.images.labelled_files`.

    `empty_classes` are the sub-folders without a picture; `passed_over` counts the files that are
    no pictures by their endings.
    """
    root = Path(folder)
    found = find_pictures(root)
    seen = {path.relative_to(root).parts[0] for path in found.files}
    return FolderSource(
        found.labelled(),
        classifier,
        root=root,
        empty_classes=[name for name in found.folders if name not in seen],
        passed_over=str(found),
    )


def listed_source(
    folder: str | os.PathLike[str], labels: str | os.PathLike[str], classifier: Classifier
) -> FolderSource:
    """Take the pictures that a list names, such as ImageNet's validation set in one flat folder.

    The list has lines `NAME LABEL`, as Caffe's val.txt: NAME is the file's path from the folder,
    LABEL a class number (of ImageNet: 0 to 999 in the order of the WordNet ids), id or name. Or it
    is Kaggle's LOC_val_solution.csv, whose predictions begin with the WordNet id. The list of
    ImageNet's development kit, of bare numbers, counts the classes in another order and is refused.
    """
    root, path = Path(folder), Path(labels)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    rows = list(_rows(path))
    if not rows:
        raise ValueError(f"{path}: expected lines of a name and a label, found none")
    _check_numbers(path, [label for _, label in rows], classifier)
    places = _places(root, [name for name, _ in rows])
    missing = [name for name, _ in rows if name not in places]
    if missing:
        raise FileNotFoundError(
            f"{root}: {len(missing)} of the {len(rows)} pictures in {path} are missing; "
            f"the first is {missing[0]}"
        )
    return FolderSource([(places[name], label) for name, label in rows], classifier, root=root)


class Chunk(NamedTuple):
    """Images that could be read, with their places in the source; names and reasons of the rest."""

    places: list[int]
    images: Array
    skipped: list[tuple[str, str]]


def read(
    source: Source, places: Iterable[int], size: tuple[int, int], unreadable: Mapping[str, str] = {}
) -> Chunk:
    """Read images of a source, all of one size; those known to be unreadable are not tried."""
    skipped, images = dict(unreadable), {}
    for i in places:
        name = source.names[i]
        if name in skipped:
            continue
        try:
            image = source.load(i)
        except (ValueError, OSError) as error:
            skipped[name] = displayed(str(error))
            continue
        if image.shape != (*size, 3):
            raise ValueError(
                f"{name}: expected an image of {size[0]} x {size[1]} pixels, got shape "
                f"{image.shape}"
            )
        images[i] = image
    empty = np.empty((0, *size, 3), dtype=np.float32)
    stacked = np.stack(list(images.values())) if images else empty
    return Chunk(list(images), stacked, list(skipped.items()))


def read_ahead(source: Source, size: tuple[int, int], batch_size: int) -> Iterator[Chunk]:
    """Read chunk after chunk, the next one while the network works on the one before."""
    starts = range(0, len(source.names), batch_size)
    chunks = [range(start, min(start + batch_size, len(source.names))) for start in starts]
    with ThreadPoolExecutor(max_workers=1) as reader:
        upcoming = reader.submit(read, source, chunks[0], size)
        for following in [*chunks[1:], range(0)]:
            chunk = upcoming.result()
            upcoming = reader.submit(read, source, following, size)
            yield chunk


@dataclass(frozen=True)
class FolderResult:
    """How often the label is the most probable class, or among five; the images passed over."""

    top1: Rate
    top5: Rate
    skipped: tuple[tuple[str, str], ...]


def classify(
    classifier: Classifier,
    source: Source,
    predict: Callable[..., Array],
    *,
    batch_size: int = 32,
    maps: Sequence[Path] = (),
) -> FolderResult:
    """Classify the images of a source in batches; memory does not grow with their number.

    `predict` goes from a batch (N, H, W, 3) to probabilities (N, K): the classifier's own, or a
    defence in front of it. With `maps`, the file of each image's map, it gets a second batch, of
    maps (N, H, W).
    """
    check_whole("batch_size", batch_size, 1)
    size = classifier.input_size
    skipped: dict[str, str] = {}
    top1 = top5 = n = 0
    for chunk in read_ahead(source, size, batch_size):
        skipped |= dict(chunk.skipped)
        if not chunk.places:
            continue
        own = [np.stack([fitting_map(maps[i], size) for i in chunk.places])] if maps else []
        found = predict(chunk.images, *own)
        labels = np.array([source.labels[i] for i in chunk.places])
        ranks = np.argsort(-found, axis=1, kind="stable")
        n += len(labels)
        top1 += int(np.sum(ranks[:, 0] == labels))
        top5 += int(np.sum(ranks[:, :5] == labels[:, np.newaxis]))
    if n == 0:
        first = next(iter(skipped.values()))
        raise ValueError(f"expected images that can be read, got none; the first: {first}")
    return FolderResult(Rate(top1, n), Rate(top5, n), tuple(skipped.items()))


def maps_by_name(
    folder: str | os.PathLike[str], pictures: Sequence[Path], maps: str | os.PathLike[str]
) -> list[Path]:
    """Find the map of each picture of a folder by its name, as the authors' `main.py` does.

    It is `<same name>`, or the same name with .png, in the folder `maps`; of a picture in a folder
    of its class, in a folder of that name or in `maps` itself if no other picture bears the name.
    """
    if not Path(maps).is_dir():
        raise FileNotFoundError(f"{maps}: no such map or folder of maps")
    times = Counter(path.name for path in pictures)
    found, missing = [], []
    for path in pictures:
        places = [Path(maps) / path.relative_to(folder)]
        places += [Path(maps) / path.name] if times[path.name] == 1 else []
        candidates = [named for place in places for named in (place, place.with_suffix(".png"))]
        own = next((candidate for candidate in candidates if candidate.is_file()), None)
        if own is None:
            missing.append(places[0].with_suffix(".png"))
        else:
            found.append(own)
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: no such map; {len(missing)} of {len(pictures)} pictures have none"
        )
    return found


def fitting_map(path: Path, size: tuple[int, int]) -> Array:
    """Load a map that must have the size, height and width, of the classifier's images."""
    loaded = load_map(path)
    if loaded.shape != size:
        raise ValueError(
            f"{path}: expected a map of {size[0]} x {size[1]}, as the classifier's images, got "
            f"{loaded.shape[0]} x {loaded.shape[1]}"
        )
    return loaded


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    lines = _lines(path)
    if lines and next(csv.reader(lines[:1])) == _KAGGLE:
        yield from (_kaggle_row(path, number, line) for number, line in enumerate(lines[1:], 2))
        return
    for number, line in enumerate(lines, 1):
        words = line.rsplit(maxsplit=1)
        if len(words) == 1:
            raise ValueError(f"{path}, line {number}: expected a name and a label, {_got(line)}")
        yield words[0], words[1]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of labels")
    return read_text(path).rstrip().splitlines()


def _got(line: str) -> str:
    if line.strip().isdecimal():
        return (
            "got a number alone; ImageNet's development kit lists its validation set so, and counts"
            " the classes in another order, which would label every picture wrongly: take a list "
            "of lines NAME LABEL or Kaggle's LOC_val_solution.csv"
        )
    return f"got {line!r}"


def _kaggle_row(path: Path, number: int, line: str) -> tuple[str, str]:
    name, _, prediction = line.partition(",")
    words = prediction.split()
    if not name or not words:
        raise ValueError(f"{path}, line {number}: expected an image and its classes, got {line!r}")
    return name, words[0]


def _check_numbers(path: Path, labels: list[str], classifier: Classifier) -> None:
    """Refuse class numbers that do not count the classifier's classes from 0."""
    numbers = {int(label) for label in labels if label.isdecimal()}
    if not numbers:
        return
    classes, ids = len(classifier.class_ids), list(classifier.class_ids)
    if max(numbers) == classes and 0 not in numbers:
        raise ValueError(
            f"{path}: expected class numbers from 0 to {classes - 1}, got {min(numbers)} to "
            f"{classes}: they are counted from 1, as in ImageNet's development kit, which has "
            "another order too"
        )
    if all(_WORDNET_ID.fullmatch(name) for name in ids) and ids != sorted(ids):
        raise ValueError(
            f"{path}: class numbers stand for WordNet ids in their order, but {classifier.name} "
            "has its classes in another; a list with the ids themselves will do"
        )


def _places(root: Path, names: list[str]) -> dict[str, Path]:
    """Find the file of each name, which may lack its suffix; those that are missing are left out.

    One look into the folder is quicker than one for each of fifty thousand files.
    """
    files = {entry.name: entry for entry in root.iterdir()}
    pictures = {e.stem: e for e in files.values() if e.suffix.lower() in IMAGE_SUFFIXES}
    found = {}
    for name in names:
        path = files.get(name) or pictures.get(name) or root / name
        if name in files or name in pictures or path.is_file():
            found[name] = path
    return found


def _class_numbers(
    classifier: Classifier, files: Sequence[tuple[str | os.PathLike[str], str | int]]
) -> tuple[int, ...]:
    index = lru_cache(maxsize=None)(classifier.index)
    numbers = []
    for path, label in files:
        try:
            numbers.append(index(label))
        except ValueError as error:
            raise ValueError(f"{path}: {error}{_hint(label)}") from None
    return tuple(numbers)


def _hint(label: str | int) -> str:
    flat = str(label).startswith("ILSVRC")
    return "; ImageNet's flat folders need a list of labels" if flat else ""


def _name(path: Path, root: Path) -> str:
    if not path.is_relative_to(root):
        raise ValueError(f"{path}: expected a file in {root}")
    return displayed(path.relative_to(root).as_posix())


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    found = tuple(names)
    if len(set(found)) < len(found):
        name, times = Counter(found).most_common(1)[0]
        raise ValueError(f"expected every image once, got {name} {times} times")
    return found


def _sha256(rows: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        # A file name that is no Unicode has surrogates in it.
        digest.update(f"{row!r}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
