"""Where the images of an evaluation come from, one at a time: folders, lists, drawings, arrays.

A source is small: it holds names and numbers and reads a picture when it is asked for one, so that
it can be sent to another process, and fifty thousand pictures need no more memory than one.
"""

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from pdutils import files
from pdutils._utils import LARGEST, generator, is_whole
from pdutils.classifiers import Classifier
from pdutils.demo.drawing import CLASS_NAMES, draw_animal
from pdutils.demo.examples import Collection
from pdutils.files import displayed, read_text
from pdutils.images import IMAGE_SUFFIXES, Array, load_image

_WORDNET_ID = re.compile(r"n\d{8}")

#: The first line of Kaggle's list of ImageNet's validation set.
_KAGGLE = ["ImageId", "PredictionString"]


class Source(Protocol):
    """Labelled images with unique names, loaded one at a time.

    Attributes
    ----------
    names : sequence of str
        One an image, all different.
    labels : sequence of int
        Their true classes.
    digest : str
        SHA-256 in hex of what tells this source from another; it does not read the pictures.
    """

    @property
    def names(self) -> Sequence[str]:
        """One name an image, all different."""

    @property
    def labels(self) -> Sequence[int]:
        """The number of the true class of each image."""

    @property
    def digest(self) -> str:
        """SHA-256 in hex of what tells this source from another."""

    def load(self, i: int) -> Array:
        """Load image i.

        Parameters
        ----------
        i : int
            Its place in `names`.

        Returns
        -------
        ndarray of float32, shape (H, W, 3), in [0, 255]

        Raises
        ------
        ValueError, OSError
            If it cannot be read.
        """


class FolderSource:
    r"""Pictures in files, with the class of each found by its label.

    Parameters
    ----------
    files : sequence of (path, str or int)
        Each picture with the id, name or number of its class.
    classifier : Classifier
        It knows the labels and the size of the images; it is not kept.
    root : path, optional
        Names are the paths from here. By default the folder that holds all the files.
    empty_classes : sequence of str
        Labels of folders without a picture, to be remembered.
    passed_over : str
        What else lies among the files, in words, to be remembered.

    Attributes
    ----------
    names : tuple of str
        Paths from `root`, with forward slashes; of a name that is not UTF-8, each byte that is
        none is written out, such as `caf\xe9.png`.
    labels : tuple of int
        Class numbers.
    empty_classes, passed_over
        As given.

    Raises
    ------
    ValueError
        If there is no file, a file comes twice or lies outside `root`, or a label is no class of
        the classifier; the message names the file.
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
        """Load image i, scaled to the classifier's size.

        Parameters
        ----------
        i : int
            Its place in `names`.

        Returns
        -------
        ndarray of float32, shape (H, W, 3), in [0, 255]

        Raises
        ------
        FileNotFoundError
            If the file is gone.
        ValueError
            If it is no picture that can be read.
        """
        return load_image(self._paths[i], self._size)


class DrawingSource:
    """Fresh drawings of the demo, right or not: class i % 10 in turn, a stream for each.

    Drawing i depends on the seed alone, not on n, and is the one that
    `demo.drawing.draw_animals` and `demo.examples.load_collection` draw in that place.

    Parameters
    ----------
    n : int
        How many, at least 1.
    seed : int
        Of the drawings, at least 0.

    Attributes
    ----------
    names : tuple of str
        Such as `badger_00000`.
    labels : tuple of int
        Places in `pdutils.demo.drawing.CLASS_NAMES`, which are the classes of the demo's network.

    Raises
    ------
    ValueError
        If n is below 1 or the seed is negative.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        if not is_whole(n) or not 1 <= n <= LARGEST:
            raise ValueError(f"n: expected at least 1 drawing, got {n!r}")
        generator(seed)
        self._seed = int(seed)
        self.labels = tuple(i % len(CLASS_NAMES) for i in range(n))
        self.names = tuple(f"{CLASS_NAMES[label]}_{i:05d}" for i, label in enumerate(self.labels))

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the names, labels and the seed."""
        return _sha256(["drawings", self._seed, *zip(self.names, self.labels, strict=True)])

    def load(self, i: int) -> Array:
        """Draw image i.

        Parameters
        ----------
        i : int
            Its place in `names`.

        Returns
        -------
        ndarray of float32, shape (224, 224, 3), whole values in [0, 255]
        """
        # The i-th stream that the seed's generator would spawn, without spawning those before it.
        seeds = np.random.SeedSequence(self._seed, spawn_key=(range(len(self.names))[i],))
        return draw_animal(self.labels[i], rng=np.random.default_rng(seeds)).image


class CollectionSource:
    """Images that are in memory.

    Parameters
    ----------
    collection : Collection
        Images with their labels.

    Attributes
    ----------
    names : tuple of str
        `image_00000`, `image_00001`, ...
    labels : tuple of int
        Class numbers.
    """

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
        """Give image i.

        Parameters
        ----------
        i : int
            Its place in `names`.

        Returns
        -------
        ndarray of float32, shape (H, W, 3)
            A copy.
        """
        return np.array(self._images[i], dtype=np.float32)


class Chosen:
    """Some of the images of another source, in an order of their own.

    Parameters
    ----------
    source : Source
        Where they come from.
    places : sequence of int
        Their places in it, all different.

    Attributes
    ----------
    source, names, labels
        The source that was chosen from; the names and labels of the choice.

    Raises
    ------
    ValueError
        If a place comes twice.
    IndexError
        If the source has no such place.
    """

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
        """Load image i of the choice.

        Parameters
        ----------
        i : int
            Its place in `names`.

        Returns
        -------
        ndarray of float32, shape (H, W, 3), in [0, 255]

        Raises
        ------
        ValueError, OSError
            If it cannot be read.
        """
        return self.source.load(self._places[i])


def chosen(source: Source, n: int, seed: int = 0) -> Source:
    """Choose n images of a source at random.

    They come in random order, so that what an interrupted evaluation has done is a random choice
    too; those of a smaller n are the first of those of a larger one.

    Parameters
    ----------
    source : Source
        Where to choose from.
    n : int
        How many, at least 1; the whole source, as it is, if it has no more.
    seed : int
        Of the choice, at least 0.

    Returns
    -------
    Source

    Raises
    ------
    ValueError
        If n is below 1 or the seed is negative.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 image, got {n}")
    order = generator(seed).permutation(len(source.names))
    return source if n >= len(order) else Chosen(source, order[:n].tolist())


def folder_source(folder: str | os.PathLike[str], classifier: Classifier) -> FolderSource:
    """Take the labelled pictures of a folder, see `pdutils.files.labelled_files`.

    Parameters
    ----------
    folder : str or path
        Pictures named `<label>_<anything>.png|jpg|...`, or one sub-folder a class.
    classifier : Classifier
        It knows the labels.

    Returns
    -------
    FolderSource
        `empty_classes` are the sub-folders without a picture; `passed_over` counts the files that
        are no pictures by their endings.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is no folder or has no picture, or a label is no class of the classifier.
    """
    root = Path(folder)
    found = files.look_through(root)
    seen = {path.relative_to(root).parts[0] for path in found.files}
    return FolderSource(
        files.labelled(root, found),
        classifier,
        root=root,
        empty_classes=[name for name in found.folders if name not in seen],
        passed_over=str(found),
    )


def listed_source(
    folder: str | os.PathLike[str], labels: str | os.PathLike[str], classifier: Classifier
) -> FolderSource:
    """Take the pictures that a list names, such as ImageNet's validation set in one flat folder.

    Parameters
    ----------
    folder : str or path
        Where the pictures are.
    labels : str or path
        A text in UTF-8, or in UTF-16 with its mark. Lines `NAME LABEL`, as Caffe's val.txt: NAME is
        the file's path from the folder, LABEL a class number (of ImageNet: 0 to 999 in the order of
        the WordNet ids), id or name. Or Kaggle's LOC_val_solution.csv, whose predictions begin with
        the WordNet id. The list that comes with ImageNet's development kit, of bare numbers, counts
        the classes in another order and is refused.
    classifier : Classifier
        It knows the labels.

    Returns
    -------
    FolderSource
        In the order of the list.

    Raises
    ------
    FileNotFoundError
        If the folder, the list or a picture of the list is missing; the message counts the
        missing pictures and names the first.
    ValueError
        If the list is of another form, names a picture twice or none at all, or a label is no
        class of the classifier.
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
