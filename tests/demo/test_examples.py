import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import functional, photo
from numpy.testing import assert_array_equal

from pdutils import _efficientnet, downloads, metrics
from pdutils._utils import DataError
from pdutils.attacks import gradient
from pdutils.classifiers import Classifier, load_classifier
from pdutils.defenses.pipeline import Defense
from pdutils.demo import examples
from pdutils.demo.drawing import CLASS_NAMES
from pdutils.images import load_image, save_image


@pytest.fixture(scope="module")
def demo():
    return load_classifier("demo")


@pytest.fixture(scope="module")
def untrained():
    return load_classifier("demo", "random")


@pytest.fixture(scope="module")
def imagenet():
    """A network that knows ImageNet's classes by name."""
    from keras import layers

    ids, names = zip(*downloads.class_index(), strict=True)
    model = functional(layers.Flatten(), layers.Dense(1000, "softmax"), shape=(32, 32, 3))
    return Classifier(model, class_names=names, class_ids=ids)


@pytest.fixture
def seen(toy) -> int:
    """What the toy takes `photo()` for."""
    return int(toy.predict(photo()).argmax())


def test_the_demo_gets_the_adversary_that_was_made_against_it_and_no_other_network(
    demo, untrained, monkeypatch
):
    monkeypatch.setattr(examples, "ITERATIONS", 2)
    drawing = examples.demo_images()[0]
    case, other = (examples.load_case(network, drawing.name) for network in (demo, untrained))
    shipped = load_image(drawing.adversary)
    assert_array_equal(case.adversary, shipped)
    assert demo.class_names[case.attacked_label] == drawing.adversarial_label
    assert demo.class_names[case.label] == drawing.label
    assert "shipped" in case.origin
    assert case.mask.dtype == np.bool_
    assert case.mask.shape == (224, 224)
    assert "made now" in other.origin
    assert not np.array_equal(other.adversary, shipped)


@pytest.mark.parametrize("image", examples.PHOTOS)
def test_a_photo_by_name_has_its_class_where_the_network_knows_it(imagenet, toy, image):
    clean, label = examples.load_clean(imagenet, image)
    assert_array_equal(clean, load_image(examples.photo_path(image), 32))
    assert imagenet.class_names[label] == examples.PHOTOS[image]
    assert examples.load_clean(toy, image)[1] is None
    assert examples.load_case(toy, image).name == image


def test_names_and_what_is_shown_by_default_suit_the_network(
    imagenet, toy, demo, tmp_path, monkeypatch
):
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path / "cache"))
    for network in (imagenet, toy):
        assert examples.image_names(network) == ["coffee", "chelsea", "rocket"]
    assert examples.load_case(toy).name == "coffee"
    assert examples.image_names(demo)[:2] == ["badger_000", "badger_001"]
    assert len(examples.image_names(demo)) == 20
    case = examples.load_case(demo)
    assert demo.class_names[case.label] == "badger"
    assert demo.class_names[case.attacked_label] == "skunk"
    with pytest.raises(FileNotFoundError, match=r"^fox: no such file; .*: badger_000, .*fox_001"):
        examples.load_case(demo, "fox")
    for name in ("fox", "badger", "nowhere.png"):
        with pytest.raises(FileNotFoundError, match=f"^{name}: .*: coffee, chelsea, rocket$"):
            examples.load_case(toy, name)


@pytest.mark.real
def test_the_authors_badger_is_a_name_where_it_is_cached(real, monkeypatch, imagenet):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    assert examples.image_names(imagenet)[-1] == "badger"
    clean, label = examples.load_clean(imagenet, "badger")
    path = real / "cache" / "pixel-deflection" / "originals" / downloads.AUTHORS_IMAGES[0]
    assert_array_equal(clean, load_image(path, 32))
    assert imagenet.class_ids[label] == "n02447366"


def test_an_adversary_that_is_made_now_stops_at_the_first_half_step_that_succeeds(
    toy, tmp_path, seen
):
    save_image(tmp_path / "x.png", photo())
    case = examples.load_case(toy, tmp_path / "x.png")
    assert case.attacked_label != seen

    def after(steps):
        return gradient.igsm(toy, case.clean, seen, eps=16, step=0.5, iterations=steps)

    needed = next(n for n in range(1, 101) if toy.predict(after(n)).argmax() != seen)
    assert_array_equal(case.adversary, after(needed))


@pytest.mark.slow
@pytest.mark.skipif(not _efficientnet.is_installed(), reason="the weights are not installed")
def test_the_coffee_of_a_real_network_becomes_a_soup_and_denoising_brings_it_back():
    network = load_classifier("efficientnet_lite0")
    case = examples.load_case(network)
    espresso = network.index("espresso")
    assert (case.name, case.label) == ("coffee", espresso)
    assert network.class_names[case.attacked_label] == "consomme"
    assert metrics.linf(case.clean, case.adversary) == 1
    assert abs(network.predict(case.clean)[espresso] - 0.96) < 0.02
    fooled = network.predict(case.adversary)
    assert abs(fooled[case.attacked_label] - 0.57) < 0.1
    assert fooled[espresso] < 0.1
    assert Defense(deflections=200, runs=3).predict(network, case.adversary, rng=0)[espresso] > 0.5


def test_an_image_file_is_attacked_live_and_its_name_or_the_caller_tells_its_class(
    toy, tmp_path, seen, monkeypatch
):
    wrong = (seen + 1) % 6
    for name, label, expected in (
        (f"{toy.class_names[wrong]}_1.png", "", wrong),
        ("holiday.png", "", seen),
        ("holiday.png", "eel", 4),
        # Where the network is wrong it is led away from what it saw.
        ("holiday.png", toy.class_names[wrong], wrong),
    ):
        save_image(tmp_path / name, photo())
        case = examples.load_case(toy, tmp_path / name, label=label)
        assert case.label == expected
        assert case.attacked_label == int(toy.predict(case.adversary).argmax()) != seen
        assert f"IGSM against {toy.name}" in case.origin
        assert 0 < metrics.linf(case.clean, case.adversary) <= examples.EPS
        strength = metrics.relative_l2(case.clean, case.adversary)
        assert f"strength: L2 {strength:.4f} of the image's" in str(case)
    with pytest.raises(ValueError, match="no class 'yeti'"):
        examples.load_case(toy, tmp_path / "holiday.png", label="yeti")
    monkeypatch.setattr(examples, "igsm", lambda classifier, clean, *_, **__: clean)
    origin = examples.load_case(toy, tmp_path / "holiday.png").origin
    assert origin.endswith(", which did not succeed in 100 steps")


def test_fresh_drawings_are_right_new_and_the_same_for_the_same_seed(demo):
    one, two, other = (
        examples.load_collection(demo, n, seed=s) for n, s in ((2, 3), (4, 3), (2, 4))
    )
    assert len(one) == 2
    assert two.origin == "fresh drawings (seed 3), 4 right of 4 drawn"
    assert_array_equal(one.images, two.images[:2])
    assert_array_equal(demo.predict(two.images).argmax(axis=1), two.labels)
    assert two.masks.shape == (4, 224, 224)
    assert not np.array_equal(one.images, other.images)


def test_a_folder_gives_only_images_that_are_right_and_counts_the_others(toy, tmp_path):
    for seed in range(6):
        right = int(toy.predict(photo(seed=seed)).argmax())
        shown = toy.class_names[right if seed % 2 else (right + 1) % 6]
        save_image(tmp_path / f"{shown}_{seed}.png", photo(seed=seed))
    found = examples.load_collection(toy, 10, folder=tmp_path)
    assert len(found) == 3
    assert found.origin == f"photos from {tmp_path.name}, 3 right of 6 read"
    assert_array_equal(toy.predict(found.images).argmax(axis=1), found.labels)
    assert found.masks is None
    (tmp_path / "ant_7.png").write_bytes(b"not a picture")
    (tmp_path / "notes.heic").touch()
    found = examples.load_collection(toy, 10, folder=tmp_path)
    assert found.origin.endswith("of 6 read, 1 unreadable; passed over 1 entry: 1 .heic")
    firsts = [examples.load_collection(toy, 1, folder=tmp_path, seed=s) for s in (0, 0, 1, 2, 3)]
    assert_array_equal(firsts[0].images, firsts[1].images)
    assert len({first.images.tobytes() for first in firsts}) > 1


def test_photos_at_hand_are_read_where_there_is_no_folder_and_half_an_image_is_none(
    imagenet, monkeypatch
):
    monkeypatch.setattr(downloads, "authors_file", lambda *_: None)
    with pytest.raises(ValueError, match="right about no image: the few photos at hand, 0 right"):
        examples.load_collection(imagenet, 2)
    with pytest.raises(ValueError, match=r"n: expected a whole number of at least 1, got 2\.5"):
        examples.load_collection(imagenet, 2.5)


def test_the_network_has_an_activation_map_of_14_by_14_and_starts_from_its_seed(untrained):
    features = untrained.features(np.full((224, 224, 3), 128, dtype=np.float32))
    assert features.maps.shape == (1, 14, 14, 128)
    assert untrained.head_weights.shape == (128, len(CLASS_NAMES))
    one, same, other = (examples.demo_network(seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


PARTS = {
    "image": "data/images", "adversary": "data/adversaries", "mask": "data/masks",
    "activation_map": "maps",
}  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A checkout with one demo image."""

    def written(path: str, content: bytes) -> str:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    entry = {"name": "badger_000.png", "label": "badger", "adversary": "skunk"}
    hashes = {part: written(f"{PARTS[part]}/badger_000.png", part.encode()) for part in PARTS}
    hashes["map"] = hashes.pop("activation_map")
    entry |= {"sha256": hashes, "attack": {"linf": 3.0}}
    weights = {"file": "demo.weights.h5", "sha256": written("data/demo.weights.h5", b"weights")}
    manifest = {"version": 1, "weights": weights, "images": [entry]}
    written("data/manifest.json", json.dumps(manifest).encode())
    monkeypatch.setattr(examples, "demo_root", lambda: tmp_path)
    return tmp_path


def test_the_demos_files_are_found_by_name_with_and_without_the_ending(root):
    (image,) = examples.demo_images()
    assert (image.name, image.label) == ("badger_000.png", "badger")
    assert (image.adversarial_label, image.attack) == ("skunk", {"linf": 3.0})
    for part in PARTS:
        assert getattr(image, part).read_bytes() == part.encode()
    assert examples.demo_weights().read_bytes() == b"weights"
    assert examples.demo_image("badger_000.png") == examples.demo_image("badger_000") == image
    assert examples.demo_image("badger") is examples.demo_image("") is None


@pytest.mark.parametrize("name", [*(f"{f}/badger_000.png" for f in PARTS.values()), "weights"])
def test_a_missing_or_changed_file_of_the_demo_is_named(root, name):
    find = examples.demo_weights if name == "weights" else examples.demo_images
    path = root / ("data/demo.weights.h5" if name == "weights" else name)
    path.write_bytes(b"another")
    with pytest.raises(DataError, match=f"{path} is not the file that the manifest lists"):
        find()
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing; .*demo make"):
        find()


def test_a_missing_manifest_says_how_to_make_it(root, monkeypatch):
    (root / "data" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json is missing; .*demo make"):
        examples.demo_image("badger_000")
    monkeypatch.setattr(examples, "checkout", lambda: None)
    with pytest.raises(DataError, match=r"manifest\.json is missing; install pdutils again"):
        examples.demo_images()


def test_the_demo_lies_beside_the_package():
    assert (examples.demo_root() / "pdutils" / "downloads.py").is_file()
