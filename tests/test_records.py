"""The records that are kept in the repository: small, finished, and with what made them."""

from pathlib import Path

import pytest

from pdutils.classifiers import ClassifierSource
from pdutils.evaluation.store import StoredRecords
from pdutils.evaluation.study import Study, load_records, run

COMMANDS = ("python -m pdutils evaluate ", "python -m tools.outside_attacks ")

FILES = sorted((Path(__file__).parents[1] / "records").glob("*.xz"))


def test_they_are_few_and_small():
    assert FILES
    assert all(path.name.endswith(".sqlite.xz") for path in FILES)
    assert all(path.stat().st_size <= 3_000_000 for path in FILES)
    assert sum(path.stat().st_size for path in FILES) <= 20_000_000


def test_they_open_by_name_and_another_name_is_answered_with_those_that_there_are():
    stem = FILES[0].name.removesuffix(".sqlite.xz")
    assert load_records(stem).progress() == Study.open(FILES[0]).progress()
    with pytest.raises(FileNotFoundError, match=f"no records 'part'; expected one of .*{stem}"):
        load_records("part")


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
    for one in made:
        assert one["command"].startswith(COMMANDS)
        # No path of the machine that made it.
        assert " /" not in one["command"]
        assert one["processor"]
    assert len(settings["weights"]) == len(settings["source"]) == 64
    assert "numpy" in versions
    assert len({"tensorflow", "jax"} & versions.keys()) == 1
    right = study.records.groupby("image")["right_clean"].first().sum()
    assert f"clean (n = {right})" in str(study.report("majority"))


@pytest.mark.real
@pytest.mark.slow
def test_whoever_has_the_photos_gets_the_records_of_clean_images_again(real, tmp_path):
    kept = load_records("parts_efficientnet_lite0").records
    names = sorted(kept["image"].unique())[::50]
    for name in names:
        (tmp_path / name).symlink_to(real / "imagenet" / name)
    defenses = ["pd:deflections=1500", "wd", "pd+rcam+wd"]
    network = ClassifierSource("efficientnet_lite0")
    again = run(network, tmp_path, [], defenses, runs=2, progress=False).records
    keys = ["image", "attack", "defense", "run"]
    both = again.merge(kept, on=keys, suffixes=("", "_kept"))
    assert len(both) == len(again) == len(names) * (1 + 2 + 1 + 2)
    assert (both["seed"] == both["seed_kept"]).all()
    for column in ("p_label", "ssim"):
        assert both[column].to_numpy() == pytest.approx(both[f"{column}_kept"], abs=5e-3)
    assert both["psnr"].to_numpy() == pytest.approx(both["psnr_kept"], abs=0.05)
