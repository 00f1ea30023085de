import os
import pickle

import numpy as np
import pytest
from conftest import photo, photos

from pdutils.classifiers import Classifier, load_classifier
from pdutils.deflection import pixel_deflection
from pdutils.demo.drawing import CLASS_NAMES, draw_animals
from pdutils.demo.examples import Collection
from pdutils.evaluation.datasets import (
    CollectionSource,
    DrawingSource,
    FolderSource,
    chosen,
    classify,
    folder_source,
    listed_source,
    maps_by_name,
)
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
    (tmp_path / "val").mkdir()
    for i, name in enumerate(NAMES):
        save_image(tmp_path / "x.png", photo(seed=i))
        (tmp_path / "x.png").rename(tmp_path / "val" / f"{name}.JPEG")
    return tmp_path / "val"


@pytest.fixture
def listed(tmp_path):
    """A function that labels a folder by a list of a text."""

    def source(folder, text, classifier):
        (tmp_path / "list.txt").write_text(text)
        return listed_source(folder, tmp_path / "list.txt", classifier)

    return source


def wordnet(toy, turn=1):
    """The toy with WordNet ids, in their order or another."""
    ids = ["n01440764", "n01443537", "n02443114", "n02447366", "n03000000", "n03995372"]
    return Classifier(toy.model, preprocess=toy.preprocess, class_ids=ids[::turn])


def arrays(images=None, labels=(4, 0, 1)) -> CollectionSource:
    images = photos(3) if images is None else images
    return CollectionSource(Collection(images, np.array(labels), None, "here"))


def told(source) -> tuple[list, list]:
    return list(source.names), list(source.labels)


def test_a_folder_gives_relative_names_numbers_and_scaled_pictures(toy, folder):
    # Links are followed; a loop of them is no empty class.
    (folder / "eel").symlink_to(folder.parent / "away")
    (folder.parent / "away").mkdir()
    (folder / "cat").rename(folder.parent / "cats")
    (folder / "cat").symlink_to("../cats")
    (folder / "again").symlink_to(".")
    (folder / "notes.txt").touch()
    source = folder_source(folder, toy)
    assert told(source) == (["ant/deep/a.png", "cat/a.png", "cat/b.png"], [0, 2, 2])
    assert source.empty_classes == ["eel", "fox"]
    assert "1 .txt" in source.passed_over
    np.testing.assert_array_equal(source.load(2), load_image(folder / "cat" / "b.png", 32))


def test_pictures_are_labelled_by_their_names_too_and_an_unknown_label_names_the_file(
    toy, folder, flat, tmp_path
):
    save_image(tmp_path / "named" / "eel_1.png", photo())
    save_image(tmp_path / "named" / os.fsdecode(b"cat_caf\xe9.png"), photo(seed=1))
    source = folder_source(tmp_path / "named", toy)
    # A name that is no UTF-8 is a text, and its file is found.
    assert told(source) == ([r"cat_caf\xe9.png", "eel_1.png"], [2, 4])
    np.testing.assert_array_equal(source.load(0), photo(seed=1))
    assert (len(source.digest), source.empty_classes) == (64, [])
    save_image(folder / "yak" / "a.png", photo())
    with pytest.raises(ValueError, match=r"yak/a\.png: toy_gap has no class 'yak'"):
        folder_source(folder, toy)
    (flat / f"{NAMES[0]}.JPEG").rename(flat / "ILSVRC2012_val_1.png")
    with pytest.raises(ValueError, match="need a list of labels"):
        folder_source(flat, toy)


def test_files_may_be_given_by_hand_once_each_and_are_found_elsewhere(toy, folder, monkeypatch):
    files = [(folder / "cat" / "b.png", "dog"), (folder / "cat" / "a.png", 5)]
    assert told(FolderSource(files, toy)) == (["b.png", "a.png"], [3, 5])
    with pytest.raises(ValueError, match=r"every image once, got b\.png 2 times"):
        FolderSource([*files, files[0]], toy)
    with pytest.raises(ValueError, match=r"cat/b\.png' is not in the subpath of .*ant'"):
        FolderSource(files, toy, root=folder / "ant")
    # A worker elsewhere finds the files or says what it cannot read.
    monkeypatch.chdir(folder)
    source = pickle.loads(pickle.dumps(folder_source(".", toy)))
    monkeypatch.chdir(folder.parent)
    assert source.load(0).shape == (32, 32, 3)
    (folder / "cat" / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png"):
        source.load(1)


@pytest.mark.parametrize("suffix", ["", ".JPEG"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_list_of_numbers_labels_a_flat_folder_in_its_order(toy, flat, suffix, encoding):
    rows = [f"{NAMES[i]}{suffix} {label}" for i, label in ((2, 5), (0, 0), (3, 1))]
    (flat.parent / "list.txt").write_text("\n".join(rows) + "\n\n", encoding=encoding)
    source = listed_source(flat, flat.parent / "list.txt", toy)
    assert told(source) == ([f"{NAMES[i]}.JPEG" for i in (2, 0, 3)], [5, 0, 1])
    np.testing.assert_array_equal(source.load(0), photo(seed=2))


def test_kaggles_list_takes_the_first_id_and_others_name_files_in_folders_or_number_classes(
    toy, flat, folder, listed
):
    text = (
        "ImageId,PredictionString\n"
        f"{NAMES[1]},n03995372 85 1 499 272 n01440764 131 0 499 254 \n"
        f"{NAMES[0]},n02443114 131 0 499 254\n"
    )
    source = listed(flat, text, wordnet(toy))
    assert told(source) == ([f"{NAMES[1]}.JPEG", f"{NAMES[0]}.JPEG"], [5, 2])
    source = listed(folder, "cat/b.png ant\ncat/a.png dog\n", toy)
    assert told(source) == (["cat/b.png", "cat/a.png"], [0, 3])
    # Numbers do not fit WordNet ids in another order.
    assert listed(flat, f"{NAMES[0]} 0\n", wordnet(toy)).labels == [0]
    with pytest.raises(ValueError, match="has its classes in another"):
        listed(flat, f"{NAMES[0]} 0\n", wordnet(toy, -1))
    assert listed(flat, f"{NAMES[0]} n03000000\n", wordnet(toy, -1)).labels == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found none"),
        ("a.png 1\nb.png\n", "line 2: expected a name and a label, got 'b.png'"),
        ("a.png 1\n\nb.png 1\n", "line 2: expected a name and a label, got ''"),
        ("ImageId,PredictionString\na.png\n", "line 2: expected an image and its classes"),
        (f"{NAMES[0]} 1\n{NAMES[0]}.JPEG 1\n", "every image once"),
        (f"{NAMES[0]} yak\n", "JPEG: toy_gap has no class 'yak'"),
        (f"{NAMES[0]} 7\n", "JPEG: toy_gap has no class '7'"),
        ("490\n361\n171\n", r"line 1: .* development kit .* another order"),
        (f"{NAMES[0]} 6\n{NAMES[1]} 1\n", "from 0 to 5, got 1 to 6: they are counted from 1"),
        (f"{NAMES[0]} 1\ngone_b.JPEG 2\nsub/gone 3\n", r"2 of the 3 pic.* first is gone_b\.JPEG"),
    ],
)
def test_a_list_of_another_form_is_refused(toy, flat, listed, text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        listed(flat, text, toy)


def test_a_list_must_be_there_and_a_text(toy, flat, tmp_path):
    path, none = tmp_path / "list.txt", tmp_path / "none"
    path.write_bytes(b"\x89PNG\xff\xfe")
    for folder, labels, message in (
        (flat, path, r"list\.txt: expected a text in UTF-8"),
        (flat, none, "no such list"),
        (none, path, "no such folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            listed_source(folder, labels, toy)


def test_drawings_are_those_of_the_package_whatever_their_number_and_arrays_those_given():
    wanted, source, few = draw_animals(13, rng=5), DrawingSource(13, 5), DrawingSource(8, 5)
    np.testing.assert_array_equal(source.load(12), wanted[12].image)
    np.testing.assert_array_equal(few.load(7), wanted[7].image)
    assert source.labels == [drawing.label for drawing in wanted]
    assert source.names[12] == f"{CLASS_NAMES[2]}_00012"
    assert few.names == source.names[:8]
    assert not np.array_equal(DrawingSource(8, 6).load(7), few.load(7))
    for n, seed in ((0, 0), (2.0, 0), (2, -1)):
        with pytest.raises(ValueError, match="expected a whole number of at least"):
            DrawingSource(n, seed)
    # Nobody can change a source of arrays.
    source = arrays()
    source.load(1)[:] = 0
    np.testing.assert_array_equal(source.load(1), photos(3)[1])
    assert told(source) == (["image_00000", "image_00001", "image_00002"], [4, 0, 1])


def test_a_choice_is_random_repeatable_and_grows():
    source = DrawingSource(200)
    few, more = chosen(source, 20, seed=3), chosen(source, 50, seed=3)
    assert few.names == more.names[:20] == chosen(source, 20, seed=3).names
    assert few.names != chosen(source, 20, seed=4).names
    assert len(set(more.names)) == 50
    assert more.names != sorted(more.names)
    places = [source.names.index(name) for name in few.names]
    assert few.labels == [source.labels[i] for i in places]
    np.testing.assert_array_equal(few.load(3), source.load(places[3]))
    assert chosen(source, 200) is chosen(source, 300) is source
    with pytest.raises(ValueError, match="at least 1 image"):
        chosen(source, 0)


def test_other_sources_have_other_digests_and_all_travel(toy, folder):
    brighter, path = photos(3), folder / "cat" / "a.png"
    brighter[1, 3, 3, 0] += 1
    files = [(folder / name, 1) for name in ("ant/deep/a.png", "cat/a.png", "cat/b.png")]
    sources = [
        folder_source(folder, toy), FolderSource(files, toy), arrays(), arrays(brighter),
        arrays(labels=(4, 0, 2)), DrawingSource(9), DrawingSource(9, 1), DrawingSource(8),
        chosen(DrawingSource(9), 3), chosen(DrawingSource(9), 4), chosen(DrawingSource(9), 3, 1),
        chosen(DrawingSource(9, 1), 3),
    ]  # fmt: skip
    digests = [source.digest for source in sources]
    for source in sources:
        arrived = pickle.loads(pickle.dumps(source))
        assert (told(arrived), arrived.digest) == (told(source), source.digest)
        np.testing.assert_array_equal(arrived.load(2), source.load(2))
    assert arrays().digest == digests[2]
    path.write_bytes(path.read_bytes() + b"!")
    digests.append(folder_source(folder, toy).digest)
    path.rename(folder / "cat" / "aa.png")
    digests.append(folder_source(folder, toy).digest)
    assert len(set(digests)) == len(sources) + 2


@pytest.fixture
def dozen(tmp_path, toy) -> FolderSource:
    """Twelve pictures, of other sizes too; each label is the toy's first, fifth or sixth choice."""
    for i in range(12):
        save_image(tmp_path / "x.png", photo(32 + 5 * (i % 3), 32, seed=i))
        ranks = np.argsort(-toy.predict(load_image(tmp_path / "x.png", toy.input_size)))
        label = toy.class_names[ranks[(0, 0, 4, 5)[i % 4]]]
        (tmp_path / "x.png").rename(tmp_path / f"{label}_{i:03d}.png")
    return folder_source(tmp_path, toy)


def test_top1_and_top5_are_counted_of_what_can_be_read(toy, dozen):
    result = classify(toy, dozen, toy.predict)
    # Of each four: two first choices, one fifth, one sixth.
    assert (result.top1, result.top5, result.skipped) == (Rate(6, 12), Rate(9, 12), ())
    paths = dozen._paths
    hits = [toy.predict(dozen.load(i)).argmax() == dozen.labels[i] for i in (0, 5)]
    paths[5].write_bytes(paths[5].read_bytes()[:100])
    paths[0].unlink()
    result = classify(toy, dozen, toy.predict, batch_size=4)
    assert result.top1 == Rate(6 - sum(hits), 10)
    assert [name for name, _ in result.skipped] == [dozen.names[0], dozen.names[5]]
    assert "no such file" in result.skipped[0][1]
    assert "expected a picture that can be read" in result.skipped[1][1]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"can be read, got none; the first: {paths[0]}: exp"):
        classify(toy, dozen, toy.predict)
    with pytest.raises(ValueError, match=r"batch_size: expected .* at least 1, got 0"):
        classify(toy, dozen, toy.predict, batch_size=0)


def test_the_result_does_not_depend_on_the_batch_size(toy, dozen):
    for i in (2, 3, 7):
        dozen._paths[i].write_bytes(b"no picture")
    results, draws = [], []
    for size in (32, 1, 5):
        rng, seen = np.random.default_rng(5), []

        def defended(images, rng=rng, seen=seen):
            seen.append(pixel_deflection(images, 40, 5, rng=rng))
            return toy.predict(seen[-1])

        results.append(classify(toy, dozen, defended, batch_size=size))
        assert max(map(len, seen)) <= size
        draws.append(np.concatenate(seen))
        assert results[0] == results[-1]
        np.testing.assert_array_equal(draws[0], draws[-1])
    assert len(results[0].skipped) == 3


@pytest.mark.real
def test_mobilenet_v2_is_right_about_45_of_50_photos(real, monkeypatch):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    classifier = load_classifier("mobilenet_v2", real / "weights" / "mobilenet_v2.weights.h5")
    source = chosen(folder_source(real / "imagenet", classifier), 50)
    result = classify(classifier, source, classifier.predict)
    assert (result.skipped, result.top1.n) == ((), 50)
    assert abs(result.top1.successes - 45) <= 1
    assert abs(result.top5.successes - 49) <= 1


def test_each_picture_is_seen_with_the_map_of_its_name(toy, dozen):
    root = dozen._paths[0].parent
    for i, path in enumerate(dozen._paths):
        chances = np.zeros((32, 32), dtype=np.float32)
        chances[:, i] = 1
        save_map(root / ".maps" / path.name, chances)
    maps, seen = maps_by_name(root, dozen._paths, root / ".maps"), []
    # What cannot be read must not shift the maps.
    dozen._paths[2].write_bytes(b"no picture")

    def predict(images, chances):
        assert images.shape == (*chances.shape, 3)
        seen.extend(chances[:, 0].argmax(axis=-1).tolist())
        return toy.predict(images)

    classify(toy, dozen, predict, batch_size=5, maps=maps)
    assert seen == [i for i in range(12) if i != 2]
    save_map(maps[7], np.eye(16, dtype=np.float32))
    with pytest.raises(ValueError, match=f"{maps[7]}: expected a map of 32 x 32, .* got 16 x 16"):
        classify(toy, dozen, predict, maps=maps)


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
