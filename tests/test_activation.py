import itertools

import numpy as np
import pytest
from conftest import assert_maps_alike, photo, photos
from numpy.testing import assert_allclose, assert_array_equal
from skimage.transform import resize

from pdutils._utils import load_tensorflow
from pdutils.activation import cam, combine_maps, combine_weights, grad_cam, robust_cam
from pdutils.classifiers import Classifier

#: Bilinear weights from 2 pixels to 4: pixel centres at -1/4, 1/4, 3/4 and 5/4, cut at the border.
TWO_TO_FOUR = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])

COMBINES = ["paper", "geometric", "repo"]
UPSCALES = ["half_pixel", "tf1"]

each_combine = pytest.mark.parametrize("combine", COMBINES)

#: Each kind of map, of an image or several and the labels that it may take.
KINDS = {
    "cam": cam,
    "grad_cam": grad_cam,
    "robust_cam": lambda network, images, _, **options: robust_cam(network, images, **options),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_network = pytest.mark.parametrize("network", ["toy", "toy_flat"])


def stretched(values):
    """Stretch one map to [0, 1], or zeros if it is constant."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def scaled_up(small, size):
    return resize(small.astype(np.float64), size, order=1, mode="edge", anti_aliasing=False)


def as_tensorflow_1(small, size):
    """Scale one map up, a place at a time: no half pixels, and at most the last cell."""
    large = np.empty(size)
    for row, column in np.ndindex(size):
        y, x = row * small.shape[0] / size[0], column * small.shape[1] / size[1]
        (top, down), (left, across) = ((int(at), at % 1) for at in (y, x))
        cells = np.pad(small, ((0, 1), (0, 1)), mode="edge")[top : top + 2, left : left + 2]
        large[row, column] = [1 - down, down] @ cells @ [1 - across, across]
    return large


def corners_classifier(kernel, height=4, width=4, head="gap", bias=None):
    """A network whose feature map is every second pixel of the image, channels and all.

    The head's weights (C, K) are given; with `head="flat"` they are (h * w * C, K).
    """
    load_tensorflow()
    import keras

    inputs = keras.Input((height, width, 3))
    pick = keras.layers.Conv2D(3, 1, strides=2, use_bias=False, name="pick")
    pool = keras.layers.GlobalAveragePooling2D if head == "gap" else keras.layers.Flatten
    dense = keras.layers.Dense(np.shape(kernel)[1], activation="softmax", name="dense")
    model = keras.Model(inputs, dense(pool()(pick(inputs))))
    pick.set_weights([np.eye(3).reshape(1, 1, 3, 3)])
    dense.set_weights([np.asarray(kernel), np.zeros(np.shape(kernel)[1]) if bias is None else bias])
    return Classifier(model, preprocess=lambda x: x / 100)


def image_of_features(features):
    """The image (4, 4, 3) whose feature map in the network above is that (2, 2, 3)."""
    image = np.full((4, 4, 3), 255, np.float32)
    image[::2, ::2] = 100 * np.asarray(features, np.float32)
    return image


FEATURES = [[[1, 0, 2], [0, 1, 1]], [[2, 2, 0], [0, 0, 1]]]
#: Feature (3) by class (2).
KERNEL = [[1.0, -1.0], [0.5, 1.0], [-0.25, 0.0]]


def test_maps_of_a_hand_worked_feature_map():
    small, image = corners_classifier(KERNEL), image_of_features(FEATURES)
    # Class 0: 1 - 2/4, 1/2 - 1/4, 2 + 1, -1/4. Class 1: -1, 1, -2 + 2, 0.
    for label, cells in ((0, [[0.5, 0.25], [3, -0.25]]), (1, [[-1, 1], [0, 0]])):
        # Grad-CAM clears what speaks against the class.
        for function, kept in ((cam, np.array(cells)), (grad_cam, np.maximum(cells, 0))):
            result = function(small, image, label)
            assert result.dtype == np.float32
            assert_allclose(result, stretched(TWO_TO_FOUR @ kept @ TWO_TO_FOUR.T), atol=1e-5)
    nothing_for_it = image_of_features([[[1, 0, 0], [0, 0, 0]], [[2, 0, 0], [0, 0, 0]]])
    assert_array_equal(grad_cam(small, nothing_for_it, 1), np.zeros((4, 4)))
    # A bias is none of their business.
    biased = corners_classifier(KERNEL, bias=np.array([3.0, -2.0]))
    assert_allclose(cam(biased, image, 0), cam(small, image, 0))


@pytest.mark.parametrize("function", [cam, grad_cam])
def test_a_bright_corner_is_hot(function):
    # Wider than high, so that a map that lies the wrong way round has another shape.
    wide = corners_classifier(KERNEL, 8, 12)
    for row, column in itertools.product((0, -1), repeat=2):
        image = np.full((8, 12, 3), 10, np.float32)
        image[row * 2 : row * 2 + 2 or None, column * 2 : column * 2 + 2 or None, 0] = 250
        heat = function(wide, image, 0)
        assert heat.shape == (8, 12)
        assert heat[row, column] == pytest.approx(1, abs=1e-5)
        far = np.hypot(*(np.indices((8, 12)) - np.reshape([row % 8, column % 12], (2, 1, 1))))
        assert heat[far > 4].max() < 1e-5


def test_maps_of_the_toy_are_the_weighted_sums_of_its_feature_maps(toy, toy_flat):
    batch, labels = photos(3), [4, 0, 2]
    kernel, maps = toy.model.layers[-1].get_weights()[0], toy.features(batch).maps
    small = np.einsum("ck,nhwc->knhw", kernel, maps)[labels, range(3)]
    # Grad-CAM is CAM up to the ReLU and the scale.
    for function, cells in ((cam, small), (grad_cam, np.maximum(small, 0))):
        expected = [stretched(scaled_up(each, (32, 32))) for each in cells]
        assert_allclose(function(toy, batch, labels), expected, atol=1e-4)
    # Where no pooling gives weights, CAM is Grad-CAM.
    assert toy_flat.head_weights is None
    found, expected = (function(toy_flat, batch, labels) for function in (cam, grad_cam))
    assert_array_equal(found, expected)


@each_kind
@each_network
def test_a_constant_feature_map_gives_zeros(request, network, kind):
    flat = np.stack([np.full((32, 32, 3), value, np.float32) for value in (0, 255)])
    heat = KINDS[kind](request.getfixturevalue(network), flat, 1)
    assert_array_equal(heat, np.zeros((2, 32, 32)))


def test_what_rounding_leaves_of_terms_that_cancel_gives_zeros():
    # 1.3 - 1.3 everywhere, but for the last digits; and 1.3 twice.
    image = image_of_features(np.full((2, 2, 3), 1.3))
    image[0, 2, 0] = image[2, 2, 1] = 130.0001
    classifier = corners_classifier([[1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]])
    assert np.ptp(classifier.features(image).maps) > 0
    for upscale in UPSCALES:
        heats = [f(classifier, image, i, upscale=upscale) for i in (0, 1) for f in (cam, grad_cam)]
        for combine in COMBINES:
            heats.append(robust_cam(classifier, image, k=2, combine=combine, upscale=upscale))
        assert_array_equal(heats, np.zeros((7, 4, 4)))
    # A small difference that is none of rounding is shown.
    image[2, 0, 0] = 130.13
    heat = cam(classifier, image, 0)
    assert heat[0, 3] < 0.01 < heat[3, 0] == 1


def test_a_weight_that_is_the_rounding_of_a_mean_of_gradients_gives_zeros():
    # The gradient of class 0 by each feature cancels over the four places, but for rounding.
    kernel = np.zeros((12, 2), np.float32)
    kernel[:, 0] = np.repeat([7.3, -7.3, 7.3, -7.300001], 3)
    for first, greatest in ((7.3, 0), (7.4, 1)):
        kernel[0, 0] = first
        flat = corners_classifier(kernel, head="flat")
        assert grad_cam(flat, image_of_features(FEATURES), 0).max() == greatest


@pytest.mark.parametrize("size", [(10, 17), (3, 3)], ids=str)
def test_maps_can_be_scaled_up_as_tensorflow_1_did(size):
    kernel = np.random.default_rng(0).normal(size=(3, 2))
    classifier = corners_classifier(kernel, *size)
    image = photo(*size)
    for label, small in enumerate((classifier.features(image).maps[0] @ kernel).T):
        for function, cells in ((cam, small.T), (grad_cam, np.maximum(small.T, 0))):
            found = function(classifier, image, label, upscale="tf1")
            assert_allclose(found, stretched(as_tensorflow_1(cells, size)), atol=1e-4)


def test_grad_cam_weighs_by_the_mean_of_finite_differences():
    load_tensorflow()
    import keras

    # With a hidden layer after the feature map.
    rng = np.random.default_rng(5)
    inputs = keras.Input((6, 4, 3))
    conv = keras.layers.Conv2D(2, 1, strides=2, activation="tanh")
    hidden, last = keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(3)
    outputs = keras.layers.Softmax()(last(hidden(keras.layers.Flatten()(conv(inputs)))))
    model = keras.Model(inputs, outputs)
    for layer in (conv, hidden, last):
        layer.set_weights([rng.normal(0, 1, w.shape) for w in layer.get_weights()])
    w1, b1, w2, b2 = map(np.float64, (*hidden.get_weights(), *last.get_weights()))
    classifier, image = Classifier(model, preprocess=lambda x: x / 127.5 - 1), photo(6, 4)
    maps = classifier.features(image).maps[0].astype(np.float64)

    def logits(features):
        return np.tanh(features.reshape(-1) @ w1 + b1) @ w2 + b2

    slopes = np.empty((*maps.shape, 3))
    for place in np.ndindex(maps.shape):
        step = np.zeros(maps.shape)
        step[place] = 1e-5
        slopes[place] = (logits(maps + step) - logits(maps - step)) / 2e-5
    for label in range(3):
        small = np.maximum(maps @ slopes[..., label].mean(axis=(0, 1)), 0)
        expected = stretched(scaled_up(small, (6, 4)))
        assert_allclose(grad_cam(classifier, image, label), expected, atol=1e-4)


#: Of five maps that run from 0 to 1: what differs is in the middle.
MIDDLES = [1, 0.5, 0, 0.25, 0.75]


@pytest.mark.parametrize(
    ("combine", "middles", "expected"),
    [
        # 1/2 + 1/8 + 0 + 1/64 + 3/128 = 0.6640625, of a greatest value of 31/32.
        ("paper", MIDDLES, 0.6640625 / 0.96875),
        # 1/2 + 1/8 + 0 + 1/64 + 0.9/16 = 0.696875, of a greatest value of 16.2/16.
        ("repo", MIDDLES, 0.696875 / 1.0125),
        # One map is 0 there, so the product is.
        ("geometric", MIDDLES, 0.0),
        # The fifth root of 1/64.
        ("geometric", [1, 0.5, 0.25, 0.5, 0.25], 0.435275),
    ],
)
def test_five_maps_combined_by_hand(combine, middles, expected):
    maps = np.array([[[0, m, 1]] for m in middles], dtype=np.float32)
    combined = combine_maps(maps, combine=combine)
    assert combined.dtype == np.float32
    assert_allclose(combined, [[0, expected, 1]], atol=1e-6)


def test_the_weights_written_out():
    halves = [1 / 2, 1 / 4, 1 / 8, 1 / 16]
    for n, kind, last in (
        (5, "paper", 1 / 32),
        (5, "repo", 0.075),
        (1, "paper", 0.5),
        (1, "repo", 1.2),
    ):
        assert_allclose(combine_weights(n, kind), [*halves[: n - 1], last])


@each_combine
def test_a_combination_that_is_constant_or_positive_but_for_rounding_is_zeros(combine):
    noise = np.random.default_rng(0).uniform(0, 2e-7, (5, 3, 4))
    for level in (0.0, 0.3, 1.0):
        maps = (level * (1 - noise)).astype(np.float32)
        assert_array_equal(combine_maps(maps, combine=combine), np.zeros((3, 4)))
    # Maps that do not overlap have no geometric mean.
    for pair in ([[1, 2e-7, 1e-8], [1e-7, 1, 0]], [[1, 0, 0], [0, 1, 0]]):
        apart = np.array(pair, np.float32)[:, np.newaxis]
        assert_array_equal(combine_maps(apart, combine="geometric"), [[0, 0, 0]])


@each_combine
@each_network
def test_robust_cam_combines_the_cams_of_the_most_probable_classes(request, network, combine):
    classifier, image = request.getfixturevalue(network), photo()
    ranking = np.argsort(classifier.predict(image))[::-1]
    for k, upscale in itertools.product((1, 6), UPSCALES):
        result = robust_cam(classifier, image, k=k, combine=combine, upscale=upscale)
        assert (result.dtype, result.min(), result.max()) == (np.float32, 0, 1)
        cams = [cam(classifier, image, int(label), upscale=upscale) for label in ranking[:k]]
        assert_maps_alike(result, combine_maps(np.stack(cams), combine=combine), combine, atol=1e-4)


def test_the_defaults_are_five_classes_and_the_papers_combination(toy):
    image, blog = photo(), {"k": 5, "combine": "paper", "upscale": "half_pixel"}
    assert_array_equal(robust_cam(toy, image), robust_cam(toy, image, **blog))
    for other in ({"k": 4}, {"upscale": "tf1"}):
        assert not np.allclose(robust_cam(toy, image), robust_cam(toy, image, **blog | other))


@each_kind
@each_network
def test_each_image_of_a_batch_is_mapped_as_alone_and_none_is_changed(request, network, kind):
    classifier, function = request.getfixturevalue(network), KINDS[kind]
    batch, labels = photos(5), [0, 5, 2, 1, 4]
    batch.flags.writeable = False
    together = function(classifier, batch, labels)
    alone = np.stack([function(classifier, batch[i], labels[i]) for i in range(5)])
    assert_allclose(together, alone, atol=1e-4)
    assert_allclose(together, function(classifier, batch, labels, batch_size=2), atol=1e-4)
    assert function(classifier, batch[:1], 0).shape == (1, 32, 32)
    # One label stands for all images.
    same = function(classifier, batch[:2], 3), function(classifier, batch[:2], np.array([3, 3]))
    assert_array_equal(*same)
    assert_array_equal(batch, photos(5))


WRONG = {
    "labels": ([6, -1, [0, 1], 1.0, "cat", None], "labels: expected"),
    "images": ([photo() / 255, photo(32, 31), photo().astype(np.float64)], "images: "),
    "none": ([photos(1)[:0]], "images: expected at least one image, got none"),
    "upscale": (["nearest"], r"upscale: expected one of \('half_pixel', 'tf1'\), got 'nearest'"),
    "k": ([0, -1, 7, 2.0, "5"], "k: expected 1 to 6 classes, got"),
    "combine": (["blog"], r"combine: expected one of \('paper', 'geometric', 'repo'\), got 'blog'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(toy, toy_flat, name):
    values, message = WRONG[name]
    makers = {"k": [robust_cam], "combine": [robust_cam], "labels": [cam, grad_cam]}
    for value in values:
        given = {"images": photo()} | {name.replace("none", "images"): value}
        for maker in makers.get(name, [cam, grad_cam, robust_cam]):
            labels = {} if maker is robust_cam else {"labels": 0}
            for network in (toy, toy_flat) if name == "labels" else (toy,):
                with pytest.raises(ValueError, match=message):
                    maker(network, **labels | given)


def test_wrong_stacks_of_maps():
    for shape in ((0, 4, 4), (4, 4)):
        with pytest.raises(ValueError, match=r"maps: expected shape \(k, H, W\) with k >= 1, got"):
            combine_maps(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=WRONG["combine"][1]):
        combine_maps(np.zeros((1, 4, 4), np.float32), combine="blog")
