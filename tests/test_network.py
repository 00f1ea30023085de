import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import photos

from pdutils._network import Network, load_tensorflow

load_tensorflow()
import keras  # noqa: E402

SIZE = (12, 12)
LAYERS = keras.layers

#: The parameter is the class, so that each test builds layers of its own.
Pool = LAYERS.GlobalAveragePooling2D


def layer(kind, *args, seed: int = 0, **options):
    start = keras.initializers.GlorotUniform(seed=seed)
    if options.get("use_bias", True):
        options["bias_initializer"] = keras.initializers.RandomNormal(stddev=0.3, seed=seed)
    return kind(*args, kernel_initializer=start, **options)


def conv(channels: int = 4, seed: int = 1, **options):
    return layer(LAYERS.Conv2D, channels, 3, seed=seed, activation="tanh", **options)


def dense(seed: int = 2, **options):
    return layer(LAYERS.Dense, 5, seed=seed, **options)


def functional(*layers, shape=(*SIZE, 3)):
    x = inputs = keras.Input(shape)
    for item in layers:
        x = item(x)
    return keras.Model(inputs, x)


def sequential(*layers):
    return keras.Sequential([keras.Input((*SIZE, 3)), *layers])


def scaled(images):
    return images / 127.5 - 1


def network(model) -> Network:
    return Network(model, scaled, SIZE)


def batch(n: int = 3) -> np.ndarray:
    return photos(n, *SIZE)


def predicted(made: Network) -> np.ndarray:
    (probabilities,) = made.step("predict")(batch())
    return np.asarray(probabilities)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def own_output(model) -> np.ndarray:
    return np.asarray(model(scaled(batch())))


def tensorflow_softmax():
    import tensorflow as tf

    return tf.nn.softmax


GIVES_PROBABILITIES = {
    "dense with softmax": lambda: [conv(), Pool(), dense(activation="softmax")],
    "dense with TensorFlow's softmax": lambda: [
        conv(),
        Pool(),
        dense(activation=tensorflow_softmax()),
    ],
    "dense, then a softmax layer": lambda: [conv(), Pool(), dense(), LAYERS.Softmax()],
    "dense, then an activation layer": lambda: [
        conv(),
        Pool(),
        dense(),
        LAYERS.Activation("softmax"),
    ],
    "dense without a bias": lambda: [
        conv(),
        Pool(),
        dense(activation="softmax", use_bias=False),
    ],
    "no average pooling": lambda: [conv(), LAYERS.Flatten(), dense(activation="softmax")],
    "convolution as the head": lambda: [
        conv(),
        Pool(keepdims=True),
        layer(LAYERS.Conv2D, 5, 1),
        LAYERS.Reshape((5,)),
        LAYERS.Activation("softmax"),
    ],
    "a nested classifier": lambda: [
        functional(conv(), Pool(), dense(activation="softmax")),
    ],
    "a softmax of another shape": lambda: [
        conv(),
        Pool(keepdims=True),
        layer(LAYERS.Conv2D, 5, 1, activation="softmax"),
        LAYERS.Flatten(),
    ],
}

GIVES_LOGITS = {
    "dense": lambda: [conv(), Pool(), dense()],
    "dense, then no activation": lambda: [conv(), Pool(), dense(), LAYERS.Activation("linear")],
}


# From pixels to probabilities


@pytest.mark.parametrize("made", [functional, sequential])
@pytest.mark.parametrize("kind", GIVES_PROBABILITIES)
def test_the_softmax_of_the_logits_is_the_model_s_own_output(made, kind):
    model = made(*GIVES_PROBABILITIES[kind]())
    np.testing.assert_allclose(predicted(network(model)), own_output(model), atol=1e-6)


@pytest.mark.parametrize("made", [functional, sequential])
@pytest.mark.parametrize("kind", GIVES_LOGITS)
def test_a_model_of_logits_is_given_its_softmax(made, kind):
    model = made(*GIVES_LOGITS[kind]())
    np.testing.assert_allclose(predicted(network(model)), softmax(own_output(model)), atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh"])
def test_another_last_activation_is_refused(activation):
    with pytest.raises(ValueError, match=f"one that ends in .* with {activation} and"):
        network(functional(conv(), Pool(), dense(activation=activation)))
    with pytest.raises(ValueError, match=f"one that ends in .* with {activation} and"):
        network(functional(conv(), Pool(), dense(), LAYERS.Activation(activation)))


@pytest.mark.parametrize(
    ("own", "after"),
    [("sigmoid", []), (None, [LAYERS.Activation("sigmoid")]), (None, [keras.ops.sigmoid])],
    ids=["in the layer", "a layer", "an operation"],
)
def test_a_sigmoid_is_refused_where_it_happens_to_add_up_to_1(own, after):
    # Sure of its first class, whatever it is shown.
    last = LAYERS.Dense(3, kernel_initializer="zeros", activation=own)
    model = functional(conv(), Pool(), last, *after)
    last.bias.assign([60.0, -60.0, -60.0])
    assert own_output(model).sum(axis=1) == pytest.approx(1)
    with pytest.raises(ValueError, match="are no probabilities: each class has its own"):
        network(model)


def test_a_nested_model_that_gives_no_probabilities_is_refused():
    inner = functional(conv(), Pool(), dense(activation="sigmoid"))
    with pytest.raises(ValueError, match="ends in Dense with sigmoid and whose outputs are no pro"):
        network(functional(LAYERS.Rescaling(3.0), inner))


def test_a_nested_model_of_logits_is_given_its_softmax():
    model = functional(LAYERS.Rescaling(3.0), functional(conv(), Pool(), dense()))
    np.testing.assert_allclose(predicted(network(model)), softmax(own_output(model)), atol=1e-6)


def test_logits_behind_a_flatten_layer_are_refused():
    head = layer(LAYERS.Conv2D, 5, 1)
    with pytest.raises(ValueError, match="ends in Conv2D with linear and whose"):
        network(functional(conv(), Pool(keepdims=True), head, LAYERS.Flatten()))


def test_half_precision_is_predicted_in_full():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        models = [functional(*GIVES_PROBABILITIES[kind]()) for kind in GIVES_PROBABILITIES]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for model in models:
        np.testing.assert_allclose(predicted(network(model)), own_output(model), atol=3e-3)


def test_small_probabilities_of_a_nested_classifier_are_kept():
    inner = functional(conv(), Pool(), dense(activation="softmax"))
    inner.layers[-1].kernel.assign(inner.layers[-1].kernel * 40)
    model = functional(LAYERS.Rescaling(1.0), inner)
    expected = own_output(model)
    assert (expected < 1e-5).any()
    np.testing.assert_allclose(predicted(network(model)), expected, rtol=1e-4, atol=1e-11)


def test_a_model_with_dropout_predicts_without_it():
    plain = [conv(), Pool(), dense(activation="softmax")]
    dropping = [conv(), Pool(), LAYERS.Dropout(0.9), dense(activation="softmax")]
    expected = predicted(network(functional(*plain)))
    np.testing.assert_allclose(predicted(network(functional(*dropping))), expected, atol=1e-6)


# The gradient


@pytest.mark.parametrize("kind", [*GIVES_PROBABILITIES, *GIVES_LOGITS])
def test_the_gradient_is_that_of_finite_differences(kind):
    make = {**GIVES_PROBABILITIES, **GIVES_LOGITS}[kind]
    made = network(functional(*make()))
    images, labels = batch(), np.array([0, 4, 2])
    gradient, probabilities = (np.asarray(a) for a in made.step("gradient")(images, labels))
    np.testing.assert_allclose(probabilities, predicted(made), atol=1e-6)

    def losses(shifted):
        (rows,) = made.step("predict")(shifted)
        return -np.log(np.asarray(rows, dtype=np.float64)[np.arange(3), labels])

    rng = np.random.default_rng(0)
    for _ in range(5):
        direction = rng.choice([-1.0, 1.0], images.shape).astype(np.float32)
        slope = (losses(images + 2 * direction) - losses(images - 2 * direction)) / 4
        expected = (gradient * direction).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(slope, expected, rtol=0.02, atol=2e-5)


def test_the_gradient_lives_where_a_probability_has_rounded_to_0():
    model = functional(conv(), Pool(), dense(activation="softmax"))
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 3000)
    made = network(model)
    best = predicted(made).argmax(axis=1)
    assert (own_output(model) == 0).any(axis=1).all()
    labels = own_output(model).argmin(axis=1)
    assert (labels != best).all()
    gradient, _ = made.step("gradient")(batch(), labels)
    assert (np.abs(np.asarray(gradient)).max(axis=(1, 2, 3)) > 1e-3).all()


# The feature map


def test_the_features_are_what_the_pooling_layer_is_fed():
    model = functional(conv(), conv(6, seed=4), Pool(), dense(activation="softmax"))
    maps, probabilities = network(model).step("features")(batch())
    expected = model.layers[2](model.layers[1](scaled(batch())))
    np.testing.assert_allclose(np.asarray(maps), np.asarray(expected), atol=1e-6)
    np.testing.assert_allclose(np.asarray(probabilities), own_output(model), atol=1e-6)


@pytest.mark.parametrize("made", [functional, sequential])
def test_the_features_of_a_backbone_that_is_one_layer_are_its_output(made):
    backbone = functional(conv(), conv(6, seed=4))
    model = made(LAYERS.Rescaling(1.0), backbone, Pool(), dense(activation="softmax"))
    made_network = network(model)
    maps, _ = made_network.step("features")(batch())
    np.testing.assert_allclose(np.asarray(maps), np.asarray(backbone(scaled(batch()))), atol=1e-6)
    np.testing.assert_array_equal(made_network.head_weights(), model.layers[-1].kernel)


def test_the_feature_gradient_of_an_averaged_map_is_the_head_s_row():
    model = functional(conv(), Pool(), dense(activation="softmax"))
    labels = np.array([1, 1, 3])
    maps, gradient = network(model).step("feature_gradient")(batch(), labels)
    # A logit is the sum over channels of weight times mean, so each pixel counts weight / (10 10).
    kernel = np.asarray(model.layers[-1].kernel)
    expected = np.broadcast_to(kernel.T[labels][:, None, None] / 100, maps.shape)
    np.testing.assert_allclose(np.asarray(gradient), expected, atol=1e-7)
    np.testing.assert_allclose(np.asarray(maps), model.layers[1](scaled(batch())), atol=1e-6)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [LAYERS.Flatten(), dense(activation="softmax")],
        lambda: [Pool(), dense(activation="softmax")],
        lambda: [functional(Pool()), dense(activation="softmax")],
    ],
)
@pytest.mark.parametrize("made", [functional, sequential])
def test_a_model_without_a_feature_map_in_reach_says_so(made, layers):
    made_network = network(made(*layers()))
    assert made_network.head_weights() is None
    for step in ("features", "feature_gradient"):
        with pytest.raises(ValueError, match="no feature map"):
            made_network.step(step)
    assert predicted(made_network).shape == (3, 5)


NESTED = {
    "with its pooling": lambda body: [functional(*body, Pool()), dense(activation="softmax")],
    "after a scaling": lambda body: [
        LAYERS.Rescaling(1.0),
        functional(*body, Pool()),
        dense(activation="softmax"),
    ],
    "with its head": lambda body: [
        LAYERS.Rescaling(1.0),
        functional(*body, Pool(), dense(activation="softmax")),
    ],
    "two models deep": lambda body: [functional(functional(*body, Pool())), dense()],
    "parted in two models": lambda body: [
        functional(*body),
        functional(Pool(), dense(), shape=(8, 8, 6)),
    ],
}


@pytest.mark.parametrize("made", [functional, sequential])
@pytest.mark.parametrize("kind", NESTED)
def test_the_feature_map_inside_a_model_is_found(made, kind):
    body = [conv(), conv(6, seed=4)]
    model = made(*NESTED[kind](body))
    made_network = network(model)
    maps, probabilities = made_network.step("features")(batch())
    expected = body[1](body[0](scaled(batch())))
    np.testing.assert_allclose(np.asarray(maps), np.asarray(expected), atol=1e-6)
    np.testing.assert_allclose(np.asarray(probabilities), predicted(made_network), atol=1e-6)
    labels = np.array([1, 1, 3])
    _, gradient = made_network.step("feature_gradient")(batch(), labels)
    kernel = next(np.asarray(w) for w in model.weights if tuple(w.shape) == (6, 5))
    rows = np.broadcast_to(kernel.T[labels][:, None, None] / 64, gradient.shape)
    np.testing.assert_allclose(np.asarray(gradient), rows, atol=1e-6)


# The head


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [conv(), Pool(), dense(activation="softmax")],
        lambda: [conv(), Pool(), dense()],
        lambda: [conv(), Pool(), LAYERS.Dropout(0.5), dense(), LAYERS.Softmax()],
        lambda: [conv(), Pool(keepdims=True), LAYERS.Flatten(), dense(activation="softmax")],
    ],
)
def test_average_pooling_and_one_dense_layer_give_the_dense_layer_s_weights(layers):
    model = functional(*layers())
    (last,) = [item for item in model.layers if isinstance(item, LAYERS.Dense)]
    weights = network(model).head_weights()
    assert weights.shape == (4, 5)
    np.testing.assert_array_equal(weights, np.asarray(last.kernel))


def test_a_1_by_1_convolution_is_a_dense_layer():
    head = layer(LAYERS.Conv2D, 5, 1)
    tail = [LAYERS.Reshape((5,)), LAYERS.Activation("softmax")]
    model = functional(conv(), Pool(keepdims=True), LAYERS.Dropout(0.1), head, *tail)
    np.testing.assert_array_equal(network(model).head_weights(), np.asarray(head.kernel)[0, 0])


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [conv(), LAYERS.Flatten(), dense(activation="softmax")],
        lambda: [conv(), LAYERS.GlobalMaxPooling2D(), dense(activation="softmax")],
        lambda: [conv(), Pool(), dense(), dense(activation="softmax")],
        lambda: [conv(), Pool(), dense(activation="relu"), LAYERS.Softmax()],
        lambda: [conv(), Pool(), LAYERS.Activation("relu"), dense(activation="softmax")],
        lambda: [conv(), Pool(), LAYERS.BatchNormalization(), dense(activation="softmax")],
        lambda: [
            conv(),
            Pool(keepdims=True),
            layer(LAYERS.Conv2D, 5, 3, padding="same"),
            LAYERS.Flatten(),
            LAYERS.Softmax(),
        ],
    ],
)
def test_any_other_head_has_no_weights(layers):
    assert network(functional(*layers())).head_weights() is None


def test_a_step_is_made_once():
    made = network(functional(conv(), Pool(), dense(activation="softmax")))
    first = made.step("predict")
    assert made.step("features") is not first
    assert made.step("predict") is first


# Loading TensorFlow


def run(tmp_path: Path, tensorflow: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which TensorFlow is a file of these lines."""
    (tmp_path / "tensorflow.py").write_text(tensorflow)
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(tmp_path), str(root)])
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


LOAD = "from pdutils._utils import load_tensorflow; load_tensorflow()"


def test_start_up_chatter_is_not_shown(tmp_path):
    chatter = "import os; os.write(2, b'cuda is missing')"
    after = "import sys, os; sys.stderr.write('py '); sys.stderr.flush(); os.write(2, b'low')"
    result = run(tmp_path, chatter, f"{LOAD}; {after}")
    assert result.returncode == 0
    assert result.stderr == "py low"


def test_the_chatter_is_shown_where_the_import_fails(tmp_path):
    broken = "import os; os.write(2, b'no such library'); raise ImportError('broken')"
    result = run(tmp_path, broken, LOAD)
    assert result.returncode != 0
    assert "no such library" in result.stderr
    assert "ImportError: broken" in result.stderr


def test_importing_the_package_does_not_load_tensorflow(tmp_path):
    modules = "images, _utils, downloads, classifiers, attacks, defenses, evaluation"
    program = (
        f"import sys; from pdutils import {modules}; "
        "import pdutils.defenses.pipeline, pdutils.evaluation.evaluate; "
        "assert 'tensorflow' not in sys.modules"
    )
    result = run(tmp_path, "raise ImportError", program)
    assert result.returncode == 0, result.stderr
