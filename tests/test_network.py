import contextlib
import functools
import warnings

import numpy as np
import pytest
from conftest import functional, photos
from numpy.testing import assert_allclose, assert_array_equal

from pdutils._network import Network
from pdutils._utils import load_tensorflow
from pdutils.activation import cam, robust_cam
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
SHAPE = (16, 16, 3)

#: The parameter is the class, so that each test builds layers of its own.
Pool = L.GlobalAveragePooling2D


def scaled(images):
    return images / 127.5 - 1


def layer(kind, *args, seed=2, spread=4.0, **options):
    """A layer whose answers differ enough between pictures for a test to see it."""
    start = keras.initializers.RandomNormal(stddev=spread, seed=seed)
    bias = keras.initializers.RandomNormal(stddev=0.2, seed=seed)
    return kind(*args, kernel_initializer=start, bias_initializer=bias, **options)


def conv(channels: int = 6, seed: int = 1, **options):
    return layer(L.Conv2D, channels, 3, seed=seed, spread=0.5, activation="tanh", **options)


def dense(classes: int = 3, **options):
    return layer(L.Dense, classes, **options)


def soft(classes: int = 3, **options):
    return dense(classes, activation="softmax", **options)


def pooled(inputs):
    return Pool()(conv(strides=2)(inputs))


def after_conv(*layers):
    return functional(conv(strides=2), *layers, shape=SHAPE)


def ending(*tail):
    return after_conv(Pool(), *tail)


def sequential(*layers, shape=SHAPE):
    return keras.Sequential([keras.Input(shape), *layers])


def pictures(n: int = 3) -> np.ndarray:
    return photos(n, *SHAPE[:2])


def wrapped(model, **options) -> Classifier:
    return Classifier(model, preprocess=scaled, **options)


def network(model) -> Network:
    return Network(model, scaled, SHAPE[:2])


def softmax(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def own_answer(model, images):
    """What the model itself says, in float64."""
    model.run_eagerly = True
    found = model.predict(np.asarray(scaled(images)), verbose=0)
    rows = np.asarray(next(iter(found.values())) if isinstance(found, dict) else found, np.float64)
    probable = np.allclose(rows.sum(axis=1), 1, atol=0.02) and rows.min() >= 0
    return rows if probable else softmax(rows)


@pytest.mark.parametrize(
    ("tail", "ends_in"),
    [
        (lambda: [dense(activation="relu")], "Dense with relu"),
        (lambda: [dense(activation="sigmoid")], "Dense with sigmoid"),
        (lambda: [dense(), L.Activation("tanh")], "Activation with tanh"),
        (lambda: [dense(), lambda z: z / 50], "TrueDivide"),
        (lambda: [dense(), L.BatchNormalization()], "BatchNormalization"),
        (lambda: [dense(), L.Activation("log_softmax")], "Activation with log_softmax"),
        (lambda: [functional(dense(activation="sigmoid"), shape=(6,))], "Dense with sigmoid"),
        (lambda: [L.Reshape((1, 1, 6)), layer(L.Conv2D, 5, 1), L.Flatten()], "Conv2D with linear"),
    ],
)
def test_an_end_that_is_neither_says_what_it_is(tail, ends_in):
    with pytest.raises(ValueError, match=f"ends in {ends_in} and whose outputs are no prob"):
        network(ending(*tail()))


@pytest.mark.parametrize(
    ("own", "after"),
    [("sigmoid", []), (None, [L.Activation("sigmoid")]), (None, [keras.ops.sigmoid])],
    ids=["in the layer", "a layer", "an operation"],
)
def test_a_sigmoid_is_refused_where_it_happens_to_add_up_to_1(own, after):
    # Sure of its first class, whatever it is shown.
    last = L.Dense(3, kernel_initializer="zeros", activation=own)
    model = ending(last, *after)
    last.bias.assign([60.0, -60.0, -60.0])
    assert np.asarray(model(scaled(pictures()))).sum(axis=1) == pytest.approx(1)
    with pytest.raises(ValueError, match="are no probabilities: each class has its own"):
        network(model)


def test_small_probabilities_are_kept_and_the_gradient_lives_where_they_are_0():
    for factor in (40, 3000):
        inner = ending(soft(spread=0.5))
        inner.layers[-1].kernel.assign(inner.layers[-1].kernel * factor)
        made = network(functional(L.Rescaling(1.0), inner, shape=SHAPE))
        own = np.asarray(inner(scaled(pictures())))
        assert (own < 1e-5).any()
        gradient, probabilities = made.step("gradient")(pictures(), own.argmin(axis=1))
        assert_allclose(probabilities, own, rtol=1e-3, atol=1e-11)
        assert (np.abs(np.asarray(gradient)).max(axis=(1, 2, 3)) > 1e-3).all()
    assert (own == 0).any(axis=1).all()


@pytest.mark.parametrize(
    "layers", [lambda: [L.Flatten(), soft()], lambda: [functional(Pool(), shape=SHAPE), soft()]]
)
@pytest.mark.parametrize("made", [functional, sequential])
def test_a_model_without_a_feature_map_in_reach_says_so(made, layers):
    made_network = network(made(*layers(), shape=SHAPE))
    assert made_network.head_weights is None
    for step in ("features", "feature_gradient"):
        with pytest.raises(ValueError, match="no feature map"):
            made_network.step(step)
    assert made_network.step("predict")(pictures())[0].shape == (3, 3)
    assert made_network.step("predict") is made_network.step("predict")


NESTED = {
    "in the open": lambda body: [*body, Pool(), soft()],
    "a backbone": lambda body: [functional(*body, shape=SHAPE), Pool(), soft()],
    "with its pooling": lambda body: [functional(*body, Pool(), shape=SHAPE), soft()],
    "with its head, after a scaling": lambda body: [
        *(L.Rescaling(1.0), functional(*body, Pool(), soft(), shape=SHAPE))
    ],
    "two models deep": lambda body: [
        functional(functional(*body, Pool(), shape=SHAPE), shape=SHAPE),
        dense(),
    ],
    "parted in two models": lambda body: [
        *(functional(*body, shape=SHAPE), functional(Pool(), dense(), shape=(5, 5, 6)))
    ],
}


@pytest.mark.parametrize("made", [functional, sequential])
@pytest.mark.parametrize("kind", NESTED)
def test_the_feature_map_is_found_and_its_gradient_is_the_row_of_the_head(made, kind):
    body = [conv(4, strides=2), conv(seed=4)]
    model = made(*NESTED[kind](body), shape=SHAPE)
    made_network = network(model)
    maps, probabilities = made_network.step("features")(pictures())
    expected = body[1](body[0](scaled(pictures())))
    assert_allclose(np.asarray(maps), np.asarray(expected), atol=1e-6)
    own = np.asarray(model(scaled(pictures())))
    own = own if abs(own.sum(axis=1) - 1).max() < 1e-5 else softmax(own)
    assert_allclose(np.asarray(probabilities), own, atol=1e-6)
    kernel = next(np.asarray(w) for w in model.weights if tuple(w.shape) == (6, 3))
    assert_array_equal(made_network.head_weights, kernel)
    # A logit is the sum over channels of weight times mean, so each pixel counts weight / (5 5).
    labels = np.array([1, 1, 2])
    _, gradient = made_network.step("feature_gradient")(pictures(), labels)
    rows = np.broadcast_to(kernel.T[labels][:, None, None] / 25, gradient.shape)
    assert_allclose(np.asarray(gradient), rows, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "linear"),
    [
        (lambda: [Pool(), L.Dropout(0.5), dense(), L.Softmax()], True),
        (lambda: [Pool(keepdims=True), L.Flatten(), soft()], True),
        (lambda: [Pool(keepdims=True), L.Dropout(0.1), *one_by_one()], True),
        (lambda: [L.Flatten(), soft()], False),
        (lambda: [L.GlobalMaxPooling2D(), soft()], False),
        (lambda: [Pool(), dense(), soft()], False),
        (lambda: [Pool(), dense(activation="relu"), L.Softmax()], False),
        (lambda: [Pool(), L.Activation("relu"), soft()], False),
        (lambda: [Pool(), L.BatchNormalization(), soft()], False),
        (lambda: [Pool(keepdims=True), *one_by_one(size=3)], False),
    ],
)
def test_average_pooling_and_one_dense_layer_have_its_weights_and_any_other_head_none(
    layers, linear
):
    model = after_conv(*layers())
    weights = network(model).head_weights
    assert (weights is not None) == linear
    if linear:
        (kernel,) = (np.asarray(w) for w in model.weights if tuple(w.shape)[-2:] == (6, 3))
        assert_array_equal(weights, kernel.reshape(6, 3))


def one_by_one(size: int = 1, **options):
    """A convolution that is a dense layer, and its softmax."""
    head = layer(L.Conv2D, 3, size, padding="same", **options)
    return [head, L.Reshape((3,)), *([] if options else [L.Activation("softmax")])]


def softmax_at_50(z):
    return ops.softmax(z / 50)


softmax_at_50.__name__ = "softmax"


def calibrated(p):
    mixing = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], dtype=np.float32)
    return L.Dense(3, use_bias=False, kernel_initializer=lambda *_, **__: mixing)(p)


def used_twice(head, between=lambda x: x, after=lambda x: x):
    return ending(lambda x: after(head(between(head(x)))))


def called_again(*before):
    return functional(*before, *ending(soft()).layers[1:], shape=SHAPE)


def otherwise_asked(outputs):
    model = ending(soft())
    return keras.Model(model.inputs if outputs is list else model.inputs[0], outputs(model.outputs))


def built_late(head):
    model = keras.Sequential([conv(strides=2), Pool(), head])
    model.build((None, *SHAPE))
    return model


def fitted():
    model = built_late(soft())
    model.compile(loss="sparse_categorical_crossentropy")
    model.fit(np.zeros((2, *SHAPE)), np.zeros(2), verbose=0)
    return model


def not_in_training():
    base = functional(pooled, shape=SHAPE)
    return functional(lambda x: base(x, training=False), soft(), shape=SHAPE)


def wrapped_twice():
    model = ending(soft())
    for _ in range(2):
        model = sequential(L.Rescaling(0.9), model)
    return model


def two_ways_around_a_model():
    base, around = functional(pooled, shape=SHAPE), L.AveragePooling2D(8)
    both = L.Concatenate()
    return functional(lambda x: both([base(x), L.Flatten()(around(x))]), dense(), shape=SHAPE)


class CalledOtherwise(keras.Model):
    """A model with a graph that does something else when it is called."""

    def call(self, inputs, training=None):
        return ops.softmax(-ops.log(super().call(inputs, training=training)))


class Tempered(keras.Model):
    def predict_step(self, data):
        return super().predict_step(data) ** 2


def of_class(kind):
    inputs = keras.Input(SHAPE)
    return kind(inputs, soft()(pooled(inputs)))


def quantised():
    model = ending(soft())
    with warnings.catch_warnings():
        # Keras warns of each layer that has nothing to quantise.
        warnings.simplefilter("ignore")
        model.quantize("int8")
    return model


@contextlib.contextmanager
def policy_of(policy):
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def in_policy(policy, make=lambda: ending(soft())):
    with policy_of(policy):
        return make()


MODELS = {
    "a dense layer with a softmax": lambda: ending(soft()),
    "logits": lambda: ending(dense()),
    "a temperature": lambda: ending(dense(), softmax_at_50),
    "a strong prior": lambda: ending(dense(), lambda z: ops.softmax(z + np.float32([0, 100, 0]))),
    "negated by a layer": lambda: ending(dense(), L.Rescaling(-1.0), L.Softmax()),
    "no bias": lambda: ending(soft(use_bias=False)),
    "no pooling": lambda: after_conv(L.Flatten(), soft(spread=0.1)),
    "a convolution as the head": lambda: after_conv(Pool(keepdims=True), *one_by_one()),
    "a softmax of another shape": lambda: after_conv(
        Pool(keepdims=True), *one_by_one(activation="softmax")
    ),
    "nested logits": lambda: after_conv(functional(Pool(), dense(), shape=(7, 7, 6))),
    "a softmax layer": lambda: ending(dense(), L.Softmax()),
    "an activation layer": lambda: ending(dense(), L.Activation("softmax")),
    "TensorFlow's softmax": lambda: ending(dense(activation=tf.nn.softmax)),
    "named softmax": lambda: ending(dense(activation=softmax_at_50)),
    "a softmax that is spelled out": lambda: ending(
        dense(), lambda z: ops.exp(z) / ops.sum(ops.exp(z), axis=-1, keepdims=True)
    ),
    "a softmax, then squared": lambda: ending(
        soft(), lambda p: p**2 / ops.sum(p**2, axis=-1, keepdims=True)
    ),
    "a softmax, then mixed": lambda: ending(soft(), calibrated),
    "a softmax, then a linear activation": lambda: ending(
        soft(), L.Activation("linear", dtype="float32")
    ),
    "a softmax, then dropout": lambda: ending(soft(), L.Dropout(0.5)),
    "two heads, averaged": lambda: ending(lambda x: (soft()(x) + soft()(-x)) / 2),
    "one layer twice": lambda: used_twice(dense(6), ops.tanh, ops.softmax),
    "its last layer twice": lambda: used_twice(soft(6)),
    "called again": called_again,
    "called again, with more before it": lambda: called_again(L.Rescaling(-1.0)),
    "Sequential, built late": lambda: built_late(dense()),
    "Sequential, fitted": fitted,
    "a list of one input and one output": lambda: otherwise_asked(list),
    "a dictionary of one output": lambda: otherwise_asked(lambda found: {"answer": found[0]}),
    "pooling inside a model": not_in_training,
    "wrapped twice": wrapped_twice,
    "its head in a model": lambda: ending(sequential(soft(), shape=(6,))),
    "two ways around a model": two_ways_around_a_model,
    "a call of its own": lambda: of_class(CalledOtherwise),
    "mixed_float16": lambda: in_policy("mixed_float16"),
    "mixed_bfloat16": lambda: in_policy("mixed_bfloat16"),
    "float16": lambda: in_policy("float16"),
    "float64": lambda: in_policy("float64"),
    "mixed, an end in full": lambda: in_policy(
        "mixed_float16", lambda: ending(dense(), L.Activation("softmax", dtype="float32"))
    ),
    "8-bit": quantised,
}
HALF = {"mixed_float16", "mixed_bfloat16", "float16", "mixed, an end in full"}
LINEAR = {
    "logits", "a softmax layer", "called again", "Sequential, built late", "pooling inside a model",
    "wrapped twice", "float64",
}  # fmt: skip
MORE_THAN_WEIGHTS = {"a temperature", "8-bit", "one layer twice", "its last layer twice"}
WITHOUT_A_MAP = {"two ways around a model", "a call of its own"}
#: Of those that are found in the same way, one is compiled with its map.
COMPILED = {
    "logits", "a temperature", "one layer twice", "wrapped twice", "pooling inside a model",
    "a dictionary of one output", "mixed_float16", "8-bit",
}  # fmt: skip


@functools.cache
def convolves(policy):
    """Whether Keras itself convolves in these 16 bits here: oneDNN has no kernel for bfloat16 where
    it is held to instructions without AVX-512, and TensorFlow does not look before it asks."""
    try:
        L.Conv2D(1, 3, dtype=policy)(np.zeros((1, *SHAPE), "float32"))
    except tf.errors.OpError:
        return False
    return True


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """A kind of network, with pictures and what its model says of them."""
    if request.param == "mixed_bfloat16" and not convolves(request.param):
        pytest.skip("TensorFlow has no convolution in bfloat16 with these instructions")
    classifier = wrapped(MODELS[request.param]())
    return request.param, classifier, pictures(4), own_answer(classifier.model, pictures(4))


def tolerance(kind):
    # 16 bits hold three digits, and a compiled prediction rounds in other places.
    return 0.03 if kind in HALF else 1e-4


def test_the_prediction_is_the_model_s_and_its_gradient_that_of_finite_differences(case):
    kind, classifier, images, own = case
    if kind not in ("a strong prior", "8-bit"):
        assert np.ptp(own, axis=0).max() > 1e-3, "the pictures are all the same to this model"
    assert_allclose(classifier.predict(images), own, atol=tolerance(kind))
    if kind == "a strong prior":
        return
    # The second best, of which no network here is sure.
    labels = own.argsort(axis=1)[:, -2]
    gradient, probabilities = classifier.loss_gradient(images, labels)
    assert_allclose(probabilities, own, atol=max(1e-3, tolerance(kind)))
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()

    def losses(moved):
        return -np.log(classifier.predict(moved).astype(np.float64)[np.arange(4), labels])

    if kind in (*HALF, "8-bit"):
        # Too coarse for differences: one step along the signs leads away from the label.
        gained = losses(images + 2 * np.sign(gradient)) - losses(images)
        assert gained.sum() > (-0.03 if kind in HALF else 0)
        return
    rng = np.random.default_rng(0)
    for _ in range(5):
        direction = rng.choice([-1.0, 1.0], images.shape).astype(np.float32)
        slope = (losses(images + 2 * direction) - losses(images - 2 * direction)) / 4
        expected = (gradient * direction).sum(axis=(1, 2, 3))
        size = np.sqrt((gradient**2).sum(axis=(1, 2, 3)))
        assert (np.abs(slope - expected) < 0.05 * size + 2e-6).all()


def test_a_defended_model_with_nothing_in_it_is_the_model(case):
    kind, classifier, images, own = case
    found = np.asarray(defended_model(classifier, NOTHING)(images))
    assert_allclose(found, own, atol=tolerance(kind))
    logits = defended_model(classifier, NOTHING, logits=True)(images)
    assert_allclose(softmax(logits), own, atol=tolerance(kind))


def test_the_maps_are_of_the_same_network_in_numpy_and_in_the_graph(case):
    kind, classifier, images, _ = case
    if kind in WITHOUT_A_MAP:
        with pytest.raises(ValueError, match="no feature map"):
            robust_cam(classifier, images)
        return
    maps = robust_cam(classifier, images)
    assert maps.shape == (4, *SHAPE[:2])
    assert np.isfinite(maps).all()
    if kind in LINEAR:
        weights = next(w for w in classifier.model.get_weights() if w.shape == (6, 3))
        assert_allclose(classifier.head_weights, weights, rtol=1e-6)
        small = classifier.features(images).maps.astype(np.float64) @ weights[:, 1]
        # The hottest cell of the small map is where the large one is hottest.
        for map_, cells in zip(cam(classifier, images, 1), small, strict=True):
            place = np.array(np.unravel_index(map_.argmax(), map_.shape))
            hottest = np.unravel_index(cells.argmax(), cells.shape)
            assert (np.abs(place * 7 / 16 - hottest) < 1.5).all()
    elif kind in MORE_THAN_WEIGHTS:
        assert classifier.head_weights is None
        assert np.isfinite(cam(classifier, images, 1)).all()
    if kind in COMPILED:
        answer = np.asarray(defended_model(classifier, WHOLE, seed=0)(images))
        assert np.isfinite(answer).all()
        assert answer.shape == (4, len(classifier.class_ids))


def test_what_is_said_of_logits_is_taken_where_it_can_be():
    model = ending(dense(), lambda z: z / 50)
    z = model.predict(np.asarray(scaled(pictures())), verbose=0)
    assert_allclose(wrapped(model, logits=True).predict(pictures()), softmax(z), atol=1e-5)
    with pytest.raises(ValueError, match="logits=True, but its outputs for noise are prob"):
        Classifier(ending(dense(), softmax_at_50), logits=True)


def test_a_predict_of_its_own_is_refused_where_it_differs():
    with pytest.raises(ValueError, match="predict gives something else than calling it"):
        wrapped(of_class(Tempered))


def test_a_model_that_rounds_its_images_has_no_gradient():
    inputs = keras.Input(SHAPE, dtype="uint8")
    classifier = Classifier(
        keras.Model(inputs, dense()(pooled(L.Rescaling(1 / 127.5, -1)(inputs))))
    )
    assert_allclose(classifier.predict(pictures()).sum(axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="no gradient by its pixels"):
        classifier.loss_gradient(pictures(), 0)


def test_a_black_box_that_stops_giving_probabilities_is_caught():
    # On noise it gives probabilities; on a black picture it does not.
    def odd(p):
        return ops.softmax(p) * ops.where(ops.max(ops.abs(p)) < 1e-3, 3.0, 1.0)

    classifier = Classifier(functional(Pool(), L.Dense(3, use_bias=False), odd, shape=SHAPE))
    with pytest.raises(ValueError, match="was taken to give probabilities"):
        classifier.predict(np.zeros((1, *SHAPE), dtype=np.float32))


def test_a_defended_model_is_a_classifier_as_any_other(tmp_path):
    made = wrapped(ending(soft(4, spread=1.0)))
    defended_model(made, Defense(deflections=30), seed=1).save(tmp_path / "defended.keras")
    loaded = classifier_from_file(tmp_path / "defended.keras", preprocess="0..255")
    images = pictures()
    answers = loaded.predict(np.repeat(images, 10, axis=0)).reshape(3, 10, 4)
    expected = Defense(deflections=30, runs=10).predict(made, images, rng=0)
    assert_allclose(answers.mean(axis=1), expected, atol=0.08)
    # The derivative of denoising takes seconds to compile.
    deflecting = Classifier(defended_model(made, Defense(deflections=30, denoiser=None)))
    gradient, _ = deflecting.loss_gradient(images, 0)
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()


def test_the_logits_of_several_runs_are_those_of_their_mean():
    made, defense = wrapped(ending(dense(4))), Defense(deflections=0, runs=3)
    logits = defended_model(made, defense, logits=True)(pictures())
    expected = np.asarray(defended_model(made, defense)(pictures()), dtype=np.float64)
    assert_allclose(softmax(logits), expected, atol=1e-5)
    with pytest.raises(ValueError, match="aggregate='majority'"):
        defended_model(made, Defense(runs=3, aggregate="majority"), logits=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_map_goes_over_all_classes_of_a_network_of_few(classes):
    made, images = wrapped(ending(soft(classes))), pictures()
    assert_array_equal(robust_cam(made, images), robust_cam(made, images, k=classes))
    assert Defense(activation="rcam").predict(made, images, rng=0).shape == (3, classes)
    assert defended_model(made, WHOLE)(images).shape == (3, classes)
    with pytest.raises(ValueError, match=rf"k: expected 1 to {classes} classes, got 5; .*left out"):
        robust_cam(made, images, k=5)


def test_an_evaluation_names_the_defence_that_a_network_cannot_have():
    # Everything is class 1, whatever the picture: at most the share of class 1 can be right.
    made = wrapped(MODELS["a strong prior"]())
    source = Collection(pictures(), np.array([0, 1, 2]), None, "made")
    with pytest.raises(ValueError, match=r"pd\+rcam:k=5 on .*expected 1 to 3 classes.*left out"):
        evaluate(made, source, [], ["pd+rcam:k=5"])
    with pytest.raises(ValueError, match=r"pd\+cam on .*no feature map"):
        evaluate(Classifier(two_ways_around_a_model()), source, [], ["pd+cam"])
    found = evaluate(made, source, [], ["pd+rcam+wd"], runs=1).records
    assert set(found.defense) == {"none", "pd+rcam+wd"}
    assert found[found.defense == "none"].predicted.tolist() == [1, 1, 1]


def test_what_comes_after_the_last_weights_tells_two_networks_apart():
    first = ending(dense())

    def digest(temperature):
        cooled = ops.softmax(first.outputs[0] / temperature)
        return fingerprint(wrapped(keras.Model(first.inputs, cooled)))

    assert digest(50) == digest(50) != digest(5)


def test_the_policy_of_keras_does_not_touch_the_defence():
    plain = wrapped(ending(soft()))
    expected = np.asarray(defended_model(plain, WHOLE, seed=3)(pictures()))
    with policy_of("mixed_float16"):
        found = np.asarray(defended_model(plain, WHOLE, seed=3)(pictures()))
    assert_allclose(found, expected, atol=1e-4)
