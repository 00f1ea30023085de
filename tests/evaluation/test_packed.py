import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_store import ALL, add, opened, read

from pdutils.evaluation import packed
from pdutils.evaluation import store as store_module
from pdutils.evaluation.store import StoredRecords, StoreError


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "records" / "parts.sqlite.xz"


def test_a_packed_file_reads_and_goes_on_as_the_store_that_it_was(path, tmp_path):
    plain = tmp_path / "plain.sqlite"
    for target in (plain, path):
        with opened(target) as store:
            add(store, *ALL[:3])
        with opened(target) as store:
            assert store.done(0) == {unit[1:] for unit in ALL[:3]}
            add(store, *ALL[3:])
    pd.testing.assert_frame_equal(read(path), read(plain))
    # Beside it lies nothing but what writers lock.
    assert {file.name for file in path.parent.iterdir()} <= {path.name, "parts.sqlite.xz.part.lock"}
    assert path.stat().st_size < plain.stat().st_size
    with StoredRecords(path) as stored:
        assert stored.attacks() == ["none", "igsm"]
        assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("module", ["pdutils evaluate", "tools.outside_attacks"])
def test_it_says_what_made_it_a_line_for_each_run_that_added(path, monkeypatch, module):
    line = ["photos", "--attacks", "igsm:eps=4", "--output", "a b.sqlite.xz"]
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", *module.split(), *line])
    for part in (ALL[:1], [], ALL[1:]):
        with opened(path) as store:
            add(store, *part)
    with StoredRecords(path) as stored:
        first, second = stored.made()
    words = f"python -m {module} photos --attacks igsm:eps=4 --output 'a b.sqlite.xz'"
    assert first["command"] == second["command"] == words
    assert first["date"] < second["date"]
    assert first["python"] == ".".join(map(str, sys.version_info[:3]))
    assert first["processor"]
    assert first["cores"] >= 1


def test_a_command_that_is_not_the_projects_is_not_told(path, monkeypatch):
    for words in (["-m", "pytest", "secret"], ["-c", "secret"], ["script.py"], []):
        monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", *words])
        assert json.loads(store_module._made_by())["command"] == ""


def test_what_a_killed_run_left_beside_it_is_newer_and_gone_on_with(path, tmp_path):
    with opened(path) as store:
        add(store, *ALL[:2])
    before, folder = path.read_bytes(), tmp_path / "left"
    folder.mkdir()
    with opened(path) as store:
        add(store, *ALL[2:4])
        for ending in ("", "-wal", "-shm"):
            shutil.copy(path.with_name(f"parts.sqlite.xz.part{ending}"), folder)
    path.write_bytes(before)
    shutil.copytree(folder, path.parent, dirs_exist_ok=True)
    assert len(read(path)) == 48
    with opened(path) as store:
        add(store, *ALL[4:])
    assert not packed.working(path).exists()
    assert len(read(path)) == 96


def test_who_only_looks_or_is_refused_changes_nothing(path):
    with opened(path) as store:
        add(store, *ALL)
    before = path.read_bytes(), path.stat().st_mtime_ns
    with pytest.raises(StoreError, match="begun with other settings"):
        opened(path, settings={})
    with opened(path):
        pass
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert not packed.working(path).exists()


def test_what_a_refused_run_finds_beside_it_stays_as_it_was(path):
    with opened(path) as store:
        add(store, *ALL[:2])
    # Another store whose name is like it, and what a killed run of another evaluation left.
    other, left = path.with_suffix(""), packed.working(path)
    for target, settings in ((other, {}), (left, {"seed": 5})):
        with opened(target, settings=settings) as store:
            add(store, *ALL)
    before = path.read_bytes(), other.read_bytes(), left.read_bytes()
    with pytest.raises(StoreError, match="begun with other settings"):
        opened(path)
    assert (path.read_bytes(), other.read_bytes(), left.read_bytes()) == before
    left.unlink()
    assert len(read(path)) == 24


@pytest.mark.parametrize("harm", [lambda b: b[:-40], lambda b: b"no xz at all", lambda b: b""])
def test_a_damaged_one_is_refused_and_left_as_it_is(path, harm):
    with opened(path) as store:
        add(store, *ALL)
    path.write_bytes(harm(path.read_bytes()))
    before = path.read_bytes()
    for open_it in (StoredRecords, opened):
        with pytest.raises(StoreError, match=f"{path}: expected"):
            open_it(path)
        assert path.read_bytes() == before
        assert not packed.working(path).exists()
