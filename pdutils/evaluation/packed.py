"""Files of records that are kept and passed on: a store compressed by xz, `NAME.sqlite.xz`.

While a run adds to one it works on `NAME.sqlite.xz.part` beside it, a store, which holds what is
finished whatever ends the run; a rerun goes on with that.
"""

import lzma
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pdutils._utils import whole_file

SUFFIX = ".xz"


class StoreError(ValueError):
    """A file of records that cannot be used, or not by this run."""


def working(path: str | os.PathLike[str]) -> Path:
    """Give the store that holds the newest of a file's records while a run writes to it."""
    path = Path(path)
    return path.with_name(f"{path.name}.part") if path.suffix == SUFFIX else path


def unpack(path: Path, target: Path) -> None:
    """Write the store that a packed file holds."""
    with whole_file(target) as temporary:
        try:
            with lzma.open(path) as packed, temporary.open("wb") as file:
                shutil.copyfileobj(packed, file)
        except (lzma.LZMAError, EOFError) as error:
            raise StoreError(f"{path}: expected records packed by xz: {error}") from error


def pack(store: Path, path: Path) -> None:
    """Pack a store without its spare room into a file, which appears whole or not at all."""
    with tempfile.TemporaryDirectory() as folder, whole_file(path) as temporary:
        dense = Path(folder, "records.sqlite")
        with closing(sqlite3.connect(store)) as connection:
            connection.execute("VACUUM INTO ?", [str(dense)])
        with dense.open("rb") as file, lzma.open(temporary, "wb", preset=9) as packed:
            shutil.copyfileobj(file, packed)


@contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a store to read a file's records from: itself, its working copy, or a temporary one."""
    store, path = working(path), Path(path)
    if path.suffix != SUFFIX or store.exists() or not path.exists():
        yield store if store.exists() else path
        return
    with tempfile.TemporaryDirectory() as folder:
        unpack(path, Path(folder, store.name))
        yield Path(folder, store.name)
