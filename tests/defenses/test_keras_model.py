from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_maps_alike, photo, photos

from pdutils._utils import load_tensorflow
from pdutils.classifiers import Classifier, load_classifier
from pdutils.defenses.pipeline import Defense

load_tensorflow()
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import layers as L  # noqa: E402, N812

from pdutils.defenses import layers  # noqa: E402
from pdutils.defenses.layers import PixelDeflection, defended_model  # noqa: E402

NOTHING = Defense(deflections=0, denoiser=None)
ONLY_DENOISED = Defense(
    deflections=0, denoiser_options={"sigma": 0.1, "mode": "hard", "sigma_scale": "rgb"}
)
SIZE = (24, 20)


def called(model, images):
    # Without the seconds that it takes to compile `predict`.
    return keras.ops.convert_to_numpy(model(images, training=False))


def saved(model, tmp_path):
    """Save a model and load it again."""
    model.save(tmp_path / "model.keras")
    return keras.saving.load_model(tmp_path / "model.keras")


def layer(kind, *args, seed, **options):
    start = keras.initializers.RandomNormal(stddev=0.5, seed=seed)
    return kind(*args, kernel_initializer=start, **options)


def dense(activation=None):
    return layer(L.Dense, 5, seed=3, activation=activation)


def body():
    return [
        layer(L.Conv2D, 6, 3, strides=2, activation="tanh", seed=1),
        layer(L.Conv2D, 8, 3, activation="tanh", seed=2),
    ]


def nested():
    return keras.Sequential([keras.Input((*SIZE, 3)), *body()], name="backbone")


def scaled(images):
    return images / 127.5 - 1


def classifier_of(inputs, outputs, preprocess=scaled):
    classifier = Classifier(keras.Model(inputs, outputs, name="small"), preprocess=preprocess)
    # A network that is made anew from its initialisers has other weights.
    rng = np.random.default_rng(7)
    weights = classifier.model.get_weights()
    classifier.model.set_weights([w + rng.normal(0, 0.1, w.shape) for w in weights])
    return classifier


def row(*parts, preprocess=scaled):
    """A classifier of parts one after the other."""
    x = inputs = keras.Input((*SIZE, 3))
    for part in parts:
        x = part(x)
    return classifier_of(inputs, x, preprocess)


def pooled(*tail, **options):
    return row(*body(), L.GlobalAveragePooling2D(), *tail, **options)


def vgg(*tail, **options):
    """Convolutions and pooling, then dense layers on all that is left: there is no CAM."""
    return row(
        layer(L.Conv2D, 6, 3, activation="relu", padding="same", seed=1),
        L.MaxPooling2D(),
        layer(L.Conv2D, 8, 3, activation="tanh", padding="same", seed=2),
        L.MaxPooling2D(),
        L.Flatten(),
        layer(L.Dense, 10, activation="tanh", seed=4),
        L.Dropout(0.5),
        *tail,
        **options,
    )


def saturated():
    """A network so sure that its probabilities are 0 and 1."""
    classifier = vgg(dense("softmax"))
    last = classifier.model.layers[-1]
    kernel, bias = last.get_weights()
    last.set_weights([300 * kernel, bias])
    return classifier


def two_branches():
    """A head that sees the last feature map and, past it, an earlier one."""
    inputs = keras.Input((*SIZE, 3))
    first, second = body()
    early = first(inputs)
    both = [L.GlobalAveragePooling2D()(early), L.GlobalMaxPooling2D()(second(early))]
    x = layer(L.Dense, 7, activation="tanh", seed=4)(L.Concatenate()(both))
    return classifier_of(inputs, dense("softmax")(x))


resnet, vgg16 = keras.applications.resnet50, keras.applications.vgg16

#: Networks with head weights, by what is special about them.
CLASSIFIERS = {
    "softmax": lambda: pooled(dense("softmax")),
    "logits": lambda: pooled(dense()),
    "nested backbone": lambda: row(nested(), L.GlobalAveragePooling2D(), dense("softmax")),
    "nested whole": lambda: row(pooled(dense("softmax")).model, preprocess=None),
    "Caffe's order": lambda: pooled(dense("softmax"), preprocess=resnet.preprocess_input),
    "nothing preprocessed": lambda: row(
        L.Rescaling(1 / 127.5, -1),
        *body(),
        L.GlobalAveragePooling2D(),
        dense("softmax"),
        preprocess=None,
    ),
}

#: Networks whose map takes a gradient, by how they end.
GRADIENTS = {
    "softmax": lambda: vgg(dense("softmax")),
    "logits": lambda: vgg(dense()),
    "probabilities, reshaped": lambda: vgg(dense("softmax"), L.Reshape((5,))),
    "nested backbone": lambda: row(
        nested(), L.GlobalAveragePooling2D(), L.LayerNormalization(), dense("softmax")
    ),
    "Caffe's order": lambda: vgg(dense("softmax"), preprocess=vgg16.preprocess_input),
    "saturated": saturated,
    "two branches": two_branches,
}


@cache
def made(make):
    return make()


def deflection_of(model):
    return next(part for part in model.layers if isinstance(part, PixelDeflection))


def maps_of(model):
    """Cut a defended model where its map reaches the deflection."""
    return keras.Model(model.input, deflection_of(model).input[1])


def keras_network(name, **options):
    """A network of Keras at random whose predictions differ by image all the same."""
    classifier = load_classifier(name, "random", input_shape=(48, 48, 3), classes=12, **options)
    for part in classifier.model.layers:
        if isinstance(part, L.BatchNormalization):
            part.momentum = 0.0
    # One look at some photos normalises what random weights let fade.
    seen = keras.ops.convert_to_tensor(photos(16, *classifier.input_size))
    classifier.model(classifier.preprocess(seen), training=True)
    return classifier


# --- the map: as Defense.activation_map, for any head, and after saving ---


def check_maps(classifier, images, **options):
    """Compare the maps of the model that is given back with those of the defence."""
    defense = Defense(**options, reading="repo", denoiser=None)
    model = defended_model(classifier, defense, seed=5)
    maps, expected = called(maps_of(model), images), defense.activation_map(classifier, images)
    assert maps.shape == expected.shape
    assert_maps_alike(maps, expected, defense.combine, atol=1e-3)
    # A map of zeros would agree with nothing but zeros.
    assert (expected.std(axis=(1, 2)) > 0.03).all()
    return model


@pytest.mark.parametrize("kind", GRADIENTS)
def test_the_map_is_that_of_the_defence_for_any_head_and_survives_saving(kind, tmp_path):
    classifier, images = made(GRADIENTS[kind]), photos(3, *SIZE)
    assert classifier.head_weights is None
    kept = kind in ("Caffe's order", "nested backbone", "two branches")
    combine = "geometric" if kept else "paper"
    model = check_maps(classifier, images, activation="rcam", k=3, combine=combine)
    if not kept:
        return
    maps, expected = called(maps_of(model), images), called(model, images)
    # What has been loaded can be saved again.
    for _ in range(2 if kind == "two branches" else 1):
        model = saved(model, tmp_path)
        np.testing.assert_array_equal(called(maps_of(model), images), maps)
    np.testing.assert_array_equal(called(model, images), expected)


@pytest.mark.parametrize("activation", ["cam", "rcam"])
def test_maps_are_scaled_up_and_biased_and_made_by_head_weights_if_there_are_some(
    toy, toy_flat, activation
):
    options = {"activation": activation, "upscale": "tf1", "bias": -0.2, "k": 3, "combine": "repo"}
    kinds = {layers.RobustCAM, layers.RobustGradCAM}
    for classifier, kind in ((toy, layers.RobustCAM), (toy_flat, layers.RobustGradCAM)):
        model = check_maps(classifier, photos(2), **options)
        assert {type(part) for part in model.layers} & kinds == {kind}
        theirs = {id(weight) for weight in classifier.model.weights}
        assert {id(weight) for weight in model.trainable_weights} <= theirs
        assert theirs <= {id(weight) for weight in model.weights}


def test_a_map_depends_neither_on_its_batch_nor_on_where_the_model_runs():
    classifier, images = made(GRADIENTS["two branches"]), photos(4, *SIZE)
    model = maps_of(defended_model(classifier, Defense(activation="rcam", k=2)))
    by_dataset = tf.data.Dataset.from_tensor_slices(images).batch(2).map(model)
    beside = 255 - images
    beside[3] = images[3]
    expected = called(model, images)
    for where, found, wanted in (
        ("alone", called(model, images[1:2]), expected[1:2]),
        ("beside others", called(model, beside)[3], expected[3]),
        ("under XLA", tf.function(model, jit_compile=True)(images), expected),
        ("by predict", model.predict(images, batch_size=2, verbose=0), expected),
        ("in a dataset", np.concatenate(list(by_dataset)), expected),
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-3, err_msg=where)


@pytest.mark.slow
def test_mobilenet_with_a_map_and_its_preprocessing_survive_saving(tmp_path):
    classifier, images = keras_network("mobilenet_v2", alpha=0.35), photos(2, 48, 48)
    model = check_maps(classifier, images, activation="rcam")
    loaded = saved(model, tmp_path)
    np.testing.assert_allclose(called(maps_of(loaded), images), called(maps_of(model), images))
    deflection = deflection_of(loaded)
    deflected, answers = keras.Model(loaded.input, [deflection.output, loaded.output])(images)
    np.testing.assert_allclose(answers, classifier.predict(np.asarray(deflected)), atol=1e-4)
    assert np.abs(classifier.model(deflected) - answers).max() > 0.01


@pytest.mark.slow
def test_a_network_of_keras_with_a_map_by_gradients():
    check_maps(keras_network("mobilenet_v3_small"), photos(2, 48, 48), activation="rcam", k=2)


# --- without chance: as the classifier, and as Defense.predict ---


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_without_chance_it_is_the_classifier_or_the_defence(kind):
    classifier, images = made(CLASSIFIERS[kind]), photos(3, *SIZE)
    plain = classifier.predict(images)
    result = called(defended_model(classifier, NOTHING), images)
    np.testing.assert_allclose(result, plain, atol=1e-5)
    assert np.ptp(plain, axis=0).max() > 0.01
    expected = ONLY_DENOISED.predict(classifier, images)
    result = called(defended_model(classifier, ONLY_DENOISED), images)
    np.testing.assert_allclose(result, expected, atol=1e-3)
    assert np.abs(expected - plain).max() > 3e-3


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("aggregate", ["mean", "majority"])
def test_runs_without_chance_are_those_of_the_defence(toy, runs, aggregate):
    defense = replace(NOTHING, runs=runs, aggregate=aggregate)
    result = called(defended_model(toy, defense), photos(2))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, defense.predict(toy, photos(2)), atol=1e-5)


# --- with chance: the same distribution ---


def mean_and_error(classifier, defense, repeats, images):
    """Give the mean over many runs and its standard error."""
    runs = defense.predict_runs(classifier, np.repeat(images, repeats, axis=0), rng=1)[0]
    runs = runs.reshape(len(images), repeats, -1)
    return runs.mean(axis=1), runs.std(axis=1) / np.sqrt(repeats)


def chequered(n):
    """Photos under a chequerboard, which every deflection breaks: their predictions move far."""
    rows, columns = np.indices(SIZE)
    board = np.where((rows + columns) % 2 == 0, 60, -60)[..., None]
    return np.clip(photos(n, *SIZE) + board, 0, 255).astype(np.float32)


@pytest.mark.parametrize(
    ("networks", "activation", "reading", "deflections"),
    [
        (CLASSIFIERS, "none", "blog", 15),
        (CLASSIFIERS, "cam", "repo", 45),
        (CLASSIFIERS, "rcam", "blog", 15),
        (CLASSIFIERS, "rcam", "repo", 45),
        (CLASSIFIERS, "rcam", "paper", 15),
        (GRADIENTS, "rcam", "blog", 60),
    ],
)
def test_averaged_over_many_runs_it_is_the_defence(networks, activation, reading, deflections):
    # Few of the values are written: reading them as they came makes next to no difference.
    options = {"activation": activation, "reading": reading, "deflections": deflections}
    options |= {"window": 3, "k": 3, "denoiser": None}
    options["combine"] = "paper" if networks is GRADIENTS else "geometric"
    images, repeats, classifier = chequered(3), 250, made(networks["softmax"])
    expected, error = mean_and_error(classifier, Defense(**options), repeats, images)

    def is_near(**change):
        defense = Defense(**options | change, runs=repeats)
        result = called(defended_model(classifier, defense, seed=0), images)
        return (np.abs(result - expected) < 4 * np.sqrt(2) * error).all()

    assert is_near()
    # No other defence is as near as that.
    assert not is_near(activation="none" if activation != "none" else "rcam")
    assert not is_near(deflections=deflections // 2)


def test_a_run_in_the_model_draws_anew_and_equal_images_of_a_batch_differently(toy):
    defense, images = Defense(denoiser=None), np.stack([photo()] * 3)
    model, same = (defended_model(toy, defense, seed=0) for _ in range(2))
    once, again = called(model, images), called(model, images)
    assert not np.array_equal(once, again)
    assert len({row.tobytes() for row in once}) == 3
    np.testing.assert_array_equal(called(same, images), once)
    # Were the runs alike, their mean would be as far from the whole mean as one is.
    many = called(defended_model(toy, replace(defense, runs=64), seed=0), photos(2))
    expected, error = mean_and_error(toy, defense, 200, photos(2))
    assert (np.abs(many - expected) < 5 * error * np.sqrt(1 + 200 / 64)).all()


# --- the vote, by a network whose answers are known ---


def bright_or_dark():
    """Tell how many of the 16 pixels are bright: 15 and 16 are class 1, fewer class 0."""
    inputs = keras.Input((4, 4, 3))
    head = L.Dense(2)
    model = keras.Model(inputs, head(L.GlobalAveragePooling2D()(inputs)))
    head.set_weights([np.array([[0, 1]] + [[0, 0]] * 2, np.float32) / 25, np.array([0, -9.26])])
    return Classifier(model)


def test_the_vote_is_the_share_of_the_runs_in_which_a_class_won():
    # One of 16 pixels is dark; a deflection replaces or copies it.
    image = np.full((1, 4, 4, 3), 255, np.float32)
    image[0, 1, 1] = 0
    common = {"deflections": 6, "window": 1, "reading": "paper", "denoiser": None}
    classifier = bright_or_dark()
    runs = Defense(**common, runs=600).predict_runs(classifier, image, rng=0)[:, 0]
    votes, means = (runs.argmax(axis=1) == 1).mean(), runs[:, 1].mean()
    assert abs(votes - means) > 0.1
    for aggregate, expected in (("majority", votes), ("mean", means)):
        model = defended_model(classifier, Defense(**common, runs=600, aggregate=aggregate), seed=0)
        assert called(model, image)[0, 1] == pytest.approx(expected, abs=0.08)


# --- saving and loading ---


@pytest.mark.parametrize(
    ("activation", "runs", "aggregate"), [("none", 1, "mean"), ("rcam", 3, "majority")]
)
def test_a_saved_model_predicts_the_same(toy, tmp_path, activation, runs, aggregate):
    options = {"activation": activation, "runs": runs, "aggregate": aggregate, "reading": "repo"}
    model = defended_model(toy, Defense(**options, denoiser_options={"sigma": 0.08}), seed=5)
    loaded = saved(model, tmp_path)
    np.testing.assert_array_equal(called(loaded, photos(2)), called(model, photos(2)))


def test_a_model_that_was_saved_before_gives_what_it_gave_then():
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    loaded = keras.saving.load_model(Path(__file__).parents[1] / "data" / "defended_before.keras")
    expected = [[0.19478066, 0.74295443, 0.06226493], [0.19296053, 0.7459309, 0.06110856]]
    np.testing.assert_allclose(called(loaded, images), expected, atol=1e-4)


def test_the_demo():
    demo = load_classifier("demo")
    images = photos(2, *demo.input_size)
    # So few deflections leave the prediction about where it is.
    few = Defense(deflections=20, activation="rcam", denoiser=None)
    result = called(defended_model(demo, few), images)
    np.testing.assert_allclose(result, demo.predict(images), atol=0.1)


# --- how much work it is ---


@keras.saving.register_keras_serializable("tests")
class Counter(L.Layer):
    """Count the images that pass through."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs):
        self.seen.assign_add(keras.ops.shape(inputs)[0])
        return inputs


@pytest.mark.parametrize(
    ("end", "activation", "deflections", "runs", "passes"),
    [
        (L.GlobalAveragePooling2D, "none", 20, 3, 3),
        (L.GlobalAveragePooling2D, "cam", 20, 1, 2),
        (L.GlobalAveragePooling2D, "rcam", 20, 3, 4),
        (L.Flatten, "rcam", 20, 3, 4),
        (L.Flatten, "rcam", 0, 1, 1),
    ],
)
def test_only_the_map_takes_another_forward_pass(end, activation, deflections, runs, passes):
    x = inputs = keras.Input((*SIZE, 3))
    counter = Counter()
    for part in (counter, *body(), end(), dense()):
        x = part(x)
    classifier = Classifier(keras.Model(inputs, x))
    defense = Defense(activation=activation, deflections=deflections, runs=runs, denoiser=None)
    model = defended_model(classifier, defense)
    before = int(counter.seen.numpy())
    model(photos(4, *SIZE))
    assert int(counter.seen.numpy()) - before == 4 * passes


class OneWay(L.Layer):
    """Let values through, and no gradient back."""

    def call(self, inputs):
        @tf.custom_gradient
        def through(x):
            def back(upstream):
                raise AssertionError("a gradient came back")

            return tf.identity(x), back

        return through(inputs)


def test_the_gradient_of_a_map_ends_at_the_feature_map():
    first, second = body()
    inputs = keras.Input((*SIZE, 3))
    x = L.Flatten()(second(OneWay()(first(inputs))))
    classifier = Classifier(keras.Model(inputs, dense("softmax")(x)))
    model = defended_model(classifier, Defense(activation="rcam", denoiser=None))
    images = tf.constant(photos(2, *SIZE))
    for run in (model, tf.function(model)):
        assert run(images).shape == (2, 5)
    with tf.GradientTape() as tape:
        tape.watch(images)
        rows = classifier.model(images)
    with pytest.raises(AssertionError, match="a gradient came back"):
        tape.gradient(rows, images)


def test_an_attack_can_differentiate_through_the_whole_model(toy_flat):
    defense = Defense(activation="rcam", deflections=1, denoiser=None)
    model, images = defended_model(toy_flat, defense, seed=0), tf.constant(photos(2))
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = -tf.math.log(model(images)[:, 0])
    gradient = tape.gradient(loss, images).numpy()
    # Three values of 3072 are written, and the map only chooses which.
    expected, _ = toy_flat.loss_gradient(photos(2), 0)
    assert np.corrcoef(gradient.ravel(), expected.ravel())[0, 1] > 0.99


# --- wrong input ---


@pytest.mark.parametrize("activation", ["cam", "rcam"])
def test_a_map_needs_a_feature_map(activation):
    defense, flat = Defense(activation=activation), row(L.Flatten(), dense())
    with pytest.raises(ValueError, match=r"small has no feature map"):
        defended_model(flat, defense)
    # A map that nothing would use is not asked for.
    assert defended_model(flat, replace(defense, deflections=0))
    result = defended_model(made(CLASSIFIERS["nested whole"]), defense, seed=0)
    assert called(result, photos(2, *SIZE)).shape == (2, 5)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"activation": "rcam", "k": 7}, "k: expected 1 to 6 classes, got 7"),
        ({"denoiser_options": {"sigma": -1}}, "sigma: expected"),
        ({"denoiser": "median", "denoiser_options": {"size": 3}}, "'wavelet' with .*got 'median'"),
        ({"denoiser_options": {"color": "rgb", "sigma": 0.1}}, "'wavelet' with .*got 'wavelet'"),
        ({"denoiser": "wavelets"}, "denoiser: expected 'wavelet' with .*got 'wavelets'"),
    ],
)
def test_wrong_knobs_and_other_denoisers(toy, toy_flat, knobs, message):
    for classifier in (toy, toy_flat):
        with pytest.raises(ValueError, match=message):
            defended_model(classifier, Defense(**knobs))


def test_a_preprocessing_that_no_graph_of_keras_takes():
    classifier = pooled(dense(), preprocess=tf.image.per_image_standardization)
    with pytest.raises(ValueError, match=r"KerasTensor cannot be used as input to a TensorFlow"):
        defended_model(classifier, Defense())
