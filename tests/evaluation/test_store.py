import shutil
import sqlite3
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pdutils.evaluation import store as store_module
from pdutils.evaluation.store import (
    COLUMNS,
    Store,
    StoredRecords,
    StoreError,
)

NAMES = [f"image_{i:02d}.png" for i in range(8)]
LABELS = [i % 3 for i in range(8)]
SETTINGS: dict[str, str | int] = {"runs": 3, "seed": 0, "source": "ab" * 32}


def unit(chunk: int, attack: str, defense: str, runs: int = 3) -> pd.DataFrame:
    """Records of a chunk of four images, all different, image by image and run by run."""
    places = np.repeat(np.arange(chunk * 4, (chunk + 1) * 4), runs)
    rng = np.random.default_rng([chunk, len(attack), len(defense)])
    n = len(places)
    by_image = rng.random((len(NAMES), 2))
    columns = {
        "image": [f"image_{i:02d}.png" for i in places],
        "label": places % 3,
        "attack": [attack] * n,
        "defense": [defense] * n,
        "run": np.tile(np.arange(runs), 4),
        "predicted": rng.integers(0, 1000, n),
        "mean_predicted": rng.integers(0, 1000, n),
        "p_label": rng.random(n, dtype=np.float32),
        "p_attack": rng.random(n),
        "attack_class": places % 7,
        "target": places % 5 - 1,
        "rank": rng.integers(1, 1001, n),
        "right_clean": places % 2 == 0,
        "success": places % 3 == 0,
        "l2": by_image[places, 0],
        "linf": by_image[places, 1],
        "psnr": np.where(rng.random(n) < 0.2, np.inf, 40 * rng.random(n)),
        "ssim": rng.random(n),
        "seconds": rng.random(n),
        "seed": rng.integers(0, 2**63, n),
    }
    return pd.DataFrame(columns).astype(COLUMNS)


def opened(path, **changes) -> Store:
    given = {"names": NAMES, "labels": LABELS, "settings": SETTINGS, **changes}
    return Store(path, **given)


def filled(path, *units: tuple[int, str, str]) -> None:
    with opened(path) as store:
        store.ask(["none", "igsm"], ["none", "pd"])
        _add(store, units)


def _add(store: Store, units) -> None:
    for given in units:
        store.add(*given, unit(*given))


def read(path) -> pd.DataFrame:
    with StoredRecords(path) as stored:
        return stored.records()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.sqlite"


ALL = [(c, a, d) for c in (0, 1) for a in ("none", "igsm") for d in ("none", "pd")]

# What goes in comes out


def test_records_come_back_as_they_went_in(path):
    filled(path, *ALL)
    expected = pd.concat([unit(*given) for given in ALL])
    expected["place"] = expected["attack"].map({"none": 0, "igsm": 1})
    expected = expected.sort_values(["image", "place", "defense", "run"])[list(COLUMNS)]
    records = read(path)
    pd.testing.assert_frame_equal(records, expected.reset_index(drop=True), check_exact=True)
    assert {name: str(kind) for name, kind in records.dtypes.items()} == COLUMNS


def test_the_order_of_records_does_not_depend_on_the_order_of_writing(tmp_path):
    shuffled = [ALL[i] for i in np.random.default_rng(0).permutation(len(ALL))]
    filled(tmp_path / "a.sqlite", *ALL)
    filled(tmp_path / "b.sqlite", *shuffled)
    tables = [read(tmp_path / name) for name in ("a.sqlite", "b.sqlite")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_records_are_read_in_blocks_and_none_is_lost_at_their_edges(path, monkeypatch):
    filled(path, *ALL)
    whole = read(path)
    monkeypatch.setattr(store_module, "_BLOCK", 7)
    pd.testing.assert_frame_equal(read(path), whole, check_exact=True)


@pytest.mark.parametrize("images", [1, 3, 100])
def test_the_records_of_some_images_at_a_time_are_all_the_records(path, images):
    filled(path, *ALL)
    with StoredRecords(path) as stored:
        blocks = list(stored.blocks(images=images))
        assert all(block["image"].nunique() <= images for block in blocks)
    pd.testing.assert_frame_equal(pd.concat(blocks, ignore_index=True), read(path))


def test_some_attacks_and_defenses_come_in_the_order_that_is_asked_for(path):
    filled(path, *ALL)
    with StoredRecords(path) as stored:
        records = stored.records(["igsm", "none"], ["pd", "unheard of"])
        assert (stored.attacks(), stored.defenses()) == (["none", "igsm"], ["none", "pd"])
    assert list(dict.fromkeys(records["attack"])) == ["igsm", "none"]
    assert set(records["defense"]) == {"pd"}
    assert len(records) == 2 * 8 * 3


def test_no_records_are_an_empty_table_of_the_same_columns(path):
    filled(path)
    records = read(path)
    assert records.empty
    assert {name: str(kind) for name, kind in records.dtypes.items()} == COLUMNS


def test_what_is_finished_is_told_by_chunk(path):
    filled(path, (0, "none", "none"), (1, "igsm", "pd"))
    with opened(path) as store:
        assert store.done(0) == {("none", "none")}
        assert store.done(1) == {("igsm", "pd")}
        assert store.done(2) == set()


def test_settings_versions_and_skipped_images_can_be_read(path):
    with opened(path) as store:
        store.ask(["none"], ["none", "pd"])
        some = unit(0, "none", "none")
        kept = some[some["image"] != NAMES[2]]
        reasons = [(NAMES[3], "cut off"), (NAMES[2], "no picture")]
        store.add(0, "none", "none", kept, reasons)
        store.add(0, "none", "pd", kept.assign(defense="pd"), reasons)
    with StoredRecords(path) as stored:
        assert stored.settings() == {"runs": "3", "seed": "0", "source": "ab" * 32}
        assert stored.versions()["numpy"] == np.__version__
        assert stored.skipped() == [(NAMES[2], "no picture"), (NAMES[3], "cut off")]
        assert stored.records().attrs["skipped"] == stored.skipped()
        assert stored.images == 8


def test_without_a_path_the_records_are_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened(None) as store:
        store.ask(["none"], ["none"])
        store.add(0, "none", "none", unit(0, "none", "none"))
        assert len(store.records()) == 12
    assert list(tmp_path.iterdir()) == []


# One unit, whole or not at all


def test_a_unit_that_fails_half_way_leaves_nothing(path):
    filled(path, (0, "none", "none"))
    twice = pd.concat([unit(1, "none", "none")] * 2)
    with opened(path) as store:
        with pytest.raises(StoreError, match="cannot be read or written"):
            store.add(1, "none", "none", twice, [(NAMES[7], "cut off")])
        assert (store.done(1), store.skipped(), len(store.records())) == (set(), [], 12)
        store.add(1, "none", "none", unit(1, "none", "none"))
        assert len(store.records()) == 24


def test_a_unit_is_not_added_twice(path):
    filled(path, (0, "none", "none"))
    with opened(path) as store, pytest.raises(StoreError, match="UNIQUE"):
        store.add(0, "none", "none", unit(0, "none", "none"))
    assert len(read(path)) == 12


def test_an_interruption_within_a_unit_leaves_nothing(path):
    filled(path, (0, "none", "none"))

    def interrupted():
        yield (NAMES[5], "cut off")
        raise KeyboardInterrupt

    with opened(path) as store, pytest.raises(KeyboardInterrupt):
        store.add(1, "none", "none", unit(1, "none", "none"), interrupted())
    with opened(path) as store:
        assert (store.done(1), store.skipped()) == (set(), [])


def test_on_a_full_disk_what_was_finished_is_kept(path):
    with opened(path) as store:
        store.ask(["none", "igsm"], ["none", "pd"])
        store.add(*ALL[0], unit(*ALL[0]))
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="no space is left for the records; what was finish"):
            _add(store, ALL[1:])
    added = len(read(path)) // 12
    assert 1 <= added < len(ALL)
    with opened(path) as store:
        _add(store, ALL[added:])
    filled(path.with_name("other.sqlite"), *ALL)
    pd.testing.assert_frame_equal(read(path), read(path.with_name("other.sqlite")))


@pytest.mark.parametrize(
    ("attack", "defense", "image", "said"),
    [
        ("fgsm", "none", NAMES[0], "nobody has asked for 'fgsm'"),
        ("none", "wd", NAMES[0], "nobody has asked for 'wd'"),
        ("none", "none", "owl.png", "expected an image of this evaluation, got 'owl.png'"),
    ],
)
def test_what_the_file_does_not_know_is_refused(path, attack, defense, image, said):
    filled(path)
    records = unit(0, attack, defense).replace({"image": {NAMES[0]: image}})
    with opened(path) as store, pytest.raises(StoreError, match=said):
        store.add(0, attack, defense, records)


# Whose file it is


def test_other_settings_are_refused_and_all_differences_named(path):
    filled(path, *ALL)
    other = {**SETTINGS, "runs": 4, "source": "cd" * 32}
    with pytest.raises(StoreError) as caught:
        opened(path, settings=other)
    assert str(caught.value) == (
        f"{path} was begun with other settings (runs: 3 there, 4 here; source: abababababab... "
        "there, cdcdcdcdcdcd... here); take another file, or run with those"
    )
    assert len(read(path)) == 96


def test_other_versions_are_refused_and_named(path, monkeypatch):
    filled(path, *ALL)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "keras" else real(name))
    with pytest.raises(StoreError, match=rf"other versions \(keras: {real('keras')} there, 9.9 he"):
        opened(path)


def test_another_format_is_refused(path, monkeypatch):
    filled(path)
    monkeypatch.setattr(store_module, "_FORMAT", "2")
    for open_it in (opened, StoredRecords):
        with pytest.raises(StoreError, match="expected a file of format 2, got 1"):
            open_it(path)


def _text(path):
    path.write_text("a diary, by no means to be lost\n" * 10)


def _database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE diary (day TEXT)")
    connection.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [(_text, "a file of another kind"), (_database, "another program's database")],
)
@pytest.mark.parametrize("open_it", [opened, StoredRecords])
def test_a_file_of_something_else_is_refused_untouched(path, make, said, open_it):
    make(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"{path}: expected a file of records, got {said}"):
        open_it(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_an_empty_file_and_none_are_no_records(path, tmp_path):
    for open_it in (opened, StoredRecords):
        with pytest.raises(StoreError, match="expected a file of records, got a folder"):
            open_it(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{path}: no such file of records"):
        StoredRecords(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(StoreError, match="expected a file of records, got an empty file"):
        StoredRecords(path)
    # It can be begun.
    filled(path, *ALL)
    assert len(read(path)) == 96


def test_a_damaged_file_is_told(path):
    filled(path, *ALL)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    for open_it in (opened, StoredRecords):
        with pytest.raises(StoreError, match=f"{path}: the file of records cannot be read"):
            open_it(path)


def test_the_folder_of_a_new_file_is_made(tmp_path):
    filled(tmp_path / "a" / "b #1?.sqlite", *ALL)
    assert len(read(tmp_path / "a" / "b #1?.sqlite")) == 96


def test_a_file_where_none_can_be_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        opened(tmp_path / "file" / "records.sqlite")


# Several at once


def test_a_second_writer_is_refused_at_once_and_a_refused_file_is_not_kept_locked(path):
    with opened(path) as store:
        store.ask(["none"], ["none"])
        with pytest.raises(StoreError, match=f"{path}: another run writes to it at this moment"):
            opened(path)
        store.add(0, "none", "none", unit(0, "none", "none"))
    with pytest.raises(StoreError, match="other settings"):
        opened(path, settings={})
    with opened(path) as store:
        assert store.done(0) == {("none", "none")}


def test_others_read_what_is_finished_while_one_writes(path):
    with opened(path) as store:
        store.ask(["none"], ["none"])
        store.add(0, "none", "none", unit(0, "none", "none"))
        with StoredRecords(path) as stored:
            # Within a transaction, as in the middle of a long reading.
            stored._connection.execute("BEGIN")
            assert len(stored.records()) == 12
            store.add(1, "none", "none", unit(1, "none", "none"))
            assert len(stored.records()) == 12
            stored._connection.execute("COMMIT")
            assert len(stored.records()) == 24


@pytest.fixture
def copied(path, tmp_path):
    """What a killed run leaves, copied without its companion; and a copy of both."""
    places = [str(Path(__file__).parent), str(Path(store_module.__file__).parents[1])]
    code = (
        "import os, signal, sys\n"
        f"sys.path[:0] = {places}\n"
        "from test_store import filled\n"
        "import pdutils.evaluation.store\n"
        "pdutils.evaluation.store.Store.close = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"filled({str(path)!r}, (0, 'none', 'none'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    companion = path.with_name(f"{path.name}-wal")
    assert companion.exists()
    for folder, files in (("alone", [path]), ("both", [path, companion])):
        (tmp_path / folder).mkdir()
        for file in files:
            shutil.copy(file, tmp_path / folder)
    return tmp_path / "alone" / path.name, tmp_path / "both" / path.name


def test_a_killed_run_s_file_without_its_companion_is_refused(copied):
    alone, both = copied
    assert len(read(both)) == 12
    before = alone.read_bytes()
    for open_it in (StoredRecords, opened):
        # The second time too: SQLite itself makes an empty companion.
        for _ in range(2):
            with pytest.raises(StoreError, match=rf"{alone}: its companion .*-wal is missing"):
                open_it(alone)
    assert alone.read_bytes() == before
    with opened(both) as store:
        _add(store, ALL[1:])
    assert len(read(both)) == 96


def test_a_finished_file_is_plain_beside_its_empty_lock_and_a_reader_cannot_write(path):
    filled(path, *ALL)
    lock = path.with_name(f"{path.name}.lock")
    with StoredRecords(path) as stored, pytest.raises(sqlite3.OperationalError, match="readonly"):
        stored._connection.execute("DELETE FROM meta")
    assert sorted(path.parent.iterdir()) == [path, lock]
    assert lock.stat().st_size == 0
