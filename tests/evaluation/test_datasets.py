import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import photo, photos

from pdutils.classifiers import Classifier, load_classifier
from pdutils.deflection import pixel_deflection
from pdutils.demo.drawing import CLASS_NAMES, draw_animals
from pdutils.demo.examples import Collection
from pdutils.evaluation import datasets
from pdutils.evaluation.datasets import FolderSource, classify, folder_source, maps_by_name
from pdutils.images import load_image, save_image, save_map
from pdutils.stats import Rate

NAMES = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 5)]


@pytest.fixture
def folder(tmp_path):
    """Three pictures in class folders, a class without one, a hidden folder."""
    for i, name in enumerate(("cat/b.png", "ant/deep/a.png", "cat/a.png")):
        save_image(tmp_path / "photos" / name, photo(40, 48, seed=i))
    for name in ("fox", ".thumbnails"):
        (tmp_path / "photos" / name).mkdir()
    return tmp_path / "photos"


@pytest.fixture
def flat(tmp_path):
    """Four pictures of ImageNet's names without a label in them."""
    for i, name in enumerate(NAMES):
        save_image(tmp_path / "val" / f"{name}.png", photo(seed=i))
        (tmp_path / "val" / f"{name}.png").rename(tmp_path / "val" / f"{name}.JPEG")
    return tmp_path / "val"


@pytest.fixture
def wordnet(toy):
    """The toy with WordNet ids, in their order."""
    ids = ["n01440764", "n01443537", "n02443114", "n02447366", "n03000000", "n03995372"]
    return Classifier(
        toy.model, preprocess=toy.preprocess, class_names=toy.class_names, class_ids=ids
    )


def listed(tmp_path, text: str):
    path = tmp_path / "list.txt"
    path.write_text(text)
    return path


def drawn(n: int, seed: int = 0) -> datasets.DrawingSource:
    return datasets.DrawingSource(n, seed)


# Folders


def test_a_folder_gives_relative_names_numbers_and_scaled_pictures(toy, folder):
    source = datasets.folder_source(folder, toy)
    assert source.names == ("ant/deep/a.png", "cat/a.png", "cat/b.png")
    assert source.labels == (0, 2, 2)
    assert source.empty_classes == ("fox",)
    np.testing.assert_array_equal(source.load(2), load_image(folder / "cat" / "b.png", 32))


def test_pictures_are_labelled_by_their_names_too_and_an_unknown_label_names_the_file(
    toy, folder, flat, tmp_path
):
    save_image(tmp_path / "named" / "eel_1.png", photo())
    source = datasets.folder_source(tmp_path / "named", toy)
    assert (source.names, source.labels, source.empty_classes) == (("eel_1.png",), (4,), ())
    save_image(folder / "yak" / "a.png", photo())
    with pytest.raises(ValueError, match=r"yak/a\.png: toy_gap has no class 'yak'"):
        datasets.folder_source(folder, toy)
    (flat / f"{NAMES[0]}.JPEG").rename(flat / "ILSVRC2012_val_1.png")
    with pytest.raises(ValueError, match="need a list of labels"):
        datasets.folder_source(flat, toy)


def test_files_may_be_given_by_hand_once_each(toy, folder):
    files = [(folder / "cat" / "b.png", "dog"), (folder / "cat" / "a.png", 5)]
    source = datasets.FolderSource(files, toy)
    assert (source.names, source.labels) == (("b.png", "a.png"), (3, 5))
    with pytest.raises(ValueError, match=r"every image once, got b\.png 2 times"):
        datasets.FolderSource([*files, files[0]], toy)
    with pytest.raises(ValueError, match="expected a file in"):
        datasets.FolderSource(files, toy, root=folder / "ant")
    with pytest.raises(ValueError, match="at least one labelled picture"):
        datasets.FolderSource([], toy)


def test_a_worker_elsewhere_finds_the_files_or_says_what_it_cannot_read(toy, folder, monkeypatch):
    monkeypatch.chdir(folder)
    source = pickle.loads(pickle.dumps(datasets.folder_source(".", toy)))
    monkeypatch.chdir(folder.parent)
    assert source.load(0).shape == (32, 32, 3)
    (folder / "cat" / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png"):
        source.load(1)
    (folder / "cat" / "a.png").unlink()
    with pytest.raises(FileNotFoundError):
        source.load(1)


def test_the_digest_of_a_folder_tells_names_labels_and_sizes(toy, folder):
    digest = datasets.folder_source(folder, toy).digest
    assert digest == datasets.folder_source(folder, toy).digest
    assert len(bytes.fromhex(digest)) == hashlib.sha256().digest_size
    relabelled = datasets.FolderSource(
        [(folder / name, 1) for name in ("ant/deep/a.png", "cat/a.png", "cat/b.png")], toy
    )
    assert relabelled.digest != digest
    with (folder / "cat" / "a.png").open("ab") as file:
        file.write(b"!")
    longer = datasets.folder_source(folder, toy).digest
    assert longer != digest
    (folder / "cat" / "a.png").rename(folder / "cat" / "aa.png")
    assert datasets.folder_source(folder, toy).digest not in (digest, longer)


# Lists


@pytest.mark.parametrize("suffix", ["", ".JPEG"])
def test_a_list_of_numbers_labels_a_flat_folder_in_its_order(toy, flat, tmp_path, suffix):
    rows = [f"{NAMES[i]}{suffix} {label}" for i, label in ((2, 5), (0, 0), (3, 1))]
    source = datasets.listed_source(flat, listed(tmp_path, "\n".join(rows) + "\n\n"), toy)
    assert source.names == tuple(f"{NAMES[i]}.JPEG" for i in (2, 0, 3))
    assert source.labels == (5, 0, 1)
    np.testing.assert_array_equal(source.load(0), photo(seed=2))


def test_kaggles_list_takes_the_first_id(wordnet, flat, tmp_path):
    text = (
        "ImageId,PredictionString\n"
        f"{NAMES[1]},n03995372 85 1 499 272 n01440764 131 0 499 254 \n"
        f"{NAMES[0]},n02443114 131 0 499 254\n"
    )
    source = datasets.listed_source(flat, listed(tmp_path, text), wordnet)
    assert source.names == (f"{NAMES[1]}.JPEG", f"{NAMES[0]}.JPEG")
    assert source.labels == (5, 2)


def test_a_list_may_name_files_in_folders(toy, folder, tmp_path):
    text = "cat/b.png ant\ncat/a.png dog\n"
    source = datasets.listed_source(folder, listed(tmp_path, text), toy)
    assert (source.names, source.labels) == (("cat/b.png", "cat/a.png"), (0, 3))


def test_numbers_do_not_fit_wordnet_ids_in_another_order(wordnet, flat, tmp_path):
    path = listed(tmp_path, f"{NAMES[0]} 0\n")
    ids = wordnet.class_ids[::-1]
    turned = Classifier(wordnet.model, preprocess=wordnet.preprocess, class_ids=ids)
    assert datasets.listed_source(flat, path, wordnet).labels == (0,)
    with pytest.raises(ValueError, match="has its classes in another"):
        datasets.listed_source(flat, path, turned)
    by_id = listed(tmp_path, f"{NAMES[0]} {ids[1]}\n")
    assert datasets.listed_source(flat, by_id, turned).labels == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found none"),
        ("a.png 1\nb.png\n", "line 2: expected a name and a label, got 'b.png'"),
        ("ImageId,PredictionString\na.png\n", "line 2: expected an image and its classes"),
        (f"{NAMES[0]} 1\n{NAMES[0]}.JPEG 1\n", "every image once"),
        (f"{NAMES[0]} yak\n", "JPEG: toy_gap has no class 'yak'"),
        (f"{NAMES[0]} 7\n", "JPEG: toy_gap has no class '7'"),
        ("490\n361\n171\n", r"line 1: .* development kit .* another order"),
        (f"{NAMES[0]} 6\n{NAMES[1]} 1\n", "from 0 to 5, got 1 to 6: they are counted from 1"),
        (f"{NAMES[0]} 1\ngone_b.JPEG 2\nsub/gone 3\n", r"2 of the 3 pic.* first is gone_b\.JPEG"),
    ],
)
def test_a_list_of_another_form_is_refused(toy, flat, tmp_path, text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        datasets.listed_source(flat, listed(tmp_path, text), toy)


def test_a_list_may_be_in_utf_16_but_must_be_a_text(toy, flat, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\n".join(f"{name} 2" for name in NAMES), encoding="utf-16")
    assert datasets.listed_source(flat, path, toy).labels == (2, 2, 2, 2)
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match=r"list\.txt: expected a text in UTF-8"):
        datasets.listed_source(flat, path, toy)
    with pytest.raises(FileNotFoundError, match="no such list"):
        datasets.listed_source(flat, tmp_path / "none.txt", toy)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        datasets.listed_source(tmp_path / "none", path, toy)


def test_class_folders_that_are_links_are_read_and_loops_are_no_empty_classes(toy, folder):
    (folder / "eel").symlink_to(folder.parent / "away")
    (folder.parent / "away").mkdir()
    (folder / "cat").rename(folder.parent / "cats")
    (folder / "cat").symlink_to("../cats")
    (folder / "again").symlink_to(".")
    (folder / "notes.txt").touch()
    source = datasets.folder_source(folder, toy)
    assert source.names == ("ant/deep/a.png", "cat/a.png", "cat/b.png")
    assert source.empty_classes == ("eel", "fox")
    assert "1 .txt" in source.passed_over


def test_names_that_are_no_utf_8_are_texts_and_their_files_are_found(toy, tmp_path):
    path = tmp_path / os.fsdecode(b"cat_caf\xe9.png")
    save_image(path, photo())
    source = datasets.folder_source(tmp_path, toy)
    assert source.names == (r"cat_caf\xe9.png",)
    np.testing.assert_array_equal(source.load(0), photo())
    assert len(source.digest) == 64


# Drawings


def test_drawings_are_those_of_the_package_whatever_their_number():
    wanted = draw_animals(13, rng=5)
    source = drawn(13, seed=5)
    for i in (0, 7, 12):
        np.testing.assert_array_equal(source.load(i), wanted[i].image)
        assert source.labels[i] == wanted[i].label
    np.testing.assert_array_equal(source.load(7), drawn(8, seed=5).load(7))
    assert source.names[12] == f"{CLASS_NAMES[2]}_00012"
    assert drawn(8, seed=5).names == source.names[:8]


def test_drawings_of_another_seed_are_others():
    assert not np.array_equal(drawn(1, seed=1).load(0), drawn(1, seed=2).load(0))
    assert len({drawn(1, 1).digest, drawn(1, 2).digest, drawn(2, 1).digest}) == 3


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (2.0, 0), (2, -1)])
def test_drawings_need_a_number_and_a_seed(n, seed):
    with pytest.raises(ValueError, match="expected"):
        datasets.DrawingSource(n, seed)


# Arrays


def test_arrays_are_a_source_that_its_user_cannot_change():
    images = photos(3)
    source = datasets.CollectionSource(Collection(images, np.array([4, 0, 1]), None, "here"))
    source.load(1)[:] = 0
    np.testing.assert_array_equal(source.load(1), images[1])
    assert source.labels == (4, 0, 1)
    assert len(set(source.names)) == 3


def test_the_digest_of_arrays_sees_a_pixel_and_a_label():
    def digest(images, labels):
        collection = Collection(images, np.array(labels), None, "here")
        return datasets.CollectionSource(collection).digest

    images, other = photos(2), photos(2)
    other[1, 3, 3, 0] += 1
    assert digest(images, [0, 1]) == digest(photos(2), [0, 1])
    assert len({digest(images, [0, 1]), digest(images, [0, 2]), digest(other, [0, 1])}) == 3


# Choice


def test_a_choice_is_random_repeatable_and_grows():
    source = drawn(200)
    few, more = datasets.chosen(source, 20, seed=3), datasets.chosen(source, 50, seed=3)
    assert few.names == more.names[:20]
    assert few.names == datasets.chosen(source, 20, seed=3).names
    assert few.names != datasets.chosen(source, 20, seed=4).names
    assert len(set(more.names)) == 50
    assert more.names != tuple(sorted(more.names))
    places = [source.names.index(name) for name in few.names]
    assert few.labels == tuple(source.labels[i] for i in places)
    np.testing.assert_array_equal(few.load(3), source.load(places[3]))


def test_the_digest_of_a_choice_is_its_own():
    source = drawn(20)
    digests = {datasets.chosen(source, n, seed).digest for n, seed in ((5, 0), (6, 0), (5, 1))}
    assert len(digests | {source.digest}) == 4
    assert datasets.chosen(drawn(20, seed=1), 5).digest not in digests


def test_a_choice_of_all_is_the_source_itself():
    source = drawn(5)
    assert datasets.chosen(source, 5) is source
    assert datasets.chosen(source, 9) is source
    with pytest.raises(ValueError, match="at least 1 image"):
        datasets.chosen(source, 0)
    with pytest.raises(ValueError, match="every image once"):
        datasets.Chosen(source, [1, 1])


def test_all_sources_travel(toy, folder):
    collection = Collection(photos(3), np.array([4, 0, 1]), None, "here")
    for source in (
        datasets.folder_source(folder, toy),
        drawn(3),
        datasets.CollectionSource(collection),
        datasets.chosen(drawn(9), 3),
    ):
        arrived = pickle.loads(pickle.dumps(source))
        assert (arrived.names, arrived.labels) == (source.names, source.labels)
        assert arrived.digest == source.digest
        np.testing.assert_array_equal(arrived.load(2), source.load(2))


# A folder, classified in batches


@pytest.fixture
def dozen(tmp_path, toy) -> FolderSource:
    """Twelve pictures, of other sizes too; each label is the toy's first, fifth or sixth choice."""
    for i in range(12):
        image = photo(32 + 5 * (i % 3), 32, seed=i)
        save_image(tmp_path / "x.png", image)
        ranks = np.argsort(-toy.predict(load_image(tmp_path / "x.png", toy.input_size)))
        label = toy.class_names[ranks[(0, 0, 4, 5)[i % 4]]]
        (tmp_path / "x.png").rename(tmp_path / f"{label}_{i:03d}.png")
    return folder_source(tmp_path, toy)


def test_top1_and_top5_are_counted(toy, dozen):
    result = classify(toy, dozen, toy.predict)
    # Of each four: two first choices, one fifth, one sixth.
    assert (result.top1, result.top5, result.skipped) == (Rate(6, 12), Rate(9, 12), ())


def test_files_that_are_corrupt_or_gone_are_skipped_and_named(toy, dozen):
    paths = dozen._paths
    hits = [toy.predict(dozen.load(i)).argmax() == dozen.labels[i] for i in (0, 5)]
    paths[5].write_bytes(paths[5].read_bytes()[:100])
    paths[0].unlink()
    result = classify(toy, dozen, toy.predict, batch_size=4)
    assert result.top1 == Rate(6 - sum(hits), 10)
    (gone, corrupt) = result.skipped
    assert (gone[0], corrupt[0]) == (dozen.names[0], dozen.names[5])
    assert "no such file" in gone[1]
    assert "expected a picture that can be read" in corrupt[1]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"can be read, got none; the first: {paths[0]}: exp"):
        classify(toy, dozen, toy.predict)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_result_does_not_depend_on_the_batch_size(toy, dozen, batch_size):
    for i in (2, 3, 7):
        dozen._paths[i].write_bytes(b"no picture")

    def result(size: int):
        rng, seen = np.random.default_rng(5), []

        def defended(images):
            seen.append(pixel_deflection(images, 40, 5, rng=rng))
            return toy.predict(seen[-1])

        return classify(toy, dozen, defended, batch_size=size), seen

    found, seen = result(batch_size)
    expected, all_at_once = result(32)
    assert found == expected
    assert len(found.skipped) == 3
    assert max(map(len, seen)) <= batch_size
    np.testing.assert_array_equal(np.concatenate(seen), np.concatenate(all_at_once))


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_below_1_is_refused(toy, dozen, batch_size):
    with pytest.raises(ValueError, match=f"batch_size: expected .* at least 1, got {batch_size}"):
        classify(toy, dozen, toy.predict, batch_size=batch_size)


@pytest.mark.real
def test_mobilenet_v2_is_right_about_188_of_the_200_photos(real, monkeypatch):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    weights = real / "weights" / "mobilenet_v2.weights.h5"
    classifier = load_classifier("mobilenet_v2", weights)
    result = classify(classifier, folder_source(real / "imagenet", classifier), classifier.predict)
    assert result.skipped == ()
    assert result.top1.n == 200
    assert abs(result.top1.successes - 188) <= 1
    assert abs(result.top5.successes - 197) <= 1


@pytest.fixture
def maps(dozen) -> list[Path]:
    """A map for each picture, dark but for one column of its own."""
    folder = dozen._root / ".maps"
    for i, path in enumerate(dozen._paths):
        chances = np.zeros((32, 32), dtype=np.float32)
        chances[:, i] = 1
        save_map(folder / path.name, chances)
    return maps_by_name(dozen._root, dozen._paths, folder)


def test_each_picture_is_seen_with_the_map_of_its_name(toy, dozen, maps):
    # What cannot be read must not shift the maps.
    dozen._paths[2].write_bytes(b"no picture")
    seen = []

    def predict(images, chances):
        assert images.shape == (*chances.shape, 3)
        seen.extend(chances[:, 0].argmax(axis=-1).tolist())
        return toy.predict(images)

    classify(toy, dozen, predict, batch_size=5, maps=maps)
    assert seen == [i for i in range(12) if i != 2]


def test_a_map_that_does_not_fit_is_named(toy, dozen, maps):
    save_map(maps[7], np.eye(16, dtype=np.float32))
    with pytest.raises(ValueError, match=f"{maps[7]}: expected a map of 32 x 32, .* got 16 x 16"):
        classify(toy, dozen, lambda images, _: toy.predict(images), maps=maps)


def test_maps_are_found_by_name(tmp_path):
    for name in ("a.png", "ant/b.png", "d.png", "bee/same.png"):
        save_map(tmp_path / "maps" / name, np.eye(4, dtype=np.float32))
    root = tmp_path / "photos"
    given = {"a.jpg": "a.png", "ant/b.png": "ant/b.png", "ant/d.JPEG": "d.png",
             "bee/same.png": "bee/same.png"}  # fmt: skip
    found = maps_by_name(root, [root / name for name in given], tmp_path / "maps")
    assert found == [tmp_path / "maps" / own for own in given.values()]
    # Two pictures of one name have no map in common.
    save_map(tmp_path / "maps" / "same.png", np.eye(4, dtype=np.float32))
    pair = [root / "ant" / "same.png", root / "bee" / "same.png"]
    missing = tmp_path / "maps" / "ant" / "same.png"
    with pytest.raises(FileNotFoundError, match=f"{missing}: no such map; 1 of 2 pictures"):
        maps_by_name(root, pair, tmp_path / "maps")
    with pytest.raises(FileNotFoundError, match="away: no such map or folder of maps"):
        maps_by_name(root, pair, tmp_path / "away")
