"""Where the images of an evaluation come from, a chunk at a time: folders, lists, drawings, arrays.

A source is small: it holds names and numbers and reads a picture when it is asked for one, so that
it can be sent to another process, and fifty thousand pictures need no more memory than one.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import Array, ahead, check_whole, generator, read_text
from pdutils.demo.examples import CLASS_NAMES, Classifier, Collection, draw_animal
from pdutils.images import IMAGE_SUFFIXES, displayed, find_pictures, load_image, load_map
from pdutils.stats import Rate

StrPath = str | os.PathLike[str]
Labelled = Sequence[tuple[StrPath, str | int]]


class Source:
    """Labelled images, loaded one at a time: names, all different, and numbers of true classes."""

    names: Sequence[str]
    labels: Sequence[int]

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of what tells this source from another; it does not read the pictures."""
        digest = hashlib.sha256()
        for row in self._told():
            # A file name that is no Unicode has surrogates in it.
            digest.update(f"{row!r}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def load(self, i: int) -> Array:
        """Load image i, shape (H, W, 3); ValueError or OSError if it cannot be read."""
        raise NotImplementedError

    def _told(self) -> Iterable[object]:
        raise NotImplementedError


class FolderSource(Source):
    r"""Pictures in files, each with the id, name or number of its class.

    Names are the paths from `root`, by default from the folder that holds all the files; a byte
    that is no UTF-8 is written out, such as `caf\xe9.png`.
    """

    #: Folders without a picture, and in words what else lies there.
    empty_classes: Sequence[str] = ()
    passed_over = ""

    def __init__(
        self, labelled: Labelled, classifier: Classifier, root: StrPath | None = None
    ) -> None:
        # A worker may have another working directory.
        self._paths = [Path(path).absolute() for path, _ in labelled]
        above = os.path.commonpath([path.parent for path in self._paths]) if root is None else root
        names = (path.relative_to(Path(above).absolute()).as_posix() for path in self._paths)
        self.names = [displayed(name) for name in names]
        ((name, times),) = Counter(self.names).most_common(1)
        if times > 1:
            raise ValueError(f"expected every image once, got {name} {times} times")
        self.labels, index = [], lru_cache(maxsize=None)(classifier.index)
        for path, label in labelled:
            try:
                self.labels.append(index(label))
            except ValueError as error:
                flat = str(label).startswith("ILSVRC")
                hint = "; ImageNet's flat folders need a list of labels" if flat else ""
                raise ValueError(f"{path}: {error}{hint}") from None
        self._size = classifier.input_size

    def _told(self) -> Iterable[object]:
        sizes = (path.stat().st_size for path in self._paths)
        return ["files", self._size, *zip(self.names, self.labels, sizes, strict=True)]

    def load(self, i: int) -> Array:
        """Load image i, scaled to the classifier's size."""
        return load_image(self._paths[i], self._size)


class DrawingSource(Source):
    """Fresh drawings of the demo, right or not: class i % 10 in turn, a stream for each.

    Drawing i depends on the seed alone, not on n, and is the one that
    `demo.drawing.draw_animals` and `demo.examples.load_collection` draw in that place.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        check_whole("n", n, 1)
        check_whole("seed", seed, 0)
        self._seed = int(seed)
        self.labels = [i % len(CLASS_NAMES) for i in range(n)]
        self.names = [f"{CLASS_NAMES[label]}_{i:05d}" for i, label in enumerate(self.labels)]

    def _told(self) -> Iterable[object]:
        return ["drawings", self._seed, *zip(self.names, self.labels, strict=True)]

    def load(self, i: int) -> Array:
        """Draw image i, shape (224, 224, 3)."""
        # The i-th stream that the seed's generator would spawn, without spawning those before it.
        seeds = np.random.SeedSequence(self._seed, spawn_key=(i,))
        return draw_animal(self.labels[i], rng=np.random.default_rng(seeds)).image


class CollectionSource(Source):
    """The images of a collection, called `image_00000`, `image_00001`, ..."""

    def __init__(self, collection: Collection) -> None:
        self._images = collection.images
        self.labels = collection.labels.tolist()
        self.names = [f"image_{i:05d}" for i in range(len(self.labels))]

    def _told(self) -> Iterable[object]:
        pixels = hashlib.sha256(self._images.tobytes()).hexdigest()
        return ["arrays", self._images.shape, pixels, *self.labels]

    def load(self, i: int) -> Array:
        """Give a copy of image i."""
        return np.array(self._images[i], dtype=np.float32)


class Chosen(Source):
    """Some of the images of another source, by their places in it, in an order of their own."""

    def __init__(self, source: Source, places: Sequence[int]) -> None:
        self._source, self._places = source, places
        self.names = [source.names[place] for place in places]
        self.labels = [source.labels[place] for place in places]

    def _told(self) -> Iterable[object]:
        return ["chosen", self._source.digest, *self._places]

    def load(self, i: int) -> Array:
        """Load image i of the choice."""
        return self._source.load(self._places[i])


def chosen(source: Source, n: int, seed: int = 0) -> Source:
    """Choose n images of a source at random; the source itself if it has no more.

    They come in random order, so that what an interrupted evaluation has done is a random choice
    too; those of a smaller n are the first of those of a larger one.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 image, got {n}")
    order = generator(seed).permutation(len(source.names))
    return source if n >= len(order) else Chosen(source, order[:n].tolist())


def folder_source(folder: StrPath, classifier: Classifier) -> FolderSource:
    """Take the labelled pictures of a folder, see `pdutils.images.find_pictures`."""
    root, found = Path(folder), find_pictures(folder)
    seen = {path.relative_to(root).parts[0] for path in found.files}
    source = FolderSource(found.labelled(), classifier, root)
    source.empty_classes = [name for name in found.folders if name not in seen]
    source.passed_over = str(found)
    return source


def listed_source(folder: StrPath, labels: StrPath, classifier: Classifier) -> FolderSource:
    """Take the pictures that a list names, such as ImageNet's validation set in one flat folder.

    The list has lines `NAME LABEL`, as Caffe's val.txt: NAME is the file's path from the folder,
    LABEL a class number (of ImageNet: 0 to 999 in the order of the WordNet ids), id or name. Or it
    is Kaggle's LOC_val_solution.csv, whose predictions begin with the WordNet id. The list of
    ImageNet's development kit, of bare numbers, counts the classes in another order and is refused.
    """
    root, path = Path(folder), Path(labels)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    rows = _rows(path)
    if not rows:
        raise ValueError(f"{path}: expected lines of a name and a label, found none")
    _check_numbers(path, [label for _, label in rows], classifier)
    # One look into the folder is quicker than one for each of fifty thousand files.
    there = {entry.name: entry for entry in root.iterdir()}
    pictures = (entry for entry in there.values() if entry.suffix.lower() in IMAGE_SUFFIXES)
    there = {entry.stem: entry for entry in pictures} | there
    places = {name: there.get(name, root / name) for name, _ in rows}
    missing = [name for name in places if name not in there and not places[name].is_file()]
    if missing:
        raise FileNotFoundError(
            f"{root}: {len(missing)} of the {len(rows)} pictures in {path} are missing; "
            f"the first is {missing[0]}"
        )
    return FolderSource([(places[name], label) for name, label in rows], classifier, root)


def _rows(path: Path) -> list[tuple[str, str]]:
    """Read the names and labels of a list."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of labels")
    lines = read_text(path).rstrip().splitlines()
    form, wanted = re.compile(r"(.*\S)\s+(\S+)\s*"), "a name and a label"
    kaggle = lines[:1] == ["ImageId,PredictionString"]
    if kaggle:
        form, wanted = re.compile(r"([^,]+),\s*(\S+).*"), "an image and its classes"
    rows = []
    for number, line in enumerate(lines[kaggle:], 1 + kaggle):
        row, got = form.fullmatch(line), repr(line)
        if row is None:
            if line.strip().isdecimal():
                got = (
                    "a number alone; ImageNet's development kit lists its validation set so, and "
                    "counts the classes in another order, which would label every picture wrongly: "
                    "take a list of lines NAME LABEL or Kaggle's LOC_val_solution.csv"
                )
            raise ValueError(f"{path}, line {number}: expected {wanted}, got {got}")
        rows.append((row[1], row[2]))
    return rows


def _check_numbers(path: Path, labels: Iterable[str], classifier: Classifier) -> None:
    """Refuse class numbers that do not count the classifier's classes from 0."""
    numbers = {int(label) for label in labels if label.isdecimal()}
    classes, ids = len(classifier.class_ids), list(classifier.class_ids)
    if numbers and max(numbers) == classes and 0 not in numbers:
        raise ValueError(
            f"{path}: expected class numbers from 0 to {classes - 1}, got {min(numbers)} to "
            f"{classes}: they are counted from 1, as in ImageNet's development kit, which has "
            "another order too"
        )
    if numbers and all(re.fullmatch(r"n\d{8}", name) for name in ids) and ids != sorted(ids):
        raise ValueError(
            f"{path}: class numbers stand for WordNet ids in their order, but {classifier.name} "
            "has its classes in another; a list with the ids themselves will do"
        )


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
            images[i] = source.load(i)
        except (ValueError, OSError) as error:
            skipped[name] = displayed(str(error))
            continue
        if images[i].shape != (*size, 3):
            raise ValueError(
                f"{name}: expected an image of {size[0]} x {size[1]} pixels, got shape "
                f"{images[i].shape}"
            )
    stacked = np.array(list(images.values()), dtype=np.float32).reshape(-1, *size, 3)
    return Chunk(list(images), stacked, list(skipped.items()))


def read_ahead(source: Source, size: tuple[int, int], batch_size: int) -> Iterator[Chunk]:
    """Read chunk after chunk, the next one while the network works on the one before."""
    places = range(len(source.names))
    chunks = [places[start : start + batch_size] for start in places[::batch_size]]
    return ahead(lambda chunk: read(source, chunk, size), chunks)


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

    `predict` makes probabilities (N, K) of a batch (N, H, W, 3) and, with `maps`, the file of each
    image's map, of a second batch, of maps (N, H, W).
    """
    (result,) = compare(classifier, source, [predict], batch_size=batch_size, maps=maps)
    return result


def compare(
    classifier: Classifier,
    source: Source,
    ways: Sequence[Callable[..., Array]],
    *,
    batch_size: int = 32,
    maps: Sequence[Path] = (),
) -> list[FolderResult]:
    """Do as `classify` in several ways, each a `predict` of its own; an image is read once."""
    check_whole("batch_size", batch_size, 1)
    size, skipped = classifier.input_size, dict[str, str]()
    hits: list[list[NDArray[np.bool_]]] = [[] for _ in ways]
    for chunk in read_ahead(source, size, batch_size):
        skipped |= dict(chunk.skipped)
        if chunk.places:
            own = [np.stack([fitting_map(maps[i], size) for i in chunk.places])] if maps else []
            labels = np.array([[source.labels[i]] for i in chunk.places])
            for predict, found in zip(ways, hits, strict=True):
                ranks = np.argsort(-predict(chunk.images, *own), axis=1, kind="stable")
                found.append(ranks[:, :5] == labels)
    if not hits[0]:
        first = next(iter(skipped.values()))
        raise ValueError(f"expected images that can be read, got none; the first: {first}")
    joined: list[Any] = [np.concatenate(found) for found in hits]
    return [
        FolderResult(Rate.of(hit[:, 0]), Rate.of(hit.any(axis=1)), tuple(skipped.items()))
        for hit in joined
    ]


def maps_by_name(folder: StrPath, pictures: Sequence[Path], maps: StrPath) -> list[Path]:
    """Find the map of each picture of a folder by its name, as the authors' `main.py` does.

    It is `<same name>`, or the same name with .png, in the folder `maps`; of a picture in a folder
    of its class, in a folder of that name or in `maps` itself if no other picture bears the name.
    """
    if not Path(maps).is_dir():
        raise FileNotFoundError(f"{maps}: no such map or folder of maps")
    times = Counter(path.name for path in pictures)
    found, missing = [], []
    for path in pictures:
        places = [Path(maps, path.relative_to(folder)), Path(maps, path.name)]
        named = [name for place in places for name in (place, place.with_suffix(".png"))]
        there = [name for name in named[: None if times[path.name] == 1 else 2] if name.is_file()]
        found += there[:1]
        missing += [] if there else [named[1]]
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
