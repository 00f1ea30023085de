"""Where an evaluation keeps its records: one SQLite file, written a finished unit at a time.

A unit is one attack and one defence on one chunk of consecutive images. Its records and the mark
that it is finished are written together, so that whatever ends a run leaves whole units, and a
rerun does what is missing. One run writes at a time (it holds a lock on the empty file
`FILE.lock`, which ends with its process); others may read meanwhile.
"""

import os
import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import extra, naming

with extra("evaluation"):
    import pandas as pd

#: The columns of a table of records, with their types.
COLUMNS: dict[str, str] = {
    "image": "str",
    "label": "int64",
    "attack": "str",
    "defense": "str",
    "run": "int64",
    "predicted": "int64",
    "mean_predicted": "int64",
    "p_label": "float64",
    "p_attack": "float64",
    "attack_class": "int64",
    "target": "int64",
    "rank": "int64",
    "right_clean": "bool",
    "success": "bool",
    "l2": "float64",
    "linf": "float64",
    "psnr": "float64",
    "ssim": "float64",
    "seconds": "float64",
    "seed": "int64",
}

#: Packages that a result depends on, by the names under which they are installed.
PACKAGES = (
    "pdutils",
    "tensorflow",
    "keras",
    "numpy",
    "scipy",
    "scikit-image",
    "PyWavelets",
    "pillow",
    "adversarial-robustness-toolbox",
)

_FORMAT = "1"

# SQLite keeps both at fixed places of a file's first page.
_MAGIC = b"SQLite format 3\x00"
_APPLICATION_ID, _APPLICATION_ID_AT = 0x50445231, 68

# What a file says at that place while a run writes to it, and ever after if that run is killed.
_WAL, _WAL_AT = 2, 18

_BLOCK = 100_000

_OF_A_CASE = ("attack_class", "target", "right_clean", "success", "l2", "linf")
_OF_A_RUN = (
    "run",
    "predicted",
    "mean_predicted",
    "p_label",
    "p_attack",
    "rank",
    "psnr",
    "ssim",
    "seconds",
    "seed",
)
_TEXTS = ("image", "attack", "defense")

_SCHEMA = """
CREATE TABLE meta (kind TEXT, name TEXT, value TEXT, PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE TABLE images (id INTEGER PRIMARY KEY, name TEXT, label INTEGER);
CREATE TABLE attacks (id INTEGER PRIMARY KEY, text TEXT UNIQUE);
CREATE TABLE defenses (id INTEGER PRIMARY KEY, text TEXT UNIQUE);
CREATE TABLE skipped (image INTEGER PRIMARY KEY, reason TEXT);
CREATE TABLE units (
    chunk INTEGER, attack INTEGER, defense INTEGER, PRIMARY KEY (chunk, attack, defense)
) WITHOUT ROWID;
CREATE TABLE cases (
    id INTEGER PRIMARY KEY, image INTEGER, attack INTEGER, defense INTEGER,
    attack_class INTEGER, target INTEGER, right_clean INTEGER, success INTEGER, l2 REAL, linf REAL
);
CREATE TABLE runs (
    "case" INTEGER, run INTEGER, predicted INTEGER, mean_predicted INTEGER, p_label REAL,
    p_attack REAL, rank INTEGER, psnr REAL, ssim REAL, seconds REAL, seed INTEGER,
    PRIMARY KEY ("case", run)
) WITHOUT ROWID;
"""


class StoreError(ValueError):
    """A file of records that cannot be used, or not by this run."""


class StoredRecords:
    """The records of a file that a `Store` wrote, or writes now, for reading; a context manager."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: no such file of records")
        if _is_new(Path(path)):
            raise StoreError(f"{path}: expected a file of records, got an empty file")
        _check_companion(Path(path))
        self._connection = _connect(f"{Path(path).absolute().as_uri()}?mode=ro", self.path)
        try:
            self._check_format()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read from it then."""
        self._connection.close()

    @property
    def images(self) -> int:
        """The number of images of the evaluation, finished or not."""
        return int(self._rows("SELECT count(*) FROM images")[0][0])

    def settings(self) -> dict[str, str]:
        """Give the settings that the records were made with, by name."""
        return self._meta("setting")

    def versions(self) -> dict[str, str]:
        """Give the versions of the packages that the records were made with."""
        return self._meta("version")

    def attacks(self) -> list[str]:
        """List the attacks that have been asked for, in the order of asking."""
        return list(self._texts("attacks"))

    def defenses(self) -> list[str]:
        """List the defences that have been asked for, in the order of asking."""
        return list(self._texts("defenses"))

    def skipped(self) -> list[tuple[str, str]]:
        """List the images that could not be read, each with the reason, in the source's order."""
        return self._rows(
            "SELECT name, reason FROM skipped JOIN images ON images.id = image ORDER BY image"
        )

    def blocks(
        self,
        attacks: Sequence[str] | None = None,
        defenses: Sequence[str] | None = None,
        *,
        images: int = 2000,
    ) -> Iterator[pd.DataFrame]:
        """Give the records so many images at a time; images without any are passed over."""
        for first in range(0, self.images, images):
            found = self.records(attacks, defenses, places=range(first, first + images))
            if not found.empty:
                yield found

    def records(
        self,
        attacks: Sequence[str] | None = None,
        defenses: Sequence[str] | None = None,
        *,
        places: range | None = None,
    ) -> pd.DataFrame:
        """Give the records of all finished units, or of some attacks, defences and images.

        Rows are sorted by image as in the source, then by attack and defence as given here (by
        default as they were first asked for), then by run, whatever the order in which they were
        written. The table's `attrs["skipped"]` is `skipped()`.
        """
        chosen_attacks = self._places("attacks", attacks)
        chosen_defenses = self._places("defenses", defenses)
        columns = self._columns(chosen_attacks, chosen_defenses, places or range(self.images))
        order = np.lexsort(
            (
                columns["run"],
                _ranks(chosen_defenses, columns["defense"]),
                _ranks(chosen_attacks, columns["attack"]),
                columns["image"],
            )
        )
        names = pd.Index([name for (name,) in self._rows("SELECT name FROM images ORDER BY id")])
        texts = {
            "image": names,
            "attack": self._index("attacks"),
            "defense": self._index("defenses"),
        }
        frame = pd.DataFrame(
            {
                name: texts[name].astype("str").take(columns[name][order])
                if name in texts
                else columns[name][order]
                for name in COLUMNS
            }
        ).astype(COLUMNS)
        frame.attrs["skipped"] = self.skipped()
        return frame

    def _columns(
        self, attacks: Mapping[str, int], defenses: Mapping[str, int], places: range
    ) -> dict[str, NDArray[Any]]:
        """Read the chosen records as one array a column, texts as their numbers."""
        wanted = [f"cases.{name}" for name in (*_TEXTS, *_OF_A_CASE)] + [
            "images.label",
            *(f"runs.{name}" for name in _OF_A_RUN),
        ]
        types = {n.split(".")[1]: COLUMNS[n.split(".")[1]].replace("str", "int64") for n in wanted}
        cursor = self._execute(
            f'SELECT {", ".join(wanted)} FROM cases JOIN runs ON runs."case" = cases.id '
            f"JOIN images ON images.id = cases.image "
            f"WHERE attack IN ({_marks(attacks)}) AND defense IN ({_marks(defenses)}) "
            "AND image BETWEEN ? AND ?",
            [*attacks.values(), *defenses.values(), places.start, places.stop - 1],
        )
        # Python's own numbers take ten times the memory of an array: a block of them at a time.
        blocks: list[list[NDArray[Any]]] = [[np.empty(0, kind) for kind in types.values()]]
        while rows := self._fetch(cursor):
            pairs = zip(zip(*rows, strict=True), types.values(), strict=True)
            blocks.append([np.array(values, dtype=kind) for values, kind in pairs])
        arrays = (np.concatenate(column) for column in zip(*blocks, strict=True))
        return dict(zip(types, arrays, strict=True))

    def _texts(self, table: str) -> dict[str, int]:
        return dict(self._rows(f"SELECT text, id FROM {table} ORDER BY id"))

    def _index(self, table: str) -> pd.Index:
        return pd.Index(list(self._texts(table)))

    def _places(self, table: str, chosen: Sequence[str] | None) -> dict[str, int]:
        known = self._texts(table)
        return {
            text: known[text] for text in (known if chosen is None else chosen) if text in known
        }

    def _meta(self, kind: str) -> dict[str, str]:
        return dict(self._rows("SELECT name, value FROM meta WHERE kind = ?", [kind]))

    def _check_format(self) -> None:
        found = self._meta("format").get("format")
        if found != _FORMAT:
            raise StoreError(f"{self.path}: expected a file of format {_FORMAT}, got {found}")

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with _sentences(self.path):
            return self._connection.execute(query, values).fetchall()

    def _execute(self, query: str, values: Sequence[Any]) -> sqlite3.Cursor:
        with _sentences(self.path):
            return self._connection.execute(query, values)

    def _fetch(self, cursor: sqlite3.Cursor) -> list[Any]:
        with _sentences(self.path):
            return cursor.fetchmany(_BLOCK)


class Store(StoredRecords):
    """The records of one evaluation, for writing; a context manager.

    A new file is made, or one that an earlier run of the same evaluation left is gone on with.
    Other attacks and defences than that run's are welcome; other images, settings or versions are
    refused. Without a path the records are kept in memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        names: Sequence[str],
        labels: Sequence[int],
        settings: Mapping[str, str | int],
    ) -> None:
        self.path = ":memory:" if path is None else str(path)
        self._lock: sqlite3.Connection | None = None
        if path is None:
            self._connection = _connect(":memory:", self.path)
        else:
            with naming(path):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            _is_new(Path(path))
            self._lock = _lock(self.path)
            try:
                _check_companion(Path(path))
            except StoreError:
                self._lock.close()
                raise
            self._connection = _connect(Path(path).absolute().as_uri(), self.path)
        try:
            self._prepare(names, labels, {name: str(value) for name, value in settings.items()})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and let others write to it."""
        # Outside of a run the file needs no companions: it can be copied, and read where nothing
        # can be written. While somebody else reads it, it stays as it is.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()
        if self._lock is not None:
            self._lock.close()

    def ask(self, attacks: Iterable[str], defenses: Iterable[str]) -> None:
        """Note which attacks and defences a run asks for, before it adds any."""
        with self._transaction() as connection:
            for table, texts in (("attacks", attacks), ("defenses", defenses)):
                known = self._texts(table)
                new = (text for text in dict.fromkeys(texts) if text not in known)
                rows = [(len(known) + i, text) for i, text in enumerate(new)]
                connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)

    def done(self, chunk: int) -> set[tuple[str, str]]:
        """Tell what is finished of a chunk of images."""
        return set(
            self._rows(
                "SELECT attacks.text, defenses.text FROM units "
                "JOIN attacks ON attacks.id = attack JOIN defenses ON defenses.id = defense "
                "WHERE chunk = ?",
                [chunk],
            )
        )

    def add(
        self,
        chunk: int,
        attack: str,
        defense: str,
        records: pd.DataFrame,
        skipped: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Write the records of a finished unit, all of them or none; `ask` knows its texts.

        They have a run 0 of each image. `skipped` are images of the chunk that could not be read,
        with the reason.
        """
        unit = (self._place("attacks", attack), self._place("defenses", defense))
        first = records[records["run"] == 0]
        images = [self._image(name) for name in first["image"]]
        with self._transaction() as connection:
            connection.execute("INSERT INTO units VALUES (?, ?, ?)", [chunk, *unit])
            rows = [(self._image(name), reason) for name, reason in skipped]
            connection.executemany("INSERT OR IGNORE INTO skipped VALUES (?, ?)", rows)
            start = connection.execute("SELECT ifnull(max(id), 0) + 1 FROM cases").fetchone()[0]
            cases = {image: start + i for i, image in enumerate(images)}
            values = zip(*(first[name].tolist() for name in _OF_A_CASE), strict=True)
            connection.executemany(
                f"INSERT INTO cases VALUES ({_marks(range(10))})",
                ((cases[i], i, *unit, *row) for i, row in zip(images, values, strict=True)),
            )
            values = zip(*(records[name].tolist() for name in _OF_A_RUN), strict=True)
            ids = [cases[self._image(name)] for name in records["image"]]
            connection.executemany(
                f"INSERT INTO runs VALUES ({_marks(range(11))})",
                ((case, *row) for case, row in zip(ids, values, strict=True)),
            )

    def _prepare(
        self, names: Sequence[str], labels: Sequence[int], settings: dict[str, str]
    ) -> None:
        if not self._rows("SELECT name FROM sqlite_master"):
            self._create(names, labels, settings)
        self._check_format()
        self._check_same("setting", "settings", settings)
        self._check_same("version", "versions", _versions())
        with _sentences(self.path):
            # Whoever reads then neither waits for the run nor holds it up.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")

    def _create(
        self, names: Sequence[str], labels: Sequence[int], settings: dict[str, str]
    ) -> None:
        meta = [("format", "format", _FORMAT)]
        meta += [("setting", name, value) for name, value in settings.items()]
        meta += [("version", name, value) for name, value in _versions().items()]
        with self._transaction() as connection:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.executemany("INSERT INTO meta VALUES (?, ?, ?)", meta)
            rows = zip(range(len(names)), names, map(int, labels), strict=True)
            connection.executemany("INSERT INTO images VALUES (?, ?, ?)", rows)

    def _check_same(self, kind: str, what: str, wanted: dict[str, str]) -> None:
        found = self._meta(kind)
        different = [
            f"{name}: {_short(found.get(name))} there, {_short(wanted.get(name))} here"
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        ]
        if different:
            raise StoreError(
                f"{self.path} was begun with other {what} ({'; '.join(different)}); "
                "take another file, or run with those"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _sentences(self.path):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @cached_property
    def _image_numbers(self) -> dict[str, int]:
        return dict(self._rows("SELECT name, id FROM images"))

    def _image(self, name: str) -> int:
        if name not in self._image_numbers:
            raise StoreError(f"{self.path}: expected an image of this evaluation, got {name!r}")
        return self._image_numbers[name]

    def _place(self, table: str, text: str) -> int:
        known = self._texts(table)
        if text not in known:
            raise StoreError(f"{self.path}: nobody has asked for {text!r}")
        return known[text]


def _versions() -> dict[str, str]:
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # An extra brings it, and only some attacks need it.
        return "none"


def _short(value: str | None) -> str:
    """Cut a digest to what people compare."""
    text = "none" if value is None else value
    return f"{text[:12]}..." if len(text) == 64 else text


def _ranks(places: Mapping[str, int], values: NDArray[Any]) -> NDArray[np.int64]:
    """Turn the numbers of texts into their ranks in the order asked for."""
    ranks = np.zeros(max(places.values(), default=0) + 1, dtype=np.int64)
    ranks[list(places.values())] = np.arange(len(places))
    taken: NDArray[np.int64] = ranks[values]
    return taken


def _marks(values: Iterable[Any]) -> str:
    return ", ".join("?" for _ in values)


def _is_new(path: Path) -> bool:
    """Tell whether a file is to be made; refuse one that is not ours before anything touches it."""
    if not path.exists():
        return True
    if not path.is_file():
        raise StoreError(f"{path}: expected a file of records, got a folder")
    with path.open("rb") as file:
        head = file.read(100)
    if not head:
        return True
    if not head.startswith(_MAGIC):
        raise StoreError(f"{path}: expected a file of records, got a file of another kind")
    ours = len(head) == 100 and struct.unpack_from(">I", head, _APPLICATION_ID_AT)[0]
    if ours != _APPLICATION_ID:
        raise StoreError(f"{path}: expected a file of records, got another program's database")
    return False


def _check_companion(path: Path) -> None:
    """Refuse a file that a killed run left, and that was copied without its companion.

    What was written last is in the companion, and a kill may have come while it was carried over:
    nothing in the file tells how much of it is whole.
    """
    # A run that ends well removes the companion a moment before it says so in the file.
    for _ in range(5):
        if not _lacks_companion(path):
            return
        time.sleep(0.1)
    raise StoreError(
        f"{path}: its companion {path.name}-wal is missing; the run that wrote them was killed, "
        "and its last records are in the companion: copy both, or begin again with another file"
    )


def _lacks_companion(path: Path) -> bool:
    if not path.exists() or path.with_name(f"{path.name}-wal").exists():
        return False
    with path.open("rb") as file:
        head = file.read(_WAL_AT + 1)
    return len(head) > _WAL_AT and head[_WAL_AT] == _WAL


def _connect(uri: str, path: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(uri, uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise OSError(f"{path}: the file of records cannot be opened ({error})") from error


def _lock(path: str) -> sqlite3.Connection:
    """Take the lock of a file, or refuse at once; the system drops it when the process ends."""
    uri = Path(f"{path}.lock").absolute().as_uri()
    lock = _connect(uri, path)
    try:
        lock.execute("PRAGMA busy_timeout = 0")
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        lock.close()
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise StoreError(
                f"{path}: another run writes to it at this moment; wait for its end, or take "
                "another file"
            ) from None
        raise OSError(f"{path}: its lock {path}.lock cannot be taken ({error})") from error
    return lock


@contextmanager
def _sentences(path: str) -> Iterator[None]:
    """Turn what SQLite raises into an error that names the file and says what is safe."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StoreError(
                f"{path}: no space is left for the records; what was finished is kept, and a "
                "rerun goes on from there"
            ) from error
        raise StoreError(
            f"{path}: the file of records cannot be read or written ({error})"
        ) from error
