"""The records that are kept in the repository: small, finished, and with what made them."""

from pathlib import Path

import pytest

from pdutils.evaluation.store import StoredRecords
from pdutils.evaluation.study import Study

COMMANDS = ("python -m pdutils evaluate ", "python -m tools.outside_attacks ")

FILES = sorted((Path(__file__).parents[1] / "records").glob("*.xz"))


def test_they_are_few_and_small():
    assert FILES
    assert all(path.name.endswith(".sqlite.xz") for path in FILES)
    assert all(path.stat().st_size <= 3_000_000 for path in FILES)
    assert sum(path.stat().st_size for path in FILES) <= 20_000_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_is_finished_says_what_made_it_and_gives_its_tables(path):
    study = Study.open(path)
    begun, images = study.progress()
    assert begun == images
    each = study.records.groupby(["attack", "defense"])["image"].nunique()
    assert set(each) == {images}
    with StoredRecords(path) as stored:
        made, settings, versions = stored.made(), stored.settings(), stored.versions()
    assert made
    for run in made:
        assert run["command"].startswith(COMMANDS)
        # No path of the machine that made it.
        assert " /" not in run["command"]
        assert run["processor"]
    assert len(settings["weights"]) == len(settings["source"]) == 64
    assert {"tensorflow", "numpy"} <= versions.keys()
    right = study.records.groupby("image")["right_clean"].first().sum()
    assert f"clean (n = {right})" in str(study.report("majority"))
