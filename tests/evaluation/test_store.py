import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, nullcontext
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pdutils.evaluation import store as store_module
from pdutils.evaluation.evaluate import BYTES_PER_RECORD, BYTES_PER_SINGLE_RECORD
from pdutils.evaluation.store import COLUMNS, Store, StoredRecords, StoreError

NAMES = [f"image_{i:02d}.png" for i in range(8)]
LABELS = [i % 3 for i in range(8)]
SETTINGS: dict[str, str | int] = {"runs": 3, "seed": 0, "source": "ab" * 32}
ALL = [(c, a, d) for c in (0, 1) for a in ("none", "igsm") for d in ("none", "pd")]


def unit(chunk: int, attack: str, defense: str, images: int = 4, runs: int = 3) -> pd.DataFrame:
    """Records of a chunk of images, all different, image by image and run by run."""
    places = np.repeat(np.arange(chunk * images, (chunk + 1) * images), runs)
    rng, n = np.random.default_rng([chunk, len(attack), len(defense)]), len(places)
    kinds = {"float64": lambda: rng.random(n), "int64": lambda: rng.integers(0, 1000, n)}
    drawn = {name: kinds[kind]() for name, kind in COLUMNS.items() if kind in kinds}
    told = drawn | {
        "image": [f"image_{i:02d}.png" for i in places], "label": places % 3, "attack": attack,
        "defense": defense, "run": np.tile(np.arange(runs), images), "attack_class": places % 7,
        "target": places % 5 - 1, "right_clean": places % 2 == 0, "success": places % 3 == 0,
        "l2": places / 8, "linf": places % 9.0, "seed": rng.integers(0, 2**63, n),
        "psnr": np.where(rng.random(n) < 0.2, np.inf, 40 * rng.random(n)),
    }  # fmt: skip
    return pd.DataFrame(told)[list(COLUMNS)].astype(COLUMNS)


def opened(path, **changes) -> Store:
    store = Store(path, **{"names": NAMES, "labels": LABELS, "settings": SETTINGS, **changes})
    store.ask(["none", "igsm"], ["none", "pd"])
    return store


def add(store: Store, *units: tuple[int, str, str]) -> None:
    for given in units:
        store.add(*given, unit(*given))


def filled(path, *units: tuple[int, str, str]) -> None:
    with opened(path) as store:
        add(store, *units)


def read(path) -> pd.DataFrame:
    with StoredRecords(path) as stored:
        return stored.records()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.sqlite"


def test_records_come_back_as_they_went_in_in_order_whatever_the_order_of_writing(
    path, tmp_path, monkeypatch
):
    expected = pd.concat([unit(*given) for given in ALL])
    expected["place"] = expected["attack"].map({"none": 0, "igsm": 1})
    expected = expected.sort_values(["image", "place", "defense", "run"], ignore_index=True)
    expected = expected[list(COLUMNS)]
    shuffled = [ALL[i] for i in np.random.default_rng(0).permutation(len(ALL))]
    filled(path)
    assert read(path).empty
    filled(path, *shuffled)
    # All at once, with edges of blocks within the records of an image, and some images at a time.
    for block, images in ((store_module._BLOCK, 100), (7, 3), (7, 1)):
        monkeypatch.setattr(store_module, "_BLOCK", block)
        with StoredRecords(path) as stored:
            parts = list(stored.blocks(images=images))
            whole = stored.records()
        assert all(part["image"].nunique() <= images for part in parts)
        for records in (whole, pd.concat(parts, ignore_index=True)):
            pd.testing.assert_frame_equal(records, expected, check_exact=True)
            assert {name: str(kind) for name, kind in records.dtypes.items()} == COLUMNS


def test_some_attacks_and_defenses_come_in_the_order_that_is_asked_for(path):
    filled(path, *ALL)
    with StoredRecords(path) as stored:
        records, none = stored.records(["igsm", "none"], ["pd", "unheard of"]), stored.records([])
        assert (stored.attacks(), stored.defenses()) == (["none", "igsm"], ["none", "pd"])
    assert (len(none), {name: str(kind) for name, kind in none.dtypes.items()}) == (0, COLUMNS)
    assert list(dict.fromkeys(records["attack"])) == ["igsm", "none"]
    assert (set(records["defense"]), len(records)) == ({"pd"}, 2 * 8 * 3)


def test_settings_versions_and_skipped_images_can_be_read_and_kept_in_memory(
    path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    some, reasons = unit(0, "none", "none"), [(NAMES[3], "cut off"), (NAMES[2], "no picture")]
    for place in (None, path):
        assert list(tmp_path.iterdir()) == []
        with opened(place) as store:
            for defense in ("none", "pd"):
                store.add(0, "none", defense, some[some["image"] != NAMES[2]], reasons)
            with StoredRecords(path) if place else nullcontext(store) as stored:
                assert stored.settings() == {"runs": "3", "seed": "0", "source": "ab" * 32}
                assert stored.versions()["numpy"] == np.__version__
                assert stored.skipped() == reasons[::-1]
                assert stored.records().attrs["skipped"] == stored.skipped()
                assert (stored.images, len(stored.records())) == (8, 18)


@pytest.mark.parametrize(("runs", "figure"), [(10, BYTES_PER_RECORD), (1, BYTES_PER_SINGLE_RECORD)])
def test_a_record_takes_about_the_bytes_that_are_told(path, runs, figure):
    names = [f"image_{i:02d}.png" for i in range(960)]
    with opened(path, names=names, labels=[0] * 960) as store:
        for chunk in range(30):
            for defense in ("none", "pd"):
                store.add(chunk, "igsm", defense, unit(chunk, "igsm", defense, 32, runs))
    assert 0.8 * figure < path.stat().st_size / (2 * 960 * runs) < 1.2 * figure


def test_a_unit_that_fails_half_way_or_comes_twice_or_is_interrupted_leaves_nothing(path):
    filled(path, ALL[0])
    new = unit(1, "none", "none")

    def interrupted():
        yield (NAMES[5], "cut off")
        raise KeyboardInterrupt

    with opened(path) as store:
        with pytest.raises(StoreError, match="cannot be read or written"):
            store.add(1, "none", "none", pd.concat([new, new]), [(NAMES[7], "cut off")])
        with pytest.raises(StoreError, match="UNIQUE"):
            add(store, ALL[0])
        with pytest.raises(KeyboardInterrupt):
            store.add(1, "none", "none", new, interrupted())
    with opened(path) as store:
        assert (store.done(0), store.done(1)) == ({("none", "none")}, set())
        assert (store.skipped(), len(store.records())) == ([], 12)
        add(store, (1, "none", "none"))
        assert len(store.records()) == 24


def test_on_a_full_disk_what_was_finished_is_kept(path):
    with opened(path) as store:
        add(store, ALL[0])
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="no space is left for the records; what was finish"):
            add(store, *ALL[1:])
    added = len(read(path)) // 12
    assert 1 <= added < len(ALL)
    with opened(path) as store:
        add(store, *ALL[added:])
    filled(path.with_name("other.sqlite"), *ALL)
    pd.testing.assert_frame_equal(read(path), read(path.with_name("other.sqlite")))


def test_other_settings_and_versions_are_refused_and_all_differences_named(path, monkeypatch):
    filled(path, *ALL)
    real = metadata.version
    with pytest.raises(StoreError) as caught:
        opened(path, settings={**SETTINGS, "runs": 4, "source": "cd" * 32})
    assert str(caught.value) == (
        f"{path} was begun with other settings (runs: 3 there, 4 here; source: abababababab... "
        "there, cdcdcdcdcdcd... here); take another file, or run with those"
    )
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "keras" else real(name))
    with pytest.raises(StoreError, match=rf"other versions \(keras: {real('keras')} there, 9.9 he"):
        opened(path)
    assert len(read(path)) == 96


def _damaged(path):
    filled(path, *ALL)
    content = path.read_bytes()
    path.write_bytes(content[:4096].ljust(len(content), b"\xff"))


def _told(statement, *, begun=False):
    """A maker of a database to which a statement was told."""

    def make(path):
        if begun:
            filled(path)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(statement)

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_text("a diary\n" * 30), "expected .*, got a file of another kind"),
        (_told("CREATE TABLE diary (day)"), "expected .*, got another program's database"),
        (Path.mkdir, "expected a file of records, got a folder"),
        (_damaged, "the file of records cannot be read"),
        (_told("UPDATE meta SET value = 2 WHERE kind = 'format'", begun=True),
         "expected a file of format 1, got 2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("open_it", [opened, StoredRecords])
def test_what_is_no_file_of_records_is_refused_untouched(path, make, said, open_it):
    def state():
        return set(path.parent.iterdir()), path.is_file() and path.read_bytes()

    make(path)
    before = state()
    with pytest.raises(StoreError, match=f"{path}: {said}"):
        open_it(path)
    assert state() == before


def test_no_file_and_an_empty_one_are_no_records_and_can_be_begun_in_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b #1?.sqlite"
    with pytest.raises(FileNotFoundError, match="sqlite: no such file of records"):
        StoredRecords(path)
    assert not path.parent.exists()
    filled(path, *ALL)
    assert len(read(path)) == 96
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="expected a file of records, got an empty file"):
        StoredRecords(path)
    filled(path, ALL[0])
    assert len(read(path)) == 12


def test_a_folder_or_a_lock_that_cannot_be_made_is_an_os_error_that_names_it(path, tmp_path):
    (tmp_path / "file").touch()
    path.with_name(f"{path.name}.lock").mkdir()
    for asked, named in ((tmp_path / "file" / "records.sqlite", "file"), (path, f"{path}.lock")):
        with pytest.raises(OSError, match=named):
            opened(asked)


def test_a_second_writer_is_refused_at_once_and_a_refused_file_is_not_kept_locked(path):
    with opened(path) as store:
        with pytest.raises(StoreError, match=f"{path}: another run writes to it at this moment"):
            opened(path)
        add(store, ALL[0])
    with pytest.raises(StoreError, match="other settings"):
        opened(path, settings={})
    with opened(path) as store:
        assert store.done(0) == {("none", "none")}


def test_others_read_what_is_finished_while_one_writes(path):
    with opened(path) as store:
        add(store, (0, "none", "none"))
        with StoredRecords(path) as stored:
            # Within a transaction, as in the middle of a long reading.
            stored._connection.execute("BEGIN")
            assert len(stored.records()) == 12
            add(store, (1, "none", "none"))
            assert len(stored.records()) == 12
            stored._connection.execute("COMMIT")
            assert len(stored.records()) == 24


def test_a_killed_run_s_file_is_gone_on_with_and_refused_without_its_companion(tmp_path):
    # A kill leaves what is there while a run writes.
    begun, left = tmp_path / "begun" / "a.sqlite", tmp_path / "left" / "a.sqlite"
    with opened(begun) as store:
        add(store, ALL[0])
        shutil.copytree(begun.parent, left.parent)
    alone = tmp_path / "alone.sqlite"
    shutil.copy(left, alone)
    before = alone.read_bytes()
    for open_it in (StoredRecords, opened):
        # The second time too: SQLite itself makes an empty companion.
        for _ in range(2):
            with pytest.raises(StoreError, match=rf"{alone}: its companion .*-wal is missing"):
                open_it(alone)
    assert alone.read_bytes() == before
    assert len(read(left)) == 12
    with opened(left) as store:
        add(store, *ALL[1:])
    assert len(read(left)) == 96


_HOLD = (
    "import sqlite3, sys; lock = sqlite3.connect(sys.argv[1], isolation_level=None); "
    "lock.execute('BEGIN EXCLUSIVE'); print(); input()"
)


def test_the_lock_of_another_process_ends_with_it(path):
    filled(path)
    command = [sys.executable, "-uc", _HOLD, path.with_name(f"{path.name}.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        with pytest.raises(StoreError, match="another run writes to it"):
            opened(path)
        process.kill()
        process.wait()
        opened(path).close()


def test_a_finished_file_is_plain_beside_its_empty_lock_and_a_reader_cannot_write(path):
    filled(path, *ALL)
    lock = path.with_name(f"{path.name}.lock")
    with StoredRecords(path) as stored, pytest.raises(sqlite3.OperationalError, match="readonly"):
        stored._connection.execute("DELETE FROM meta")
    assert sorted(path.parent.iterdir()) == [path, lock]
    assert lock.stat().st_size == 0
