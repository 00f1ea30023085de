import copy
import functools
import inspect
import pickle
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import functional, photo, photos
from numpy.lib.stride_tricks import sliding_window_view
from numpy.testing import assert_allclose, assert_array_equal

from pdutils import _efficientnet, classifiers, downloads
from pdutils._utils import load_tensorflow
from pdutils.classifiers import (
    Classifier,
    ClassifierSource,
    _constructors,
    classifier_from_file,
    classifier_names,
    fingerprint,
    load_classifier,
    read_class_names,
    read_text,
)
from pdutils.cli.main import main
from pdutils.deflection import pixel_deflection
from pdutils.demo import examples
from pdutils.denoising import denoise
from pdutils.downloads import DownloadError
from pdutils.images import load_image

load_tensorflow()
import keras  # noqa: E402

LAYERS = keras.layers

#: A small MobileNet, fast to make.
SMALL = {"alpha": 0.25, "input_shape": (128, 128, 3)}

RESNET50 = "models/resnet50_weights_tf_dim_ordering_tf_kernels.h5"
BADGER, SKUNK = 362, 361
ANIMALS = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture
def offline(tmp_path, monkeypatch) -> None:
    """An empty cache, and no network to fill it."""
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path / "cache"))

    def refuse(name: str, source: downloads.Download) -> Path:
        raise DownloadError(f"{name} is not to be had")

    monkeypatch.setattr(downloads, "download", refuse)


def model(*layers, size=(12, 12, 3), name="small"):
    return functional(*layers, shape=size, name=name)


def branched(n_inputs: int, n_outputs: int):
    inputs = [keras.Input((12, 12, 3)) for _ in range(n_inputs)]
    pooled = LAYERS.GlobalAveragePooling2D()(LAYERS.Add()(inputs) if n_inputs > 1 else inputs[0])
    return keras.Model(inputs, [LAYERS.Dense(3 + i)(pooled) for i in range(n_outputs)])


def plain_model(classes: int = 5, name="small"):
    pool = LAYERS.GlobalAveragePooling2D()
    return model(LAYERS.Conv2D(4, 3), pool, LAYERS.Dense(classes, "softmax"), name=name)


def by_hand(toy: Classifier, images: np.ndarray) -> np.ndarray:
    """The toy network's probabilities, in double precision and without TensorFlow."""
    x = images.astype(np.float64) / 127.5 - 1
    first, second, _, head = toy.model.layers[1:]
    for layer in (first, second):
        kernel, bias = (np.asarray(w, dtype=np.float64) for w in layer.get_weights())
        windows = sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
        x = np.tanh(np.einsum("nhwcij,ijck->nhwk", windows, kernel) + bias)
    kernel, bias = (np.asarray(w, dtype=np.float64) for w in head.get_weights())
    powers = np.exp(x.mean(axis=(1, 2)) @ kernel + bias)
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_gradient_is_that_of_finite_differences_in_double_precision(toy):
    images, labels = photos(3), np.array([0, 5, 2])
    gradient, probabilities = toy.loss_gradient(images, labels)
    for found in (probabilities, toy.predict(images)):
        assert_allclose(found, by_hand(toy, images), atol=1e-5)

    def losses(shifted: np.ndarray) -> np.ndarray:
        return -np.log(by_hand(toy, shifted)[np.arange(3), labels])

    rng = np.random.default_rng(0)
    scale = np.abs(gradient).max()
    for place in zip(*(rng.integers(0, side, 20) for side in (30, 30, 3)), strict=True):
        step = np.zeros(images.shape)
        step[(slice(None), *place)] = 1e-3
        slope = (losses(images + step) - losses(images - step)) / 2e-3
        assert_allclose(gradient[(slice(None), *place)], slope, atol=1e-4 * scale)


def test_one_image_gives_one_row_and_a_batch_gives_rows(toy):
    assert toy.predict(photos(2)).dtype == np.float32
    for images, labels, n in ((photo(), 3, ()), (photos(2), [3, 1], (2,))):
        gradient, probabilities = toy.loss_gradient(images, labels)
        assert toy.predict(images).shape == probabilities.shape == (*n, 6)
        assert gradient.shape == (*n, 32, 32, 3)
    features = toy.features(photo())
    assert (features.maps.shape, features.probabilities.shape) == ((1, 7, 7, 12), (1, 6))
    maps, gradient = toy.feature_gradient(photo(), 3)
    assert maps.shape == gradient.shape == (1, 7, 7, 12)


@pytest.mark.parametrize("method", ["predict", "loss_gradient", "features", "feature_gradient"])
def test_the_batch_size_does_not_change_the_result(toy, method):
    def asked(*given, **options):
        found = getattr(toy, method)(*given[: 1 + ("gradient" in method)], **options)
        return found if isinstance(found, tuple) else (found,)

    images, labels = photos(7), np.arange(7) % 6
    each = [asked(image, label) for image, label in zip(images, labels, strict=True)]
    for batch_size in (1, 3):
        whole = asked(images, labels, batch_size=batch_size)
        for found, parts in zip(whole, zip(*each, strict=True), strict=True):
            expected = np.reshape(parts, found.shape)
            assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_no_more_images_than_the_batch_size_are_seen_at_once(toy, monkeypatch):
    seen = []
    run = toy.network.step("predict")

    def recorded(images):
        seen.append(len(images))
        return run(images)

    monkeypatch.setitem(toy.network._compiled, "predict", recorded)
    toy.predict(photos(7), batch_size=3)
    assert seen == [3, 3, 1]
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size: expected at least 1, got {wrong}"):
            toy.predict(photos(2), batch_size=wrong)


def test_the_images_are_not_changed_and_a_model_that_gives_nan_is_named():
    # This preprocessing works in place on an array of NumPy's.
    preprocess = keras.applications.vgg16.preprocess_input
    classifier = Classifier(plain_model(), preprocess=preprocess)
    images = photos(2, 12, 12)
    before = images.copy()
    probabilities = classifier.predict(images)
    classifier.loss_gradient(images, 0)
    assert_array_equal(images, before)
    caffe = images[..., ::-1] - np.array([103.939, 116.779, 123.68])
    assert_allclose(probabilities, classifier.model(caffe.astype("f")), atol=1e-3)
    with pytest.raises(ValueError, match="small gave NaN"):
        Classifier(classifier.model, preprocess=lambda x: x * float("nan")).predict(images)


def test_what_is_no_image_of_the_network_s_size_is_refused(toy):
    for wrong, said in (
        (photo() / 255, "looks scaled"),
        (photo(24, 40), "toy_gap expects 32 x 32 pixels, got 24 x 40; lo"),
    ):
        for method in (toy.predict, toy.features, lambda wrong: toy.loss_gradient(wrong, 0)):
            with pytest.raises(ValueError, match=f"images: .*{said}"):
                method(wrong)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (6, "from 0 to 5, got 6 to 6"),
        ([0, -1], "from 0 to 5, got -1 to 0"),
        ([0], r"expected 2 class numbers, got \[0\]"),
        ([[0, 1]], "expected 2 class numbers"),
        (1.0, "expected 2 class numbers, got 1.0"),
        (["ant", "bee"], "expected 2 class numbers, got .*ant"),
        (True, "expected 2 class numbers"),
        (None, "expected 2 class numbers, got None"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(toy, labels, message):
    for method in (toy.loss_gradient, toy.feature_gradient):
        with pytest.raises(ValueError, match=f"labels: .*{message}"):
            method(photos(2), labels)
    # One stands for all.
    assert_array_equal(toy.check_labels(np.uint8(4), 2), [4, 4])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: model(LAYERS.Conv2D(4, 3)), r"output \(N, K\)"),
        (lambda: plain_model(classes=1), r"output \(N, K\).*\(None, 1\)"),
        (lambda: model(LAYERS.Conv2D(4, 3), size=(None, None, 3)), r"got \(None, None, None, 3\)"),
        (lambda: model(LAYERS.Flatten(), LAYERS.Dense(3), size=(12, 12, 1)), r"12, 12, 1\)"),
        (lambda: model(LAYERS.Dense(3), size=(12,)), r"H and W fixed, got \(None, 12\)"),
        (lambda: keras.Sequential([LAYERS.Dense(3)]), "got a Sequential: begin a Sequential"),
        (lambda: "my_model.keras", "H and W fixed, got a str"),
        (lambda: None, "H and W fixed, got a NoneType"),
        (lambda: type("Own", (keras.Model,), {})(), "wrap a subclassed model"),
        (lambda: branched(2, 1), "model of input"),
        (lambda: branched(1, 2), "model of output"),
    ],
)
def test_a_model_that_is_no_image_classifier_is_refused(build, message):
    with pytest.raises(ValueError, match=f"expected a .*{message}"):
        Classifier(build())


def test_names_are_numbers_by_default_and_as_many_as_classes():
    classifier = Classifier(plain_model())
    assert classifier.class_names == classifier.class_ids
    assert (classifier.class_names[4], classifier.name) == ("class 4", "small")
    assert not classifier.published
    for names in ("abcd", "abcdef"):
        for kind in ("class_names", "class_ids"):
            with pytest.raises(ValueError, match=rf"expected 5 class names, .* got {len(names)}"):
                Classifier(classifier.model, **{kind: names})


@pytest.fixture(scope="module")
def zoo() -> Classifier:
    names = ["Egyptian_cat", "black-footed_ferret", "crane", "2", "crane"]
    return Classifier(plain_model(), class_names=names, class_ids=["n1", "n2", "n3", "n4", "n5"])


def test_a_class_is_found_by_its_id_its_name_or_its_number(zoo):
    labels = ["egyptian cat", "n2", "black-footed_ferret", "Black footed Ferret", 1, "2", "4"]
    assert [zoo.index(label) for label in labels] == [0, 1, 1, 1, 1, 3, 4]
    assert zoo.index(np.int64(4)) == 4
    for label in ("owl", "", 5, -1, "²", "n", "cat"):
        known = rf"small has no class '{label}'; it knows 5: Egyptian_cat"
        with pytest.raises(ValueError, match=known):
            zoo.index(label)
    with pytest.raises(ValueError, match="2 classes 'crane'; say which: n3, n5"):
        zoo.index("crane")


def test_the_top_classes_come_in_order_with_their_names(zoo):
    top = zoo.top(np.array([0.1, 0.5, 0.0, 0.3, 0.1], np.float32), 3)
    assert [(p.number, p.class_id, p.class_name) for p in top] == [
        (1, "n2", "black-footed_ferret"),
        (3, "n4", "2"),
        (0, "n1", "Egyptian_cat"),
    ]
    assert_allclose([p.probability for p in top], [0.5, 0.3, 0.1], rtol=1e-6)
    # Ties go to the smaller number, and k ends at the classes.
    for k in (5, 100):
        assert [p.number for p in zoo.top(np.full(5, 0.2), k)] == [0, 1, 2, 3, 4]
    for shape, k in (((4,), 5), ((1, 5), 5), ((5,), 0)):
        with pytest.raises(ValueError, match=r"one row of 5 probabilities and k >= 1, got"):
            zoo.top(np.full(shape, 0.2, np.float32), k)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    "form", ["{0}\n\n {1} \n{2}\n", "{0}\r\n{1}\r\n{2}", '["{0}", "{1}", "{2}"]']
)
def test_class_names_are_read_in_every_form_and_encoding(tmp_path, encoding, form):
    wanted = ("ant", "müßig bee", "猫")
    path = tmp_path / "names.txt"
    path.write_bytes(form.format(*wanted).encode(encoding))
    assert read_class_names(path) == wanted
    path.write_bytes("\ufeffé\r\nb".encode("utf-16-be"))
    assert read_text(path) == "é\nb"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("ant\ncafé\n".encode("latin-1"), "expected a text in UTF-8.* in line 2; save it as UTF-8"),
        ("ant\nbee\n".encode("utf-16-le"), "expected a text in UTF-8.*zero bytes"),
        (b"\xff\xfea", "expected a text in UTF-8"),
        (b"", "expected the names of classes, found none"),
        (b" \n\n", "expected the names of classes, found none"),
        (b"[]", "expected the names of classes, found none"),
        (b'["ant", 2]', "expected class names as JSON strings, got 2"),
        (b'["ant", ', "expected a list of class names in JSON: "),
        (b'{"ant": 0}', "expected a JSON list of class names, got '{\"ant\": 0}'"),
    ],
)
def test_what_holds_no_class_names_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: {said}"):
        read_class_names(path)
    with pytest.raises(ValueError, match="expected a text file, got a folder"):
        read_class_names(tmp_path)


def test_the_names_are_keras_s_own_in_small_letters():
    assert classifier_names()[:2] == ["efficientnet_lite0", "demo"]
    constructors = [n for n, item in vars(keras.applications).items() if callable(item)]
    plain = [name.replace("_", "") for name in classifier_names()[2:]]
    assert sorted(plain) == sorted(name.lower() for name in constructors)
    for name in ("resnet50", "vgg19", "xception", "inception_v3", "inception_resnet_v2"):
        assert name in classifier_names()
        assert name in dir(keras.applications)


@pytest.mark.usefixtures("offline")
def test_case_and_hyphens_do_not_matter_and_options_reach_the_keras_constructor(capsys):
    classifier = load_classifier("Mobile-N et", "random", **SMALL)
    assert (classifier.name, classifier.input_size) == ("mobilenet", (128, 128))
    # A quarter of its 32.
    assert classifier.model.get_layer("conv1").filters == 8
    assert not classifier.published
    scaled = np.asarray(classifier.preprocess(photo(96, 96)))
    assert_allclose(scaled, photo(96, 96) / 127.5 - 1, atol=1e-6)
    # Its classes bear ImageNet's names without a network, and other classes numbers.
    assert classifier.class_ids[BADGER] == "n02447366"
    (best,) = classifier.top(np.eye(1000, dtype=np.float32)[SKUNK], 1)
    assert (best.class_id, best.class_name) == ("n02445715", "skunk")
    assert load_classifier("mobile_net", "random", **SMALL, classes=7).class_names[6] == "class 6"
    assert capsys.readouterr().err == ""


KNOWN = "known: auto, efficientnet_lite0, demo, .*mobilenet_v2, .*resnet50, .*vgg19"
SMALL_ONE = ("mobilenet", "random")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("asked", "options", "said"),
    [
        *(((name,), {}, KNOWN) for name in ("resnet", "", "keras", "include_top", "mobilenet v9")),
        (SMALL_ONE, {"include_top": False}, "the option include_top is not free"),
        (SMALL_ONE, {"classifier_activation": None}, "option classifier_activation is not free"),
        (SMALL_ONE, {"input_tensor": None}, "the option input_tensor is not free"),
        (SMALL_ONE, {"include_preprocessing": False}, "option include_preprocessing is not free"),
        (SMALL_ONE, {"depth": 3}, "depth"),
        (SMALL_ONE, {"input_shape": (5, 5, 3)}, "at least 32x32"),
        (SMALL_ONE, {"input_shape": (None, None, 3)}, "static"),
        (SMALL_ONE, SMALL | {"classes": 1}, "one probability a class"),
        (SMALL_ONE[:1], SMALL | {"alpha": 0.6}, "known for mobilenet_0.6_128; expected a file"),
        (SMALL_ONE[:1], SMALL | {"input_shape": (96, 128, 3)}, "for mobilenet_0.25_96x128"),
        (SMALL_ONE[:1], SMALL | {"classes": 10}, "its ImageNet weights know 1000 classes"),
    ],
)
def test_what_cannot_be_loaded_by_name_is_told(asked, options, said):
    with pytest.raises(ValueError, match=said):
        load_classifier(*asked, **options)


@pytest.mark.usefixtures("offline")
def test_the_demo_is_ten_animals_of_224_pixels(small, monkeypatch):
    weights = small[1] / "own.weights.h5"
    monkeypatch.setattr(examples, "demo_weights", lambda: weights)
    classifier = load_classifier("demo")
    assert (classifier.name, classifier.input_size) == ("demo", (224, 224))
    assert len(classifier.class_names) == 10
    assert classifier.index("badger") != classifier.index("skunk")
    assert classifier.published
    assert not load_classifier("demo", weights).published
    assert not small[0].published
    given = classifier.model(photo(224, 224)[np.newaxis] / 127.5 - 1)[0]
    assert_allclose(classifier.predict(photo(224, 224)), given, atol=1e-5)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["demo", "efficientnet_lite0"])
def test_auto_is_what_needs_no_download_where_resnet50_is_not_cached(
    monkeypatch, capsys, tmp_path, name
):
    classes = 1000 if name == "efficientnet_lite0" else 10
    plain_model(classes, name).save_weights(tmp_path / "own.weights.h5")
    monkeypatch.setattr(examples, "demo_network", lambda: plain_model(classes, name))
    monkeypatch.setattr(examples, "demo_weights", lambda: tmp_path / "own.weights.h5")
    monkeypatch.setattr(_efficientnet, name, lambda: plain_model(classes, name), raising=False)
    monkeypatch.setattr(_efficientnet, "is_installed", lambda: classes == 1000)
    monkeypatch.setattr(_efficientnet, "load_published_weights", lambda model: None)
    classifier = load_classifier()
    assert (classifier.name, classifier.published) == (name, True)
    said = f"classifier: {name} (the weights of resnet50 are not cached)\n"
    assert capsys.readouterr().err == said
    with pytest.raises(ValueError, match=f"'{name}' takes no options, got alpha"):
        load_classifier(alpha=0.5)


@pytest.mark.usefixtures("offline")
def test_auto_is_resnet50_where_its_weights_are_at_hand(tmp_path, monkeypatch, capsys):
    def resnet(weights: None, **options: object):
        return plain_model(1000)

    resnet.__name__ = "ResNet50"
    resnet.__module__ = "keras.src.applications.resnet"
    monkeypatch.setattr(keras.applications, "ResNet50", resnet)
    asked, weights = [], tmp_path / "own.h5"
    plain_model(1000).save(weights)
    for find in ("find_cached", "download"):
        monkeypatch.setattr(downloads, find, lambda name, source: asked.append(name) or weights)
    classifier = load_classifier("auto")
    assert (classifier.name, classifier.published, asked) == ("resnet50", True, [RESNET50] * 2)
    assert not load_classifier("auto", weights).published
    assert capsys.readouterr().err == 2 * "classifier: resnet50 (its weights are at hand)\n"


FORMATS = ("own.weights.h5", "legacy.h5", "own.keras")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Classifier, Path]:
    """The demo's network with random weights, and a folder that holds them in three formats."""
    folder = tmp_path_factory.mktemp("weights")
    classifier = load_classifier("demo", "random")
    classifier.model.save_weights(folder / "own.weights.h5")
    classifier.model.save(folder / "legacy.h5")
    classifier.model.save(folder / "own.keras")
    return classifier, folder


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_read_from_a_file(small, name):
    classifier, folder = small
    assert fingerprint(load_classifier("demo", folder / name)) == fingerprint(classifier)
    for path in (folder / "away.h5", folder):
        with pytest.raises(FileNotFoundError, match=f"{path}: no such file of weights for demo"):
            load_classifier("demo", path)


def refused(path: Path, reason: str = "") -> None:
    with pytest.raises(ValueError, match=f"^{path}: expected the weights of demo.*{reason}"):
        load_classifier("demo", path)


@pytest.mark.parametrize("name", ["a.h5", "a.weights.h5", "a.keras", "a.txt", "a"])
def test_a_text_file_is_no_weights_and_no_model(tmp_path, name):
    path = tmp_path / name
    for content in (b"", b"not weights\n"):
        path.write_bytes(content)
        refused(path)
        with pytest.raises(ValueError, match=f"^{path}: expected a model that Keras saved"):
            classifier_from_file(path)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_that_were_cut_off_or_are_of_another_model_are_refused(small, tmp_path, name):
    path, whole = tmp_path / name, (small[1] / name).read_bytes()
    for share in (0.1, 0.6, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path)
    # The same layers, and one class more.
    other = keras.models.clone_model(small[0].model)
    outputs = LAYERS.Dense(11, "softmax")(other.layers[-2].output)
    wider = keras.Model(other.inputs, outputs, name="demo")
    for number, another in enumerate((wider, plain_model())):
        path = tmp_path / f"{number}_{name}"
        another.save_weights(path) if "weights" in name else another.save(path)
        refused(path)


def test_weights_that_lack_a_layer_or_of_which_keras_only_warns_are_refused(
    small, tmp_path, monkeypatch
):
    import h5py

    for lost in ("layers/conv2d_3/vars/0", "layers/conv2d_3"):
        path = tmp_path / f"{len(lost)}.weights.h5"
        path.write_bytes((small[1] / "own.weights.h5").read_bytes())
        with h5py.File(path, "a") as file:
            del file[lost]
        refused(path)

    def half_loaded(self, path):
        warnings.warn("Affected layers will retain their initial weights.", stacklevel=2)

    monkeypatch.setattr(keras.Model, "load_weights", half_loaded)
    refused(path, "some of its layers are not in the file, or in another shape")


#: Models of Keras's functions: their size, whether their head is average pooling and one layer,
#: and the options that choose their weights.
ASKING = {
    "mobilenet_0.25_128": (128, True, SMALL),
    "mobilenet_v2_0.35_96": (96, True, {"alpha": 0.35, "input_shape": (96, 96, 3)}),
    "mobilenet_v3_small_0.75": (224, False, {"alpha": 0.75}),
    "mobilenet_v3_small_1_minimalistic": (224, False, {"minimalistic": True}),
    "efficientnetb0": (224, True, {}),
    "resnet50": (224, True, {}),
    "densenet121": (224, True, {}),
    "inception_v3": (299, True, {}),
    "convnext_tiny": (224, False, {}),
    "vgg16": (224, False, {}),
    "mobilenet_v3_small_1": (224, False, {}),
    "efficientnet_v2b0": (224, True, {}),
    "nasnet_mobile": (224, True, {}),
}

#: Where options choose among weights, a model's name is the key's first part.
VARIED = ("mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v2", "mobilenet")


def of_variant(variant: str) -> str:
    return next((name for name in VARIED if variant.startswith(f"{name}_")), variant)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ASKING)
def test_an_imagenet_model_asks_for_what_keras_asks_for_and_takes_images_of_its_size(
    variant, monkeypatch, tmp_path
):
    size, has_head, options = ASKING[variant]
    name, asked = of_variant(variant), {}
    keras_s = _constructors()[name.replace("_", "")]

    def get_file(fname, origin, cache_subdir="models", file_hash=None, **_):
        asked["keras"] = (f"{cache_subdir}/{fname}", origin, file_hash)
        return "nowhere.h5"

    def download(file, source):
        kind, _, digest = (source.known_hash or "").partition(":")
        assert len(digest) == {"md5": 32, "sha256": 64, "": 0}[kind]
        asked["ours"] = (file, source.url, digest or None)
        (tmp_path / "own.h5").touch()
        return tmp_path / "own.h5"

    # Both ask while one model is built.
    @functools.wraps(keras_s)
    def built(weights, **given):
        assert weights is None
        return keras_s(weights="imagenet", **given)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    monkeypatch.setattr(downloads, "download", download)
    monkeypatch.setattr(keras.Model, "load_weights", lambda *_: None)
    monkeypatch.setattr(keras.applications, keras_s.__name__, built)
    classifier = load_classifier(name, **options)
    assert asked["ours"] == asked["keras"]
    assert classifier.input_size == (size, size)
    # When it was made, its parts were compared with it on noise.
    _, rows, columns, channels = classifier.network.feature_map().shape
    assert min(rows, columns) > 1
    assert len(classifier.class_names) == 1000
    assert (classifier.head_weights is not None) == has_head
    if has_head:
        assert classifier.head_weights.shape == (channels, 1000)
    keras.backend.clear_session()


def test_the_weights_of_every_model_are_known_and_stand_in_keras_s_own_source():
    known = downloads.keras_weights()
    assert {of_variant(variant) for variant in known} == set(classifier_names()[2:])
    modules = [sys.modules[m] for m in list(sys.modules) if m.startswith("keras.src.applications.")]
    text = re.sub(r'"\s*"', "", " ".join(map(inspect.getsource, modules)))
    for variant, (file, source) in known.items():
        assert file.startswith("models/")
        assert source.url.startswith("https://storage.googleapis.com/")
        assert source.url.rpartition("/")[0] in text or source.url in text
        if source.known_hash is None:
            assert of_variant(variant) in ("mobilenet", "mobilenet_v2")
        else:
            assert f'"{source.known_hash.partition(":")[2]}"' in text


def test_the_weights_in_a_cache_are_the_ones_that_are_used(tmp_path, monkeypatch):
    own = keras.applications.MobileNet(weights=None, **SMALL)
    (tmp_path / "models").mkdir()
    own.save(tmp_path / downloads.keras_weights()["mobilenet_0.25_128"][0])
    monkeypatch.setenv("PDUTILS_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "_transfer", lambda *_: pytest.fail("it was downloaded"))
    found = load_classifier("mobilenet", **SMALL).model.get_weights()
    assert all(map(np.array_equal, found, own.get_weights()))


@pytest.fixture
def own(tmp_path) -> Path:
    plain_model().save(tmp_path / "own.keras")
    return tmp_path / "own.keras"


def scaled_by_keras(mode):
    scale = keras.applications.imagenet_utils.preprocess_input
    return lambda x: scale(x.astype(np.float64), data_format="channels_last", mode=mode)


SCALED = {
    "-1..1": lambda x: x / 127.5 - 1,
    "0..1": lambda x: x / 255,
    "0..255": lambda x: x,
    **{mode: scaled_by_keras(mode) for mode in ("caffe", "torch", "tf")},
}


def test_a_saved_model_is_a_classifier_that_scales_as_asked(own):
    images = photos(2, 12, 12)
    asked = [({"preprocess": name}, scaled) for name, scaled in SCALED.items()]
    asked += [({}, SCALED["-1..1"]), ({"preprocess": lambda x: 3 * x}, lambda x: 3 * x)]
    for options, scaled in asked:
        classifier = classifier_from_file(str(own), class_names=ANIMALS, **options)
        given = classifier.model(scaled(images))
        # What is multiplied by 3 * 255 magnifies the rounding of a logit as much.
        assert_allclose(classifier.predict(images), given, atol=1e-3)
        assert (classifier.class_names, classifier.published) == (ANIMALS, False)


def test_what_is_no_model_and_an_unknown_scaling_are_refused(own, tmp_path):
    with pytest.raises(ValueError, match=r"expected one of \('-1..1', .*got 'coffee'"):
        classifier_from_file(own, preprocess="coffee")
    with pytest.raises(FileNotFoundError, match=r"away\.keras: no such file of a Keras model"):
        classifier_from_file(tmp_path / "away.keras")
    weights, whole = tmp_path / "own.weights.h5", own.read_bytes()
    plain_model().save_weights(weights)
    for share in (0, 0.2, 0.7, 0.99):
        own.write_bytes(whole[: int(share * len(whole))])
        path = own if share else weights
        with pytest.raises(ValueError, match=f"^{path}: expected a model that Keras saved"):
            classifier_from_file(path)


def test_the_fingerprint_knows_the_weights_and_the_scaling(toy):
    copy = keras.models.clone_model(toy.model)
    copy.set_weights(toy.model.get_weights())
    again = Classifier(copy, preprocess=lambda x: x / 127.5 - 1)
    assert fingerprint(again) == fingerprint(toy)
    assert fingerprint(Classifier(copy)) != fingerprint(toy)
    copy.set_weights([w + np.float32(1e-6) for w in copy.get_weights()])
    assert fingerprint(again) != fingerprint(toy)


def test_names_of_imagenet_are_for_its_thousand_classes(toy_file, tmp_path):
    import keras

    with pytest.raises(ValueError, match="expected 6 class names, as the model has, got 1000"):
        ClassifierSource(toy_file, class_names="imagenet").load()
    layers = [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()]
    keras.Sequential([*layers, keras.layers.Dense(1000, "softmax")]).save(tmp_path / "a.keras")
    network = ClassifierSource(str(tmp_path / "a.keras"), class_names="imagenet").load()
    assert network.class_ids[388] == "n02510455"
    assert network.class_names[388] == "giant_panda"


def test_a_classifier_is_loaded_once_and_as_it_is_described(toy, toy_file):
    described = ClassifierSource(toy_file, preprocess="0..255", class_names=tuple("abcdef"))
    loaded = described.load()
    expected = classifier_from_file(toy_file, preprocess="0..255", class_names="abcdef")
    assert_array_equal(loaded.predict(photos(2)), expected.predict(photos(2)))
    assert loaded.class_names == tuple("abcdef")
    assert pickle.loads(pickle.dumps(described)).load() is loaded
    plain = ClassifierSource(toy_file).load()
    assert_allclose(plain.predict(photos(2)), toy.predict(photos(2)), rtol=1e-5)


def test_options_that_do_not_go_with_a_classifier_are_refused():
    with pytest.raises(ValueError, match=r"my\.keras holds its weights"):
        ClassifierSource("my.keras", weights="w.h5")
    for options in ({"preprocess": "0..1"}, {"class_names": ("a",)}):
        with pytest.raises(ValueError, match=r"go with a \.keras file, not with 'demo'"):
            ClassifierSource("demo", **options)


@pytest.mark.real
def test_the_authors_clean_badger_is_a_badger_and_less_of_one_along_the_gradient(real, monkeypatch):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    mobilenet = load_classifier("mobilenet_v2", real / "weights" / "mobilenet_v2.weights.h5")
    folder = real / "cache" / "pixel-deflection" / "originals"
    image = load_image(folder / "n02447366_00008562.png", mobilenet.input_size)
    gradient, before = mobilenet.loss_gradient(image, BADGER)
    (best,) = mobilenet.top(before, 1)
    assert (best.number, best.class_id, best.class_name) == (BADGER, "n02447366", "badger")
    assert abs(best.probability - 0.856) < 0.02
    _, after = mobilenet.loss_gradient(np.clip(image + np.sign(gradient), 0, 255), BADGER)
    assert after[BADGER] < before[BADGER] / 2


@pytest.mark.resnet50
@pytest.mark.real
def test_the_blog_s_two_deterministic_numbers_and_the_direction_of_the_others(real):
    weights = downloads.cache_dir() / RESNET50
    if not weights.is_file():
        pytest.skip(f"the ImageNet weights of ResNet-50 are not at {weights}")
    resnet50 = load_classifier("resnet50", weights)
    folder = real / "cache" / "pixel-deflection" / "images"
    adversary = load_image(folder / "n02447366_00008562.png", resnet50.input_size)
    attacked = resnet50.predict(adversary)
    assert abs(attacked[SKUNK] - 0.59) < 0.02
    assert abs(attacked[BADGER] - 0.15) < 0.02
    copies = np.stack([adversary] * 20)
    deflected = pixel_deflection(copies, 200, 10, reading="blog", rng=0)
    after_pd = resnet50.predict(deflected)[:, BADGER].mean()
    after_wd = resnet50.predict(denoise(deflected, "wavelet", sigma=0.04))[:, BADGER].mean()
    assert attacked[BADGER] < after_pd < after_wd


@pytest.mark.real
@pytest.mark.slow
def test_a_network_of_caffe_s_scaling_is_right_where_it_should_be(real):
    path, given = real / "weights" / "resnet50_v15.keras", {"class_names": "imagenet"}
    network = classifier_from_file(path, preprocess="caffe", **given)
    ids = [class_id for class_id, _ in downloads.class_index()]
    assert list(network.class_ids) == ids
    # Where they come in another range, it knows a third of these.
    files = sorted((real / "imagenet").glob("*.jpg"))[::25]
    labels = [ids.index(path.name.split("_")[0]) for path in files]
    answers = network.predict(np.stack([load_image(path, 224) for path in files])).argmax(axis=1)
    assert np.sum(answers == labels) >= len(files) - 1


def test_memory_that_runs_short_is_named_and_other_errors_pass(toy, monkeypatch, capsys):
    def fails(said: str) -> Classifier:
        def run(*_):
            raise RuntimeError(said)

        broken = copy.copy(toy)
        broken.network = SimpleNamespace(step=lambda name: run)
        return broken

    for said in ("RESOURCE_EXHAUSTED: Out of memory", "OOM when allocating a tensor"):
        with pytest.raises(MemoryError, match="the memory for a batch of 3; expected a small"):
            fails(said).predict(photos(3))
    with pytest.raises(RuntimeError, match="something else"):
        fails("something else").predict(photos(3))
    monkeypatch.setattr(Classifier, "run", fails("OOM when").run)
    monkeypatch.setattr(classifiers, "deterministic", lambda: None)
    assert main(["evaluate", "drawings:1", "--classifier", "demo", "--attacks", "fgsm"]) == 1
    assert "has not the memory for a batch of 1" in capsys.readouterr().err
