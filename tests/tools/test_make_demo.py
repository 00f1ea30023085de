import json
import shutil

import numpy as np
import pytest
from conftest import photos

from pdutils._utils import generator
from pdutils.activation import robust_cam
from pdutils.classifiers import load_classifier
from pdutils.demo.drawing import CLASS_NAMES
from pdutils.demo.examples import demo_images, demo_network, demo_root, demo_weights
from pdutils.images import load_image, load_map
from pdutils.metrics import linf, relative_l2
from pdutils.stats import Rate
from tools import make_demo


def test_the_demo_is_small_and_shipped_whole():
    images = demo_images()
    assert {image.label for image in images} == set(CLASS_NAMES)
    # The blog's pair is the first.
    assert (images[0].label, images[0].adversarial_label) == ("badger", "skunk")
    files = {path.name for path in (demo_root() / "data" / "images").iterdir()}
    assert files == {image.name for image in images}
    files = [f for name in ("data", "maps") for f in (demo_root() / name).rglob("*") if f.is_file()]
    assert demo_weights().stat().st_size <= 1_000_000
    assert sum(f.stat().st_size for f in files) <= 6_500_000


def test_shipped_images_are_right_when_clean_and_fool_the_network_as_listed():
    network = load_classifier("demo")
    for i, image in enumerate(demo_images()):
        clean, adversary = load_image(image.image), load_image(image.adversary)
        before, reached = network.predict(np.stack([clean, adversary]))
        assert before[network.index(image.label)] >= make_demo.SURE - 0.01
        assert network.class_names[int(reached.argmax())] == image.adversarial_label != image.label
        assert float(reached.max()) == pytest.approx(image.attack["probability"], abs=0.01)
        assert linf(clean, adversary) == image.attack["linf"]
        assert relative_l2(clean, adversary) == pytest.approx(image.attack["relative_l2"], abs=1e-4)
        if i % 5 == 0:
            expected = robust_cam(network, adversary)
            np.testing.assert_allclose(load_map(image.activation_map), expected, atol=2e-3)
    rate = make_demo._accuracy(demo_weights(), 50, generator(11))
    assert (rate.n, rate.value > 0.94) == (50, True)


def test_training_is_seeded_and_writes_weights_that_load(tmp_path):
    small = {"images": 20, "epochs": 1, "batch_size": 10, "held_out": 5}
    paths = [tmp_path / f"{i}.weights.h5" for i in range(2)]
    rates = [make_demo.train(path, seed=3, **small) for path in paths]
    assert rates[0].n == 5
    one, two = (load_classifier("demo", path).model.get_weights() for path in paths)

    def distance(some, others):
        return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(some, others, strict=True)))

    # Adam takes a whole step also where a gradient is nothing but rounding, which way it may.
    assert distance(one, two) < distance(one, demo_network(3).get_weights()) / 10
    assert sorted(tmp_path.iterdir()) == paths


def test_training_learns_the_class_that_goes_with_each_place():
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    model = keras.Sequential(layers)
    pictures = photos(20).astype(np.uint8)
    make_demo._fit(model, pictures, generator(0), 30, 4, 2e-3)
    seen = model.predict_on_batch(pictures.astype(np.float32) / 127.5 - 1).argmax(axis=1)
    np.testing.assert_array_equal(seen, np.arange(20) % 10)


def test_what_cannot_be_trained_is_refused(tmp_path):
    for name, options in (("x", {}), ("x.weights", {"images": 5}), ("x.weights", {"epochs": 0})):
        with pytest.raises(ValueError, match="expected"):
            make_demo.train(tmp_path / f"{name}.h5", **options)


def test_make_writes_the_shipped_pictures_again(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"demo\.weights\.h5"):
        make_demo.make(tmp_path)
    shutil.copy(demo_weights(), folder)
    make_demo.make(tmp_path, per_class=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [entry["name"] for entry in manifest["images"]]
    assert names == [f"{name}_000.png" for name in CLASS_NAMES]
    for name in names:
        again = load_image(folder / "images" / name)
        before = load_image(demo_root() / "data" / "images" / name)
        # Another processor may round a pixel the other way.
        assert np.mean(np.abs(again - before) > 1) < 1e-3
    assert (tmp_path / "maps" / "badger_000.png").is_file()


def test_the_command_calls_its_makers(capsys, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(make_demo, "train", lambda *a, **k: calls.append((a, k)) or Rate(3, 4))
    monkeypatch.setattr(make_demo, "make", lambda *a, **k: calls.append((a, k)))
    make_demo.main(["train", "--root", str(tmp_path), "--seed", "5"])
    assert "0.75" in capsys.readouterr().out
    make_demo.main(["make"])
    weights = tmp_path / "data" / make_demo.WEIGHTS
    assert calls == [((weights,), {"seed": 5}), ((demo_root(),), {"seed": 0})]
