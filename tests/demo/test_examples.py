import numpy as np
import pytest
from conftest import photo

from pdutils import _efficientnet, downloads, metrics
from pdutils.attacks import gradient
from pdutils.classifiers import load_classifier
from pdutils.defenses.pipeline import Defense
from pdutils.demo import examples, shipped
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
    return load_classifier("efficientnet_lite0", "random")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path / "cache"))


def test_the_demo_gets_the_adversary_that_was_made_against_it(demo):
    drawing = shipped.demo_images()[0]
    case = examples.load_case(demo, drawing.name)
    np.testing.assert_array_equal(case.adversary, load_image(drawing.adversary))
    assert demo.class_names[case.attacked_label] == drawing.adversarial_label
    assert demo.class_names[case.label] == drawing.label
    assert "shipped" in case.origin
    assert case.mask.dtype == np.bool_
    assert case.mask.shape == (224, 224)


def test_another_network_does_not_get_the_demos_adversary(untrained):
    drawing = shipped.demo_images()[0]
    case = examples.load_case(untrained, drawing.name)
    assert "made now" in case.origin
    assert not np.array_equal(case.adversary, load_image(drawing.adversary))


def test_by_default_the_demo_shows_a_badger_that_is_taken_for_a_skunk(demo):
    case = examples.load_case(demo)
    assert demo.class_names[case.label] == "badger"
    assert demo.class_names[case.attacked_label] == "skunk"


@pytest.mark.parametrize("image", examples.PHOTOS)
def test_a_photo_by_name_has_its_class_where_the_network_knows_it(imagenet, toy, image):
    clean, label = examples.load_clean(imagenet, image)
    np.testing.assert_array_equal(clean, load_image(examples.photo_path(image), 224))
    assert imagenet.class_names[label] == examples.PHOTOS[image]
    assert examples.load_clean(toy, image)[1] is None
    assert examples.load_case(toy, image).name == image


@pytest.mark.usefixtures("empty_cache")
def test_by_default_a_photo_is_shown_to_whoever_does_not_know_the_drawings(imagenet, toy, demo):
    assert (
        examples.image_names(imagenet)
        == examples.image_names(toy)
        == ["coffee", "chelsea", "rocket"]
    )
    assert examples.load_case(toy).name == "coffee"
    assert examples.image_names(demo)[:2] == ["badger_000", "badger_001"]
    assert len(examples.image_names(demo)) == 20


@pytest.mark.usefixtures("empty_cache")
def test_an_unknown_name_lists_those_that_suit_the_network(demo, toy):
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
    np.testing.assert_array_equal(clean, load_image(path, 224))
    assert imagenet.class_ids[label] == "n02447366"


def test_an_adversary_that_is_made_now_stops_at_the_first_half_step_that_succeeds(toy, tmp_path):
    save_image(tmp_path / "x.png", photo())
    case = examples.load_case(toy, tmp_path / "x.png")
    seen = int(toy.predict(case.clean).argmax())
    assert case.attacked_label != seen

    def after(steps):
        return gradient.igsm(toy, case.clean, seen, eps=16, step=0.5, iterations=steps)

    needed = next(n for n in range(1, 101) if toy.predict(after(n)).argmax() != seen)
    np.testing.assert_array_equal(case.adversary, after(needed))


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
    defense = Defense(deflections=200, runs=10)
    assert defense.predict(network, case.adversary, rng=0)[espresso] > 0.5


def test_an_image_file_is_attacked_live_and_its_name_or_the_caller_tells_its_class(toy, tmp_path):
    seen = int(toy.predict(photo()).argmax())
    for name, label, expected in (
        (f"{toy.class_names[(seen + 1) % 6]}_1.png", "", (seen + 1) % 6),
        ("holiday.png", "", seen),
        ("holiday.png", "eel", 4),
    ):
        save_image(tmp_path / name, photo())
        case = examples.load_case(toy, tmp_path / name, label=label)
        assert case.label == expected
        assert case.attacked_label == int(toy.predict(case.adversary).argmax())
        assert f"IGSM against {toy.name}" in case.origin
        assert metrics.linf(case.clean, case.adversary) <= examples.EPS
    with pytest.raises(ValueError, match="no class 'yeti'"):
        examples.load_case(toy, tmp_path / "holiday.png", label="yeti")


def test_an_image_that_the_network_gets_wrong_is_led_away_from_what_it_saw(toy, tmp_path):
    seen = int(toy.predict(photo()).argmax())
    path = tmp_path / "holiday.png"
    save_image(path, photo())
    case = examples.load_case(toy, path, label=toy.class_names[(seen + 1) % 6])
    assert case.attacked_label != seen or "did not succeed" in case.origin
    assert not np.array_equal(case.clean, case.adversary)


def test_an_attack_that_fails_says_so(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "igsm", lambda classifier, clean, *_, **__: clean)
    save_image(tmp_path / "x.png", photo())
    assert "did not succeed" in examples.load_case(toy, tmp_path / "x.png").origin


def test_fresh_drawings_are_right_new_and_the_same_for_the_same_seed(demo):
    one, two = (examples.load_collection(demo, n, seed=3) for n in (4, 6))
    assert len(one) == 4
    np.testing.assert_array_equal(one.images, two.images[:4])
    np.testing.assert_array_equal(demo.predict(two.images).argmax(axis=1), two.labels)
    assert two.masks.shape == (6, 224, 224)
    assert not np.array_equal(one.images, examples.load_collection(demo, 4, seed=4).images)


def test_a_folder_gives_only_images_that_are_right_and_counts_the_others(toy, tmp_path):
    seen = [int(toy.predict(photo(seed=seed)).argmax()) for seed in range(6)]
    for seed, label in enumerate(seen):
        shown = toy.class_names[label if seed % 2 else (label + 1) % 6]
        save_image(tmp_path / f"{shown}_{seed}.png", photo(seed=seed))
    found = examples.load_collection(toy, 10, folder=tmp_path)
    assert len(found) == 3
    assert found.origin.endswith("3 right of 6 read")
    np.testing.assert_array_equal(toy.predict(found.images).argmax(axis=1), found.labels)
    assert found.masks is None
    (tmp_path / "ant_7.png").write_bytes(b"not a picture")
    (tmp_path / "notes.heic").touch()
    found = examples.load_collection(toy, 10, folder=tmp_path)
    assert found.origin.endswith("of 6 read, 1 unreadable; passed over 1 entry: 1 .heic")


def test_a_folder_where_none_is_right_is_an_error(toy, tmp_path):
    seen = int(toy.predict(photo()).argmax())
    save_image(tmp_path / f"{toy.class_names[(seen + 1) % 6]}_0.png", photo())
    with pytest.raises(ValueError, match="right about no image"):
        examples.load_collection(toy, 1, folder=tmp_path)


def test_half_an_image_is_no_number_of_images(toy):
    with pytest.raises(ValueError, match=r"n: expected a whole number of at least 1, got 2\.5"):
        examples.load_collection(toy, 2.5)


def test_scikit_images_photos_are_at_hand_under_their_names():
    for name in examples.PHOTOS:
        assert load_image(examples.photo_path(name), 224).shape == (224, 224, 3)
