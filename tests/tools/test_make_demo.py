import json
from pathlib import Path

import numpy as np
import pytest

from pdutils.activation import robust_cam
from pdutils.classifiers import load_classifier
from pdutils.demo import examples
from pdutils.demo.examples import load_collection
from pdutils.images import load_image, load_map
from pdutils.metrics import linf, relative_l2
from pdutils.stats import Rate
from tools import make_demo


@pytest.fixture(scope="module")
def network():
    return load_classifier("demo")


def test_every_class_is_shipped_and_every_hash_is_right():
    images = examples.demo_images()
    assert {image.label for image in images} == set(load_classifier("demo").class_names)
    files = {path.name for path in (examples.demo_root() / "data" / "images").iterdir()}
    assert files == {image.name for image in images}


def test_shipped_images_are_right_when_clean_and_fool_the_network_as_listed(network):
    for image in examples.demo_images():
        clean, adversary = load_image(image.image), load_image(image.adversary)
        assert network.predict(clean)[network.index(image.label)] >= make_demo.SURE - 0.01
        reached = network.predict(adversary)
        assert network.class_names[int(reached.argmax())] == image.adversarial_label
        assert image.adversarial_label != image.label
        assert float(reached.max()) == pytest.approx(image.attack["probability"], abs=0.01)
        assert linf(clean, adversary) == image.attack["linf"]
        assert relative_l2(clean, adversary) == pytest.approx(image.attack["relative_l2"], abs=1e-4)


def test_shipped_maps_are_the_robust_maps_of_the_adversaries(network):
    for image in examples.demo_images()[::5]:
        expected = robust_cam(network, load_image(image.adversary))
        np.testing.assert_allclose(load_map(image.activation_map), expected, atol=2e-3)


def test_the_blogs_pair_is_the_first_image():
    first = examples.demo_images()[0]
    assert (first.label, first.adversarial_label) == ("badger", "skunk")


def test_the_demo_is_small():
    root = examples.demo_root()
    files = [f for folder in ("data", "maps") for f in (root / folder).rglob("*") if f.is_file()]
    assert (root / "data" / make_demo.WEIGHTS).stat().st_size <= 1_000_000
    assert sum(f.stat().st_size for f in files) <= 6_500_000


def test_the_network_is_right_about_fresh_drawings(network):
    found = load_collection(network, 50, seed=11)
    right, drawn = (int(word) for word in found.origin.split() if word.isdigit())
    assert right / drawn > 0.94


def test_training_is_seeded_and_writes_weights_that_load(tmp_path):
    small = {"images": 40, "epochs": 1, "batch_size": 10, "held_out": 10}
    paths = [tmp_path / f"{i}.weights.h5" for i in range(2)]
    rates = [make_demo.train(path, seed=3, **small) for path in paths]
    assert rates[0].n == 10
    one, two = (load_classifier("demo", path).model.get_weights() for path in paths)

    def distance(some, others):
        return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(some, others, strict=True)))

    # Adam takes a whole step also where a gradient is nothing but rounding, which way it may.
    assert distance(one, two) < distance(one, make_demo.demo_network(3).get_weights()) / 10
    assert sorted(tmp_path.iterdir()) == paths


def test_training_lowers_the_error(tmp_path):
    rate = make_demo.train(tmp_path / "x.weights.h5", images=240, epochs=2, held_out=50)
    assert rate.interval[0] > 0.1


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.h5", {}), ("x.weights.h5", {"images": 5}), ("x.weights.h5", {"epochs": 0})],
)
def test_what_cannot_be_trained_is_refused(tmp_path, name, options):
    with pytest.raises(ValueError, match="expected"):
        make_demo.train(tmp_path / name, **options)


def test_make_writes_the_shipped_pictures_again(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / make_demo.WEIGHTS).write_bytes(Path(examples.demo_weights()).read_bytes())
    make_demo.make(tmp_path, per_class=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["images"]][:2] == ["badger_000.png",
                                                                   "skunk_000.png"]  # fmt: skip
    for entry in manifest["images"]:
        again = load_image(folder / "images" / entry["name"])
        before = load_image(examples.demo_root() / "data" / "images" / entry["name"])
        # Another processor may round a pixel the other way.
        assert np.mean(np.abs(again - before) > 1) < 1e-3
    assert (tmp_path / "maps" / "badger_000.png").is_file()


def test_make_without_weights_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"demo\.weights\.h5"):
        make_demo.make(tmp_path)


def test_the_command_calls_its_makers(capsys, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(make_demo, "train", lambda *a, **k: calls.append((a, k)) or Rate(3, 4))
    monkeypatch.setattr(make_demo, "make", lambda *a, **k: calls.append((a, k)))
    make_demo.main(["train", "--root", str(tmp_path), "--seed", "5"])
    assert "0.75" in capsys.readouterr().out
    make_demo.main(["make"])
    weights = tmp_path / "data" / make_demo.WEIGHTS
    assert calls == [((weights,), {"seed": 5}), ((examples.demo_root(),), {"seed": 0})]
