import contextlib
import functools
import warnings

import numpy as np
import pytest
from conftest import photos

from pdutils._network import Network
from pdutils._utils import load_tensorflow
from pdutils.activation import cam, robust_cam
from pdutils.attacks.gradient import fgsm
from pdutils.classifiers import Classifier, classifier_from_file, fingerprint
from pdutils.defenses.pipeline import Defense
from pdutils.demo.examples import Collection
from pdutils.evaluation import run as evaluate

load_tensorflow()
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import layers as L  # noqa: E402, N812
from keras import ops  # noqa: E402

from pdutils.defenses.layers import defended_model  # noqa: E402

NOTHING = Defense(deflections=0, denoiser=None)
WHOLE = Defense(deflections=50, activation="rcam")
SIZE, SMALL = (32, 32), (12, 12)


def scaled(images):
    return images / 127.5 - 1


#: The parameter is the class, so that each test builds layers of its own.
Pool = L.GlobalAveragePooling2D


def layer(kind, *args, seed=2, spread=0.5, **options):
    """A layer whose answers differ enough between pictures for a test to see it."""
    start = keras.initializers.RandomNormal(stddev=spread, seed=seed)
    bias = keras.initializers.RandomNormal(stddev=0.2, seed=seed)
    return kind(*args, kernel_initializer=start, bias_initializer=bias, **options)


def conv(channels: int = 4, seed: int = 1, **options):
    return layer(L.Conv2D, channels, 3, seed=seed, activation="tanh", **options)


def linear(**options):
    return layer(L.Dense, 5, **options)


def functional(*layers, shape=(*SMALL, 3)):
    x = inputs = keras.Input(shape)
    for item in layers:
        x = item(x)
    return keras.Model(inputs, x)


def sequential(*layers):
    return keras.Sequential([keras.Input((*SMALL, 3)), *layers])


def network(model) -> Network:
    return Network(model, scaled, SMALL)


def batch(n: int = 3) -> np.ndarray:
    return photos(n, *SMALL)


def predicted(made: Network) -> np.ndarray:
    (probabilities,) = made.step("predict")(batch())
    return np.asarray(probabilities)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def own_output(model) -> np.ndarray:
    return np.asarray(model(scaled(batch())))


#: Ends of a model after its first layer.
KINDS = {
    "a softmax": lambda: [Pool(), linear(activation="softmax")],
    "no bias": lambda: [Pool(), linear(activation="softmax", use_bias=False)],
    "no pooling": lambda: [L.Flatten(), linear(spread=0.05, activation="softmax")],
    "a convolution as the head": lambda: [
        *(Pool(keepdims=True), layer(L.Conv2D, 5, 1), L.Reshape((5,)), L.Activation("softmax"))
    ],
    "a softmax of another shape": lambda: [
        *(Pool(keepdims=True), layer(L.Conv2D, 5, 1, activation="softmax"), L.Flatten())
    ],
    "logits": lambda: [Pool(), linear(), L.Activation("linear")],
    "nested logits": lambda: [functional(Pool(), linear(), shape=(10, 10, 4))],
}


# From pixels to probabilities


@pytest.mark.parametrize(
    ("tail", "ends_in"),
    [
        (lambda: [linear(activation="relu")], "Dense with relu"),
        (lambda: [linear(activation="sigmoid")], "Dense with sigmoid"),
        (lambda: [linear(), L.Activation("tanh")], "Activation with tanh"),
        (lambda: [linear(), lambda z: z / 50], "TrueDivide"),
        (lambda: [linear(), L.BatchNormalization()], "BatchNormalization"),
        (lambda: [linear(), L.Activation("log_softmax")], "Activation with log_softmax"),
        (lambda: [functional(linear(activation="sigmoid"), shape=(4,))], "Dense with sigmoid"),
        (lambda: [L.Reshape((1, 1, 4)), layer(L.Conv2D, 5, 1), L.Flatten()], "Conv2D with linear"),
    ],
)
def test_an_end_that_is_neither_says_what_it_is(tail, ends_in):
    with pytest.raises(ValueError, match=f"ends in {ends_in} and whose outputs are no prob"):
        network(functional(conv(), Pool(), *tail()))


@pytest.mark.parametrize(
    ("own", "after"),
    [("sigmoid", []), (None, [L.Activation("sigmoid")]), (None, [keras.ops.sigmoid])],
    ids=["in the layer", "a layer", "an operation"],
)
def test_a_sigmoid_is_refused_where_it_happens_to_add_up_to_1(own, after):
    # Sure of its first class, whatever it is shown.
    last = L.Dense(3, kernel_initializer="zeros", activation=own)
    model = functional(conv(), Pool(), last, *after)
    last.bias.assign([60.0, -60.0, -60.0])
    assert own_output(model).sum(axis=1) == pytest.approx(1)
    with pytest.raises(ValueError, match="are no probabilities: each class has its own"):
        network(model)


# The gradient


@pytest.mark.parametrize("kind", KINDS)
def test_the_prediction_is_the_model_s_and_its_gradient_that_of_finite_differences(kind):
    model = functional(conv(), *KINDS[kind]())
    made = network(model)
    images, labels = batch(), np.array([0, 4, 2])
    gradient, probabilities = (np.asarray(a) for a in made.step("gradient")(images, labels))
    expected = softmax(own_output(model)) if "logits" in kind else own_output(model)
    for found in (probabilities, predicted(made)):
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def losses(shifted):
        (rows,) = made.step("predict")(shifted)
        return -np.log(np.asarray(rows, dtype=np.float64)[np.arange(3), labels])

    rng = np.random.default_rng(0)
    for _ in range(5):
        direction = rng.choice([-1.0, 1.0], images.shape).astype(np.float32)
        slope = (losses(images + 2 * direction) - losses(images - 2 * direction)) / 4
        expected = (gradient * direction).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(slope, expected, rtol=0.02, atol=2e-5)


def test_small_probabilities_are_kept_and_the_gradient_lives_where_they_are_0():
    for factor in (40, 3000):
        inner = functional(conv(), Pool(), linear(activation="softmax"))
        inner.layers[-1].kernel.assign(inner.layers[-1].kernel * factor)
        model = functional(L.Rescaling(1.0), inner)
        made, own = network(model), own_output(model)
        assert (own < 1e-5).any()
        np.testing.assert_allclose(predicted(made), own, rtol=1e-3, atol=1e-11)
        gradient, _ = made.step("gradient")(batch(), own.argmin(axis=1))
        assert (np.abs(np.asarray(gradient)).max(axis=(1, 2, 3)) > 1e-3).all()
    assert (own == 0).any(axis=1).all()


# The feature map


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [L.Flatten(), linear(activation="softmax")],
        lambda: [functional(Pool()), linear(activation="softmax")],
    ],
)
@pytest.mark.parametrize("made", [functional, sequential])
def test_a_model_without_a_feature_map_in_reach_says_so(made, layers):
    made_network = network(made(*layers()))
    assert made_network.head_weights is None
    for step in ("features", "feature_gradient"):
        with pytest.raises(ValueError, match="no feature map"):
            made_network.step(step)
    assert predicted(made_network).shape == (3, 5)


NESTED = {
    "in the open": lambda body: [*body, Pool(), linear(activation="softmax")],
    "a backbone": lambda body: [functional(*body), Pool(), linear(activation="softmax")],
    "with its pooling": lambda body: [functional(*body, Pool()), linear(activation="softmax")],
    "with its head, after a scaling": lambda body: [
        *(L.Rescaling(1.0), functional(*body, Pool(), linear(activation="softmax")))
    ],
    "two models deep": lambda body: [functional(functional(*body, Pool())), linear()],
    "parted in two models": lambda body: [
        *(functional(*body), functional(Pool(), linear(), shape=(8, 8, 6)))
    ],
}


@pytest.mark.parametrize("made", [functional, sequential])
@pytest.mark.parametrize("kind", NESTED)
def test_the_feature_map_is_found_and_its_gradient_is_the_row_of_the_head(made, kind):
    body = [conv(), conv(6, seed=4)]
    model = made(*NESTED[kind](body))
    made_network = network(model)
    maps, probabilities = made_network.step("features")(batch())
    expected = body[1](body[0](scaled(batch())))
    np.testing.assert_allclose(np.asarray(maps), np.asarray(expected), atol=1e-6)
    own = own_output(model)
    own = own if abs(own.sum(axis=1) - 1).max() < 1e-5 else softmax(own)
    np.testing.assert_allclose(np.asarray(probabilities), own, atol=1e-6)
    kernel = next(np.asarray(w) for w in model.weights if tuple(w.shape) == (6, 5))
    np.testing.assert_array_equal(made_network.head_weights, kernel)
    # A logit is the sum over channels of weight times mean, so each pixel counts weight / (8 8).
    labels = np.array([1, 1, 3])
    _, gradient = made_network.step("feature_gradient")(batch(), labels)
    rows = np.broadcast_to(kernel.T[labels][:, None, None] / 64, gradient.shape)
    np.testing.assert_allclose(np.asarray(gradient), rows, atol=1e-6)


# The head


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [Pool(), L.Dropout(0.5), linear(), L.Softmax()],
        lambda: [Pool(keepdims=True), L.Flatten(), linear(activation="softmax")],
        # A 1 x 1 convolution is a dense layer.
        lambda: [Pool(keepdims=True), L.Dropout(0.1), *KINDS["a convolution as the head"]()[1:]],
    ],
)
def test_average_pooling_and_one_dense_layer_give_the_dense_layer_s_weights(layers):
    model = functional(conv(), *layers())
    weights = network(model).head_weights
    (kernel,) = (np.asarray(w) for w in model.weights if tuple(w.shape)[-2:] == (4, 5))
    np.testing.assert_array_equal(weights, kernel.reshape(4, 5))


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [L.Flatten(), linear(activation="softmax")],
        lambda: [L.GlobalMaxPooling2D(), linear(activation="softmax")],
        lambda: [Pool(), linear(), linear(activation="softmax")],
        lambda: [Pool(), linear(activation="relu"), L.Softmax()],
        lambda: [Pool(), L.Activation("relu"), linear(activation="softmax")],
        lambda: [Pool(), L.BatchNormalization(), linear(activation="softmax")],
        lambda: [
            Pool(keepdims=True),
            layer(L.Conv2D, 5, 3, padding="same"),
            L.Flatten(),
            L.Softmax(),
        ],
    ],
)
def test_any_other_head_has_no_weights(layers):
    assert network(functional(conv(), *layers())).head_weights is None


def test_a_step_is_made_once():
    made = network(functional(conv(), *KINDS["a softmax"]()))
    first = made.step("predict")
    assert made.step("features") is not first
    assert made.step("predict") is first


# Whatever Keras model a user has: its own numbers


def dense(classes=3, **options):
    return layer(L.Dense, classes, spread=4.0, **options)


def pooled(inputs):
    return Pool()(conv(6, strides=2)(inputs))


def ending(*tail):
    """A model that ends in the given layers or functions."""
    return functional(pooled, *tail, shape=(*SIZE, 3))


def softmax_at_50(z):
    return ops.softmax(z / 50)


softmax_at_50.__name__ = "softmax"


def its_softmax_and_a_calibration():
    mixing = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], dtype=np.float32)
    model = ending(dense(activation="softmax"), L.Dense(3, use_bias=False))
    model.layers[-1].set_weights([mixing])
    return model


def a_layer_used_twice():
    inputs, head = keras.Input((*SIZE, 3)), dense(6)
    x = head(pooled(inputs))
    return keras.Model(inputs, ops.softmax(head(ops.tanh(x))))


def a_dense_layer_used_twice_at_the_end():
    inputs, head = keras.Input((*SIZE, 3)), dense(6, activation="softmax")
    return keras.Model(inputs, head(head(pooled(inputs))))


def called_again(*before):
    first = ending(dense(activation="softmax"))
    x = again = keras.Input((*SIZE, 3))
    for part in (*before, *first.layers[1:]):
        x = part(x)
    return keras.Model(again, x)


def in_a_list():
    model = ending(dense())
    return keras.Model(model.inputs, model.outputs)


def in_a_dictionary():
    model = ending(dense(activation="softmax"))
    return keras.Model(model.inputs[0], {"answer": model.outputs[0]})


def sequential_built_late(head=None):
    model = keras.Sequential([conv(6, strides=2), L.GlobalAveragePooling2D(), head or dense()])
    model.build((None, *SIZE, 3))
    return model


def sequential_fitted():
    model = sequential_built_late(dense(activation="softmax"))
    model.compile(loss="sparse_categorical_crossentropy")
    model.fit(np.zeros((2, *SIZE, 3)), np.zeros(2), verbose=0)
    return model


def transfer_with_pooling_inside():
    inputs = keras.Input((*SIZE, 3))
    inside = keras.Input((*SIZE, 3))
    base = keras.Model(inside, pooled(inside), name="base")
    return keras.Model(inputs, dense(activation="softmax")(base(inputs, training=False)))


def wrapped():
    model = ending(dense(activation="softmax"))
    for _ in range(2):
        model = keras.Sequential([keras.Input((*SIZE, 3)), L.Rescaling(0.9), model])
    return model


def head_in_a_model():
    tail = keras.Sequential([keras.Input((6,)), dense(activation="softmax")])
    return ending(tail)


def two_ways_around_a_model():
    inside = keras.Input((*SIZE, 3))
    base = keras.Model(inside, pooled(inside))
    inputs = keras.Input((*SIZE, 3))
    around = L.Flatten()(L.AveragePooling2D(16)(inputs))
    return keras.Model(inputs, dense()(L.Concatenate()([base(inputs), around])))


class CalledOtherwise(keras.Model):
    """A model with a graph that does something else when it is called."""

    def call(self, inputs, training=None):
        return ops.softmax(-ops.log(super().call(inputs, training=training)))


def call_of_its_own():
    inputs = keras.Input((*SIZE, 3))
    return CalledOtherwise(inputs, dense(activation="softmax")(pooled(inputs)))


def quantised():
    model = ending(dense(activation="softmax"))
    with warnings.catch_warnings():
        # Keras warns of each layer that has nothing to quantise.
        warnings.simplefilter("ignore")
        model.quantize("int8")
    return model


def in_policy(policy, make=lambda: ending(dense(activation="softmax"))):
    def made():
        with policy_of(policy):
            return make()

    return made


@contextlib.contextmanager
def policy_of(policy):
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(before)


MODELS = {
    "a dense layer with a softmax": lambda: ending(dense(activation="softmax")),
    "logits": lambda: ending(dense()),
    "a temperature": lambda: ending(dense(), softmax_at_50),
    "a strong prior": lambda: ending(dense(), lambda z: ops.softmax(z + np.float32([0, 100, 0]))),
    "negated by a layer": lambda: ending(dense(), L.Rescaling(-1.0), L.Softmax()),
    "a softmax layer": lambda: ending(dense(), L.Softmax()),
    "an activation layer": lambda: ending(dense(), L.Activation("softmax")),
    "TensorFlow's softmax": lambda: ending(dense(activation=tf.nn.softmax)),
    "named softmax": lambda: ending(dense(activation=softmax_at_50)),
    "a softmax that is spelled out": lambda: ending(
        dense(), lambda z: ops.exp(z) / ops.sum(ops.exp(z), axis=-1, keepdims=True)
    ),
    "a softmax, then squared": lambda: ending(
        dense(activation="softmax"), lambda p: p**2 / ops.sum(p**2, axis=-1, keepdims=True)
    ),
    "a softmax, then mixed": its_softmax_and_a_calibration,
    "a softmax, then a linear activation": lambda: ending(
        dense(activation="softmax"), L.Activation("linear", dtype="float32")
    ),
    "a softmax, then dropout": lambda: ending(dense(activation="softmax"), L.Dropout(0.5)),
    "two heads, averaged": lambda: ending(
        lambda x: (dense(activation="softmax")(x) + dense(activation="softmax")(-x)) / 2
    ),
    "one layer twice": a_layer_used_twice,
    "its last layer twice": a_dense_layer_used_twice_at_the_end,
    "called again": called_again,
    "called again, with more before it": lambda: called_again(L.Rescaling(-1.0)),
    "Sequential, built late": sequential_built_late,
    "Sequential, fitted": sequential_fitted,
    "a list of one input and one output": in_a_list,
    "a dictionary of one output": in_a_dictionary,
    "pooling inside a model": transfer_with_pooling_inside,
    "wrapped twice": wrapped,
    "its head in a model": head_in_a_model,
    "two ways around a model": two_ways_around_a_model,
    "a call of its own": call_of_its_own,
    "mixed_float16": in_policy("mixed_float16"),
    "mixed_bfloat16": in_policy("mixed_bfloat16"),
    "float16": in_policy("float16"),
    "float64": in_policy("float64"),
    "mixed, an end in full": in_policy(
        "mixed_float16", lambda: ending(dense(), L.Activation("softmax", dtype="float32"))
    ),
    "8-bit": quantised,
}
HALF = {"mixed_float16", "mixed_bfloat16", "float16", "mixed, an end in full"}
WITHOUT_A_MAP = {"two ways around a model", "a call of its own"}
#: Of those that are found in the same way, one is compiled with its map.
COMPILED = {
    "logits", "a temperature", "one layer twice", "wrapped twice", "pooling inside a model",
    "a dictionary of one output", "mixed_float16", "8-bit",
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    return request.param


@functools.cache
def convolves(policy):
    """Whether Keras itself convolves in these 16 bits here: oneDNN has no kernel for bfloat16 where
    it is held to instructions without AVX-512, and TensorFlow does not look before it asks."""
    images = np.zeros((1, *SIZE, 3), "float32")
    try:
        L.Conv2D(1, 3, dtype=policy)(images)
    except tf.errors.OpError:
        return False
    return True


@pytest.fixture(scope="module")
def classifier(kind) -> Classifier:
    if kind == "mixed_bfloat16" and not convolves(kind):
        pytest.skip("TensorFlow has no convolution in bfloat16 with these instructions")
    return Classifier(MODELS[kind](), preprocess=scaled)


def own_answer(classifier, images):
    """What the model itself says, in float64."""
    found = classifier.model.predict(np.asarray(scaled(images)), verbose=0)
    rows = np.asarray(next(iter(found.values())) if isinstance(found, dict) else found, np.float64)
    if np.allclose(rows.sum(axis=1), 1, atol=0.02) and rows.min() >= 0:
        return rows
    return softmax(rows)


def tolerance(kind):
    # 16 bits hold three digits, and a compiled prediction rounds in other places.
    return 0.03 if kind in HALF else 1e-4


def test_the_classifier_says_what_its_model_says(kind, classifier):
    images = photos(4)
    expected = own_answer(classifier, images)
    if kind not in ("a strong prior", "8-bit"):
        assert np.ptp(expected, axis=0).max() > 1e-3, "the pictures are all the same to this model"
    np.testing.assert_allclose(classifier.predict(images), expected, atol=tolerance(kind))


def test_the_gradient_leads_away_from_the_label(kind, classifier):
    images = photos(4)
    labels = own_answer(classifier, images).argmax(axis=1)
    gradient, probabilities = classifier.loss_gradient(images, labels)
    np.testing.assert_allclose(probabilities, classifier.predict(images), atol=1e-3)
    if kind != "a strong prior":
        assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()
    attacked = fgsm(classifier, images, labels, eps=2)
    rows = np.arange(4)
    before = own_answer(classifier, images)[rows, labels]
    after = own_answer(classifier, attacked)[rows, labels]
    assert (after <= before + tolerance(kind)).all()
    if kind not in ("a strong prior", *HALF):
        assert after.sum() < before.sum()


def test_a_defended_model_with_nothing_in_it_is_the_model(kind, classifier):
    images = photos(3)
    found = np.asarray(defended_model(classifier, NOTHING)(images))
    np.testing.assert_allclose(found, own_answer(classifier, images), atol=tolerance(kind))
    logits = np.asarray(defended_model(classifier, NOTHING, logits=True)(images), np.float64)
    expected = own_answer(classifier, images)
    np.testing.assert_allclose(softmax(logits), expected, atol=tolerance(kind))


def test_the_maps_are_of_the_same_network_in_numpy_and_in_the_graph(kind, classifier):
    images = photos(2)
    if kind in WITHOUT_A_MAP:
        with pytest.raises(ValueError, match="no feature map"):
            robust_cam(classifier, images)
        return
    maps = robust_cam(classifier, images)
    assert maps.shape == (2, *SIZE)
    assert np.isfinite(maps).all()
    if kind not in COMPILED:
        return
    answer = defended_model(classifier, WHOLE, seed=0)(images)
    assert np.isfinite(np.asarray(answer)).all()
    assert np.asarray(answer).shape == (2, len(classifier.class_ids))


LINEAR_HEADS = (
    "logits", "a softmax layer", "called again", "Sequential, built late", "pooling inside a model",
    "wrapped twice", "float64",
)  # fmt: skip


@pytest.mark.parametrize("kind", LINEAR_HEADS)
def test_the_class_activation_map_is_that_of_the_weights(kind):
    classifier = Classifier(MODELS[kind](), preprocess=scaled)
    images = photos(2)
    maps = classifier.features(images).maps.astype(np.float64)
    weights = np.asarray(
        next(w for w in classifier.model.get_weights() if w.shape == (6, 3)), np.float64
    )
    np.testing.assert_allclose(classifier.head_weights, weights, rtol=1e-6)
    small = np.einsum("nhwc,c->nhw", maps, weights[:, 1])
    spots = cam(classifier, images, 1)
    # The hottest cell of the small map is where the large one is hottest.
    for map_, cells in zip(spots, small, strict=True):
        row, column = np.unravel_index(map_.argmax(), map_.shape)
        hottest = np.unravel_index(cells.argmax(), cells.shape)
        assert abs(row * 15 / 32 - hottest[0]) < 1.5
        assert abs(column * 15 / 32 - hottest[1]) < 1.5


@pytest.mark.parametrize(
    "kind", ["a temperature", "8-bit", "one layer twice", "its last layer twice"]
)
def test_a_head_that_is_more_than_weights_gets_its_map_by_gradients(kind):
    classifier = Classifier(MODELS[kind](), preprocess=scaled)
    assert classifier.head_weights is None
    assert np.isfinite(cam(classifier, photos(2), 1)).all()


# What is refused, and what is taken


def test_logits_that_are_said_to_be_logits_are_taken():
    model = ending(dense(), lambda z: z / 50)
    classifier = Classifier(model, preprocess=scaled, logits=True)
    z = model.predict(np.asarray(scaled(photos(3))), verbose=0).astype(np.float64)
    np.testing.assert_allclose(classifier.predict(photos(3)), softmax(z), atol=1e-5)


def test_probabilities_that_are_said_to_be_logits_are_not():
    with pytest.raises(ValueError, match="logits=True, but its outputs for noise are prob"):
        Classifier(ending(dense(), softmax_at_50), logits=True)


def test_a_predict_of_its_own_is_refused_where_it_differs():
    class Tempered(keras.Model):
        def predict_step(self, data):
            return super().predict_step(data) ** 2

    inputs = keras.Input((*SIZE, 3))
    model = Tempered(inputs, dense(activation="softmax")(pooled(inputs)))
    with pytest.raises(ValueError, match="predict gives something else than calling it"):
        Classifier(model, preprocess=scaled)


def test_a_model_that_rounds_its_images_has_no_gradient():
    inputs = keras.Input((*SIZE, 3), dtype="uint8")
    model = keras.Model(inputs, dense()(pooled(L.Rescaling(1 / 127.5, -1)(inputs))))
    classifier = Classifier(model)
    np.testing.assert_allclose(classifier.predict(photos(2)).sum(axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="no gradient by its pixels"):
        classifier.loss_gradient(photos(2), 0)


def test_a_black_box_that_stops_giving_probabilities_is_caught():
    # On noise it gives probabilities; on a black picture it does not.
    def odd(p):
        return ops.softmax(p) * ops.where(ops.max(ops.abs(p)) < 1e-3, 3.0, 1.0)

    inputs = keras.Input((*SIZE, 3))
    x = L.Dense(3, use_bias=False)(L.GlobalAveragePooling2D()(inputs))
    classifier = Classifier(keras.Model(inputs, odd(x)))
    with pytest.raises(ValueError, match="was taken to give probabilities"):
        classifier.predict(np.zeros((1, *SIZE, 3), dtype=np.float32))


# A defended model is a model


def test_a_defended_model_is_a_classifier_as_any_other(tmp_path):
    made = Classifier(ending(dense(4, activation="softmax")), preprocess=scaled)
    defended_model(made, Defense(deflections=30), seed=1).save(tmp_path / "defended.keras")
    loaded = classifier_from_file(tmp_path / "defended.keras", preprocess="0..255")
    images = photos(3)
    many = np.mean([loaded.predict(images) for _ in range(10)], axis=0)
    expected = Defense(deflections=30, runs=10).predict(made, images, rng=0)
    np.testing.assert_allclose(many, expected, atol=0.08)
    gradient, _ = loaded.loss_gradient(images, 0)
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()


def test_the_logits_of_several_runs_are_those_of_their_mean():
    made = Classifier(ending(dense(4)), preprocess=scaled)
    defense = Defense(deflections=0, runs=3)
    logits = defended_model(made, defense, logits=True)(photos(2))
    expected = np.asarray(defended_model(made, defense)(photos(2)), dtype=np.float64)
    np.testing.assert_allclose(softmax(np.asarray(logits, np.float64)), expected, atol=1e-5)
    with pytest.raises(ValueError, match="aggregate='majority'"):
        defended_model(made, Defense(runs=3, aggregate="majority"), logits=True)


# Networks of few classes


@pytest.mark.parametrize("classes", [2, 4])
def test_the_map_goes_over_all_classes_of_a_network_of_few(classes):
    made = Classifier(ending(dense(classes, activation="softmax")), preprocess=scaled)
    images = photos(2)
    np.testing.assert_array_equal(robust_cam(made, images), robust_cam(made, images, k=classes))
    assert Defense(activation="rcam").predict(made, images, rng=0).shape == (2, classes)
    assert defended_model(made, WHOLE)(images).shape == (2, classes)
    with pytest.raises(ValueError, match=rf"k: expected 1 to {classes} classes, got 5; .*left out"):
        robust_cam(made, photos(1), k=5)


def test_an_evaluation_names_the_defence_that_a_network_cannot_have():
    # Everything is class 1, whatever the picture: at most the share of class 1 can be right.
    made = Classifier(MODELS["a strong prior"](), preprocess=scaled)
    source = Collection(photos(3), np.array([0, 1, 2]), None, "made")
    with pytest.raises(ValueError, match=r"pd\+rcam:k=5 on .*expected 1 to 3 classes.*left out"):
        evaluate(made, source, [], ["pd+rcam:k=5"])
    flat = Classifier(MODELS["two ways around a model"]())
    with pytest.raises(ValueError, match=r"pd\+cam on .*no feature map"):
        evaluate(flat, source, [], ["pd+cam"])
    found = evaluate(made, source, [], ["pd+rcam+wd"], runs=1).records
    assert set(found.defense) == {"none", "pd+rcam+wd"}
    assert found[found.defense == "none"].predicted.tolist() == [1, 1, 1]


def test_what_comes_after_the_last_weights_tells_two_networks_apart():
    first = ending(dense(3), lambda z: ops.softmax(z / 50))

    def digest(temperature):
        x = ops.softmax(first.layers[3].output / temperature)
        return fingerprint(Classifier(keras.Model(first.inputs, x), preprocess=scaled))

    assert digest(50) == digest(50)
    assert digest(50) != digest(5)


def test_the_policy_of_keras_does_not_touch_the_defence():
    plain = Classifier(ending(dense(activation="softmax")), preprocess=scaled)
    expected = np.asarray(defended_model(plain, WHOLE, seed=3)(photos(2)))
    with policy_of("mixed_float16"):
        found = np.asarray(defended_model(plain, WHOLE, seed=3)(photos(2)))
    np.testing.assert_allclose(found, expected, atol=1e-4)
