import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pdutils._utils import DataError
from pdutils.classifiers import load_classifier
from pdutils.demo import shipped
from pdutils.demo.drawing import CLASS_NAMES
from pdutils.demo.shipped import demo_network


def test_its_head_has_a_class_activation_map_of_14_by_14():
    classifier = load_classifier("demo", "random")
    features = classifier.features(np.full((224, 224, 3), 128, dtype=np.float32))
    assert features.maps.shape == (1, 14, 14, 128)
    assert classifier.head_weights.shape == (128, len(CLASS_NAMES))


def test_its_weights_fit_into_a_megabyte():
    assert 4 * demo_network().count_params() <= 1_000_000


def test_a_seed_gives_the_same_initial_weights():
    one, same, other = (demo_network(seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


@pytest.fixture
def demo(tmp_path, monkeypatch) -> Path:
    """A checkout with one demo image."""
    entry = {
        "name": "badger_000.png",
        "label": "badger",
        "adversary": "skunk",
        "sha256": {},
        "attack": {"linf": 3.0},
    }
    folders = {"image": "data/images", "adversary": "data/adversaries", "mask": "data/masks"}
    for part, folder in {**folders, "map": "maps"}.items():
        content = part.encode()
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / entry["name"]).write_bytes(content)
        entry["sha256"][part] = hashlib.sha256(content).hexdigest()
    (tmp_path / "data" / "demo.weights.h5").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    manifest = {
        "version": 1,
        "weights": {"file": "demo.weights.h5", "sha256": digest},
        "images": [entry],
    }
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(shipped, "demo_root", lambda: tmp_path)
    return tmp_path


def test_the_demo_s_files_are_found(demo):
    (image,) = shipped.demo_images()
    assert (image.name, image.label, image.adversarial_label) == (
        "badger_000.png",
        "badger",
        "skunk",
    )
    assert image.image.read_bytes() == b"image"
    assert image.adversary.read_bytes() == b"adversary"
    assert image.mask.read_bytes() == b"mask"
    assert image.activation_map.read_bytes() == b"map"
    assert image.attack == {"linf": 3.0}
    assert shipped.demo_weights().read_bytes() == b"weights"


def test_a_demo_image_is_found_by_its_name_with_and_without_the_suffix(demo):
    assert shipped.demo_image("badger_000.png") == shipped.demo_images()[0]
    assert shipped.demo_image("badger_000") == shipped.demo_images()[0]
    assert shipped.demo_image("badger") is None
    assert shipped.demo_image("") is None


@pytest.mark.parametrize("folder", ["data/images", "data/adversaries", "data/masks", "maps"])
def test_a_missing_or_changed_file_of_the_demo_is_named(demo, folder):
    path = demo / folder / "badger_000.png"
    path.write_bytes(b"another")
    with pytest.raises(DataError, match=f"{path} is not the file that the manifest lists"):
        shipped.demo_images()
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing; .*demo make"):
        shipped.demo_image("badger_000")


def test_missing_or_changed_weights_of_the_demo_are_named(demo):
    path = demo / "data" / "demo.weights.h5"
    path.write_bytes(b"another")
    with pytest.raises(DataError, match=r"demo\.weights\.h5 is not the file"):
        shipped.demo_weights()
    path.unlink()
    with pytest.raises(DataError, match=r"demo\.weights\.h5 is missing"):
        shipped.demo_weights()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"version": 2}', "expected version 1, got 2"),
        ("{}", "expected version 1, got None"),
        ("[1]", "expected version 1, got None"),
        ('{"version"', "expected a manifest in JSON"),
    ],
)
def test_a_manifest_that_is_none_is_named(demo, content, message):
    path = demo / "data" / "manifest.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path}: {message}"):
        shipped.demo_images()


def test_a_missing_manifest_says_how_to_make_it(demo):
    (demo / "data" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json is missing; .*demo make"):
        shipped.demo_image("badger_000")


def test_the_demo_lies_beside_the_package():
    assert (shipped.demo_root() / "pdutils" / "downloads.py").is_file()
