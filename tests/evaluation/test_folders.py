from pathlib import Path

import numpy as np
import pytest
from conftest import photo

from pdutils.classifiers import Classifier, load_classifier
from pdutils.deflection import pixel_deflection
from pdutils.evaluation.folders import evaluate_folder, maps_by_name
from pdutils.files import labelled_files
from pdutils.images import Array, load_image, save_image, save_map
from pdutils.stats import Rate


@pytest.fixture
def folder(tmp_path, toy) -> Path:
    """Twelve pictures, of other sizes too; each label is the toy's first, fifth or sixth choice."""
    for i in range(12):
        image = photo(32 + 5 * (i % 3), 32, seed=i)
        save_image(tmp_path / "x.png", image)
        ranks = np.argsort(-toy.predict(load_image(tmp_path / "x.png", toy.input_size)))
        label = toy.class_names[ranks[(0, 0, 4, 5)[i % 4]]]
        (tmp_path / "x.png").rename(tmp_path / f"{label}_{i:03d}.png")
    return tmp_path


def test_top1_and_top5_are_counted(toy, folder):
    result = evaluate_folder(toy, labelled_files(folder), toy.predict)
    # Of each four: two first choices, one fifth, one sixth.
    assert (result.top1, result.top5, result.skipped) == (Rate(6, 12), Rate(9, 12), ())


def test_a_corrupt_file_in_the_middle_is_skipped_and_named(toy, folder):
    files = labelled_files(folder)
    path = files[5][0]
    right = toy.predict(load_image(path, toy.input_size))
    hit = toy.class_names[right.argmax()] == files[5][1]
    path.write_bytes(path.read_bytes()[:100])
    result = evaluate_folder(toy, files, toy.predict, batch_size=4)
    assert result.top1 == Rate(6 - hit, 11)
    ((skipped, reason),) = result.skipped
    assert skipped == path
    assert "expected a picture that can be read" in reason


def test_a_file_that_has_gone_is_skipped_and_named(toy, folder):
    files = labelled_files(folder)
    files[0][0].unlink()
    ((skipped, reason),) = evaluate_folder(toy, files, toy.predict).skipped
    assert skipped == files[0][0]
    assert "no such file" in reason


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_result_does_not_depend_on_the_batch_size(toy, folder, batch_size):
    files = labelled_files(folder)
    for path, _ in (files[2], files[3], files[7]):
        path.write_bytes(b"no picture")

    def evaluate(size: int):
        rng, seen = np.random.default_rng(5), []

        def defended(images: Array) -> Array:
            seen.append(pixel_deflection(images, 40, 5, rng=rng))
            return toy.predict(seen[-1])

        return evaluate_folder(toy, files, defended, batch_size=size), np.concatenate(seen)

    result, seen = evaluate(batch_size)
    expected, all_at_once = evaluate(32)
    assert result == expected
    assert len(result.skipped) == 3
    np.testing.assert_array_equal(seen, all_at_once)


def test_no_more_images_than_the_batch_size_are_held(toy, folder):
    seen = []

    def recorded(images: Array) -> Array:
        seen.append(images.shape)
        return toy.predict(images)

    evaluate_folder(toy, labelled_files(folder), recorded, batch_size=5)
    assert seen == [(5, 32, 32, 3), (5, 32, 32, 3), (2, 32, 32, 3)]


def test_an_unknown_label_is_named_with_its_file_before_anything_is_classified(toy, folder):
    path = folder / "owl_000.png"
    save_image(path, photo())

    def never(images: Array) -> Array:
        raise AssertionError("an image was classified")

    with pytest.raises(ValueError, match=f"^{path}: toy_gap has no class 'owl'; it knows 6: ant"):
        evaluate_folder(toy, labelled_files(folder), never)


def test_a_folder_of_which_nothing_can_be_read_is_an_error(toy, folder):
    files = labelled_files(folder)
    for path, _ in files:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"can be read, got none; the first: {files[0][0]}: exp"):
        evaluate_folder(toy, files, toy.predict)


def test_no_files_at_all_are_an_error(toy):
    with pytest.raises(ValueError, match="expected images that can be read, got none"):
        evaluate_folder(toy, [], toy.predict)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_below_1_is_refused(toy, folder, batch_size):
    with pytest.raises(ValueError, match=f"batch_size: expected at least 1, got {batch_size}"):
        evaluate_folder(toy, labelled_files(folder), toy.predict, batch_size=batch_size)


def test_files_may_come_one_by_one(toy, folder):
    lazily = (pair for pair in labelled_files(folder))
    assert evaluate_folder(toy, lazily, toy.predict).top1 == Rate(6, 12)


@pytest.mark.real
def test_mobilenet_v2_is_right_about_188_of_the_200_photos(real, monkeypatch):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    classifier: Classifier = load_classifier(
        "mobilenet_v2", real / "weights" / "mobilenet_v2.weights.h5"
    )
    files = labelled_files(real / "imagenet")
    result = evaluate_folder(classifier, files, classifier.predict)
    assert result.skipped == ()
    assert result.top1.n == 200
    assert abs(result.top1.successes - 188) <= 1
    assert abs(result.top5.successes - 197) <= 1


@pytest.fixture
def maps(folder) -> Path:
    """A map for each picture, dark but for one column of its own."""
    for i, (path, _) in enumerate(labelled_files(folder)):
        chances = np.zeros((32, 32), dtype=np.float32)
        chances[:, i] = 1
        save_map(folder / ".maps" / path.name, chances)
    return folder / ".maps"


def test_each_picture_is_seen_with_the_map_of_its_name(toy, folder, maps):
    files = labelled_files(folder)
    # What cannot be read must not shift the maps.
    files[2][0].write_bytes(b"no picture")
    seen = []

    def predict(images, chances):
        assert images.shape == (*chances.shape, 3)
        seen.extend(chances[:, 0].argmax(axis=-1).tolist())
        return toy.predict(images)

    found = maps_by_name(folder, [path for path, _ in files], maps)
    evaluate_folder(toy, files, predict, batch_size=5, maps=found)
    assert seen == [i for i in range(12) if i != 2]


def test_maps_are_found_by_name(tmp_path):
    for name in ("a.png", "ant/b.png", "d.png", "bee/same.png"):
        save_map(tmp_path / "maps" / name, np.eye(4, dtype=np.float32))
    root = tmp_path / "photos"
    given = {"a.jpg": "a.png", "ant/b.png": "ant/b.png", "ant/d.JPEG": "d.png",
             "bee/same.png": "bee/same.png"}  # fmt: skip
    found = maps_by_name(root, [root / name for name in given], tmp_path / "maps")
    assert found == {root / n: tmp_path / "maps" / own for n, own in given.items()}
    # Two pictures of one name have no map in common.
    save_map(tmp_path / "maps" / "same.png", np.eye(4, dtype=np.float32))
    pair = [root / "ant" / "same.png", root / "bee" / "same.png"]
    missing = tmp_path / "maps" / "ant" / "same.png"
    with pytest.raises(FileNotFoundError, match=f"{missing}: no such map; 1 of 2 pictures"):
        maps_by_name(root, pair, tmp_path / "maps")
    with pytest.raises(FileNotFoundError, match="away: no such map or folder of maps"):
        maps_by_name(root, pair, tmp_path / "away")


def test_a_map_that_does_not_fit_is_named(toy, folder, maps):
    files = labelled_files(folder)
    found = maps_by_name(folder, [path for path, _ in files], maps)
    save_map(found[files[7][0]], np.eye(16, dtype=np.float32))
    said = f"{found[files[7][0]]}: expected a map of 32 x 32, .* got 16 x 16"
    with pytest.raises(ValueError, match=said):
        evaluate_folder(toy, files, lambda images, _: toy.predict(images), maps=found)
