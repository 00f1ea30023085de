"""Where an evaluation keeps its records: one SQLite file, written a finished unit at a time.

A unit is one attack and one defence on one chunk of consecutive images. Its records and the mark
that it is finished are written together, so that whatever ends a run leaves whole units, and a
rerun does what is missing. One run writes at a time (it holds a lock on the empty file
`FILE.lock`, which ends with its process); others may read meanwhile.
"""

import json
import os
import shlex
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any, Self

from pdutils._utils import accelerator, check_keras_settings, extra, installed, naming, processor
from pdutils.evaluation import packed
from pdutils.evaluation.packed import StoreError

with extra("evaluation"):
    import pandas as pd

#: The columns of a table of records, with their types.
COLUMNS: dict[str, str] = {
    "image": "str", "label": "int64", "attack": "str", "defense": "str", "run": "int64",
    "predicted": "int64", "mean_predicted": "int64", "p_label": "float64", "p_attack": "float64",
    "attack_class": "int64", "target": "int64", "rank": "int64", "right_clean": "bool",
    "success": "bool", "l2": "float64", "linf": "float64", "psnr": "float64", "ssim": "float64",
    "seconds": "float64", "seed": "int64",
}  # fmt: skip

#: Packages that a result depends on, by the names under which they are installed.
PACKAGES = ("pdutils", "tensorflow", "keras", "numpy", "scipy", "scikit-image", "PyWavelets",
            "pillow", "adversarial-robustness-toolbox")  # fmt: skip

_FORMAT = "1"

# SQLite keeps these at fixed places of a file's first page: its kind, ours, and, while a run writes
# to it and ever after if that run is killed, that there is a companion.
_MAGIC, _OURS, _WAL = b"SQLite format 3\x00", b"PDR1", b"\x02"

_BLOCK = 50_000

#: The columns of texts, of which the tables hold the numbers, and what the texts are called there.
_TEXTS = {"image": "name", "attack": "text", "defense": "text"}

_OF_A_CASE = ["attack_class", "target", "right_clean", "success", "l2", "linf"]
_OF_A_RUN = [name for name in COLUMNS if name not in (*_TEXTS, "label", *_OF_A_CASE)]

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


#: Of some attacks or defences; by default of all.
Texts = Sequence[str] | None


class StoredRecords:
    """The records of a file that a `Store` wrote, or writes now, for reading; a context manager."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self._held = ExitStack()
        with self._held:
            file = self._held.enter_context(packed.readable(path))
            if not file.exists():
                raise FileNotFoundError(f"{path}: no such file of records")
            if _is_new(file):
                raise StoreError(f"{path}: expected a file of records, got an empty file")
            self._open(f"{file.absolute().as_uri()}?mode=ro", self._check_format)
            self._held = self._held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read from it then."""
        with self._held:
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

    def made(self) -> list[dict[str, Any]]:
        """Tell of each run that added records: date, command, machine and Python."""
        return [{"date": d, **json.loads(told)} for d, told in sorted(self._meta("made").items())]

    def attacks(self) -> list[str]:
        """List the attacks that have been asked for, in the order of asking."""
        return list(self._texts("attack"))

    def defenses(self) -> list[str]:
        """List the defences that have been asked for, in the order of asking."""
        return list(self._texts("defense"))

    def skipped(self, places: range | None = None) -> list[tuple[str, str]]:
        """List the images that could not be read, each with the reason, in the source's order."""
        places = places or range(self.images)
        return self._rows(
            "SELECT name, reason FROM skipped JOIN images ON images.id = image "
            f"WHERE image BETWEEN {places.start} AND {places.stop - 1} ORDER BY image"
        )

    def blocks(
        self, attacks: Texts = None, defenses: Texts = None, *, images: int = 2000
    ) -> Iterator[pd.DataFrame]:
        """Give the records so many images at a time; images without any are passed over."""
        for first in range(0, self.images, images):
            found = self.records(attacks, defenses, places=range(first, first + images))
            if not found.empty:
                yield found

    def records(
        self, attacks: Texts = None, defenses: Texts = None, *, places: range | None = None
    ) -> pd.DataFrame:
        """Give the records of all finished units, or of some attacks, defences and images.

        Rows are sorted by image as in the source, then by attack and defence as given here (by
        default as they were first asked for), then by run, whatever the order in which they were
        written. The table's `attrs["skipped"]` is `skipped()`.
        """
        places = places or range(self.images)
        among, ranks = [f"image BETWEEN {places.start} AND {places.stop - 1}"], ["image"]
        for name, chosen in (("attack", attacks), ("defense", defenses)):
            known = self._texts(name)
            asked = [known[text] for text in (known if chosen is None else chosen) if text in known]
            among.append(f"{name} IN ({', '.join(map(str, asked))})")
            whens = (f"WHEN {number} THEN {rank}" for rank, number in enumerate(asked))
            ranks.append(f"CASE {name} {' '.join(whens) or 'WHEN 0 THEN 0'} END")
        query = (
            f'SELECT {", ".join(COLUMNS)} FROM cases JOIN runs ON runs."case" = cases.id '
            f"JOIN images ON images.id = image WHERE {' AND '.join(among)} "
            f"ORDER BY {', '.join(ranks)}, run"
        )
        numbers = {name: kind.replace("str", "int64") for name, kind in COLUMNS.items()}
        with _sentences(self.path):
            cursor = self._connection.execute(query)
            # Python's own numbers take ten times the memory of an array: a block of them at a time.
            blocks = chain([[]], iter(lambda: cursor.fetchmany(_BLOCK), []))
            frame = pd.concat(
                [pd.DataFrame(rows, columns=list(COLUMNS)).astype(numbers) for rows in blocks],
                ignore_index=True,
            )
        for name in _TEXTS:
            frame[name] = pd.Index(list(self._texts(name)), dtype="str").take(
                frame[name].to_numpy()
            )
        frame.attrs["skipped"] = self.skipped()
        return frame

    def _texts(self, kind: str) -> dict[str, int]:
        return dict(self._rows(f"SELECT {_TEXTS[kind]}, id FROM {kind}s ORDER BY id"))

    def _meta(self, kind: str) -> dict[str, str]:
        return dict(self._rows("SELECT name, value FROM meta WHERE kind = ?", [kind]))

    def _open(self, uri: str, check: Callable[[], None]) -> None:
        """Open the file, and close it again if it is not what it should be."""
        with _sentences(self.path):
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            check()
        except BaseException:
            self.close()
            raise

    def _check_format(self) -> None:
        found = self._meta("format").get("format")
        if found != _FORMAT:
            raise StoreError(f"{self.path}: expected a file of format {_FORMAT}, got {found}")

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with _sentences(self.path):
            return self._connection.execute(query, values).fetchall()


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
        self.path = uri = ":memory:"
        self._held, self._is_told, self._is_copy, self._is_ours = ExitStack(), False, False, False
        if path is not None:
            self.path = str(path)
            with naming(path):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            file = packed.working(path)
            if file == Path(path):
                _is_new(file)
            self._held.enter_context(_locked(str(file)))
            if file != Path(path):
                self._unpack(Path(path), file)
            uri = file.absolute().as_uri()
        texts = {name: str(value) for name, value in settings.items()}
        self._open(uri, partial(self._prepare, names, labels, texts))
        self._is_ours = True

    def close(self) -> None:
        """Close the file and let others write to it."""
        # Outside of a run the file needs no companions: it can be copied, and read where nothing
        # can be written. While somebody else reads it, it stays as it is.
        with self._held:
            is_same = self._is_copy and not self._connection.total_changes
            with closing(self._connection) as connection, suppress(sqlite3.Error):
                connection.executescript("PRAGMA busy_timeout = 0; PRAGMA journal_mode = DELETE")
            file = packed.working(self.path)
            if str(file) != self.path and is_same:
                file.unlink()
            elif str(file) != self.path and self._is_ours:
                packed.pack(file, Path(self.path))
                file.unlink()

    def _unpack(self, path: Path, file: Path) -> None:
        # What a run that was ended left is newer.
        if not file.exists() and path.exists():
            with self._held:
                packed.unpack(path, file)
                self._held = self._held.pop_all()
            self._is_copy = True
        _is_new(file)

    def ask(self, attacks: Iterable[str], defenses: Iterable[str]) -> None:
        """Note which attacks and defences a run asks for, before it adds any."""
        with self._transaction() as connection:
            for kind, texts in (("attack", attacks), ("defense", defenses)):
                known = self._texts(kind)
                new = (text for text in dict.fromkeys(texts) if text not in known)
                connection.executemany(
                    f"INSERT INTO {kind}s VALUES (?, ?)", enumerate(new, len(known))
                )

    def done(self, chunk: int) -> set[tuple[str, str]]:
        """Tell what is finished of a chunk of images."""
        return set(
            self._rows(
                "SELECT attacks.text, defenses.text FROM units JOIN attacks ON attacks.id = attack "
                "JOIN defenses ON defenses.id = defense WHERE chunk = ?",
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
        unit = self._texts("attack")[attack], self._texts("defense")[defense]
        first = records[records["run"] == 0]
        with self._transaction() as connection:
            if not self._is_told:
                told = ["made", datetime.now(UTC).isoformat(timespec="microseconds"), _made_by()]
                connection.execute("INSERT INTO meta VALUES (?, ?, ?)", told)
            connection.execute("INSERT INTO units VALUES (?, ?, ?)", [chunk, *unit])
            connection.executemany(
                "INSERT OR IGNORE INTO skipped VALUES (?, ?)",
                ((self._numbers[name], reason) for name, reason in skipped),
            )
            start = self._rows("SELECT ifnull(max(id), 0) + 1 FROM cases")[0][0]
            cases = dict(zip(first["image"], count(start), strict=False))
            numbers = [self._numbers[name] for name in cases]
            self._insert("cases", first[_OF_A_CASE], cases.values(), numbers, *map(repeat, unit))
            self._insert("runs", records[_OF_A_RUN], [cases[name] for name in records["image"]])
        self._is_told = True

    def _insert(self, table: str, records: pd.DataFrame, *keys: Iterable[int]) -> None:
        values = [*keys, *(records[name].tolist() for name in records)]
        marks = ", ".join("?" * len(values))
        rows = zip(*values, strict=False)
        self._connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)

    def _prepare(
        self, names: Sequence[str], labels: Sequence[int], settings: dict[str, str]
    ) -> None:
        # Another backend is another package, whose results are others.
        backend = check_keras_settings()
        packages = [backend if name == "tensorflow" else name for name in PACKAGES]
        versions = {name: installed(name) for name in packages}
        if not self._rows("SELECT name FROM sqlite_master"):
            kinds = {"format": {"format": _FORMAT}, "setting": settings, "version": versions}
            with self._transaction() as connection:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {int.from_bytes(_OURS)}")
                connection.executemany(
                    "INSERT INTO meta VALUES (?, ?, ?)",
                    ((kind, *pair) for kind, pairs in kinds.items() for pair in pairs.items()),
                )
                rows = zip(count(), names, map(int, labels), strict=False)
                connection.executemany("INSERT INTO images VALUES (?, ?, ?)", rows)
        self._check_format()
        self._check_same("setting", settings)
        self._check_same("version", versions)
        with _sentences(self.path):
            # Whoever reads then neither waits for the run nor holds it up.
            self._connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")

    def _check_same(self, kind: str, wanted: dict[str, str]) -> None:
        found = self._meta(kind)
        different = [
            f"{name}: {_short(found.get(name))} there, {_short(wanted.get(name))} here"
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        ]
        if different:
            raise StoreError(
                f"{self.path} was begun with other {kind}s ({'; '.join(different)}); "
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
    def _numbers(self) -> dict[str, int]:
        return self._texts("image")


def _made_by() -> str:
    """Describe what makes records now, as JSON."""
    line = sys.orig_argv[1:]
    # The command of another program, such as a notebook's, may hold what is not ours to pass on.
    ours = line[:1] == ["-m"] and line[1].partition(".")[0] in ("pdutils", "tools")
    told = {
        "command": shlex.join(["python", *line]) if ours else "",
        "processor": processor(),
        "accelerator": accelerator(),
        "cores": os.cpu_count(),
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    return json.dumps(told)


def _short(value: str | None) -> str:
    """Cut a digest to what people compare."""
    text = value or "none"
    return f"{text[:12]}..." if len(text) == 64 else text


def _is_new(path: Path) -> bool:
    """Tell whether a file is to be made; refuse one that is not ours before anything touches it."""
    if not path.exists():
        return True
    if not path.is_file():
        raise StoreError(f"{path}: expected a file of records, got a folder")
    # A run that ends well removes the companion a moment before it says so in the file.
    for _ in range(5):
        with path.open("rb") as file:
            head = file.read(100)
        if not head:
            return True
        if not head.startswith(_MAGIC):
            raise StoreError(f"{path}: expected a file of records, got a file of another kind")
        if head[68:72] != _OURS:
            raise StoreError(f"{path}: expected a file of records, got another program's database")
        if head[18:19] != _WAL or path.with_name(f"{path.name}-wal").exists():
            return False
        time.sleep(0.1)
    # What was written last is in the companion, and a kill may have come while it was carried over:
    # nothing in the file tells how much of it is whole.
    raise StoreError(
        f"{path}: its companion {path.name}-wal is missing; the run that wrote them was killed, "
        "and its last records are in the companion: copy both, or begin again with another file"
    )


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold the lock of a file, or refuse at once; the system drops it when the process ends."""
    with ExitStack() as stack:
        try:
            lock = sqlite3.connect(f"{path}.lock", timeout=0, isolation_level=None)
            stack.enter_context(closing(lock)).execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                raise StoreError(
                    f"{path}: another run writes to it at this moment; wait for its end, or take "
                    "another file"
                ) from None
            raise OSError(f"{path}: its lock {path}.lock cannot be taken ({error})") from error
        yield


@contextmanager
def _sentences(path: str) -> Iterator[None]:
    """Turn what SQLite raises into an error that names the file and says what is safe."""
    try:
        yield
    except sqlite3.Error as error:
        said = f"the file of records cannot be read or written ({error})"
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            said = (
                "no space is left for the records; what was finished is kept, and a rerun goes on "
                "from there"
            )
        raise StoreError(f"{path}: {said}") from error
