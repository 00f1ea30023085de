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

from pdutils.defenses.layers import (  # noqa: E402
    PixelDeflection,
    RobustCAM,
    RobustGradCAM,
    defended_model,
)

READINGS = ["blog", "repo", "paper"]
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


def layer(kind, *args, seed=0, **options):
    start = keras.initializers.RandomNormal(stddev=0.5, seed=seed)
    return kind(*args, kernel_initializer=start, **options)


def backbone():
    return keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            layer(keras.layers.Conv2D, 6, 3, strides=2, activation="tanh", seed=1),
            layer(keras.layers.Conv2D, 8, 3, activation="tanh", seed=2),
        ],
        name="backbone",
    )


def small(*tail, first=(), preprocess=lambda x: x / 127.5 - 1, nested=False):
    inputs = keras.Input((*SIZE, 3))
    body = backbone()
    x = inputs
    parts = [body] if nested else body.layers
    for part in (*first, *parts, keras.layers.GlobalAveragePooling2D(), *tail):
        x = part(x)
    return Classifier(keras.Model(inputs, x, name="small"), preprocess=preprocess)


def dense(**options):
    return layer(keras.layers.Dense, 5, seed=3, **options)


def wrapped():
    """A classifier in a model."""
    inputs = keras.Input((*SIZE, 3))
    inner = small(dense(activation="softmax")).model
    return Classifier(keras.Model(inputs, inner(inputs), name="wrapped"))


CLASSIFIERS = {
    "softmax": lambda: small(dense(activation="softmax")),
    "logits": lambda: small(dense()),
    "logits, then softmax": lambda: small(dense(), keras.layers.Softmax()),
    "nested backbone": lambda: small(dense(activation="softmax"), nested=True),
    "nested whole": wrapped,
    "Caffe's channel order": lambda: small(
        dense(activation="softmax"), preprocess=keras.applications.resnet50.preprocess_input
    ),
    "nothing preprocessed": lambda: small(
        dense(activation="softmax"),
        first=[keras.layers.Rescaling(1 / 127.5, offset=-1)],
        preprocess=None,
    ),
}


def unlike_its_initialisers(classifier):
    """Move the weights, so that a network that is made anew has others."""
    rng = np.random.default_rng(7)
    moved = [w + rng.normal(0, 0.1, w.shape) for w in classifier.model.get_weights()]
    classifier.model.set_weights(moved)
    return classifier


def small_vgg(*tail, preprocess=lambda x: x / 127.5 - 1):
    """Convolutions and pooling, then dense layers on all that is left: there is no CAM."""
    layers = keras.layers
    inputs = keras.Input((*SIZE, 3))
    x = inputs
    for part in (
        layer(layers.Conv2D, 6, 3, activation="relu", padding="same", seed=1),
        layers.MaxPooling2D(),
        layer(layers.Conv2D, 8, 3, activation="tanh", padding="same", seed=2),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layer(layers.Dense, 10, activation="tanh", seed=4),
        layers.Dropout(0.5),
        *tail,
    ):
        x = part(x)
    made = Classifier(keras.Model(inputs, x, name="small_vgg"), preprocess=preprocess)
    return unlike_its_initialisers(made)


def saturated():
    """A network so sure that its probabilities are 0 and 1."""
    made = small_vgg(dense(activation="softmax"))
    kernel, bias = made.model.layers[-1].get_weights()
    made.model.layers[-1].set_weights([300 * kernel, bias])
    return made


def two_branches():
    """A head that sees the last feature map and, past it, an earlier one."""
    layers = keras.layers
    inputs = keras.Input((*SIZE, 3))
    early = layer(layers.Conv2D, 6, 3, strides=2, activation="tanh", seed=1)(inputs)
    late = layer(layers.Conv2D, 8, 3, activation="tanh", seed=2)(early)
    pooled = [layers.GlobalAveragePooling2D()(early), layers.GlobalMaxPooling2D()(late)]
    x = layer(layers.Dense, 7, activation="tanh", seed=4)(layers.Concatenate()(pooled))
    model = keras.Model(inputs, dense(activation="softmax")(x), name="two_branches")
    return unlike_its_initialisers(Classifier(model, preprocess=lambda x: x / 127.5 - 1))


#: Networks whose map takes a gradient, by how they end.
GRADIENTS = {
    "softmax": lambda: small_vgg(dense(activation="softmax")),
    "softmax without a bias": lambda: small_vgg(dense(activation="softmax", use_bias=False)),
    "logits": lambda: small_vgg(dense()),
    "logits, then softmax": lambda: small_vgg(dense(), keras.layers.Activation("softmax")),
    "probabilities, reshaped": lambda: small_vgg(
        dense(activation="softmax"), keras.layers.Reshape((5,))
    ),
    "nested backbone": lambda: small(
        keras.layers.LayerNormalization(), dense(activation="softmax"), nested=True
    ),
    "Caffe's channel order": lambda: small_vgg(
        dense(activation="softmax"), preprocess=keras.applications.vgg16.preprocess_input
    ),
    "saturated": saturated,
    "two branches": two_branches,
}


@cache
def classifiers(kind):
    return CLASSIFIERS[kind]()


@cache
def gradients(kind):
    return GRADIENTS[kind]()


def maps_of(model):
    """Cut a defended model where its map reaches the deflection."""
    (deflection,) = (part for part in model.layers if isinstance(part, PixelDeflection))
    return keras.Model(model.input, deflection.input[1])


def normalised(made):
    """Let a MobileNet at random have predictions that differ by image all the same."""
    for part in made.model.layers:
        if isinstance(part, keras.layers.BatchNormalization):
            part.momentum = 0.0
    # One look at some photos normalises what random weights let fade.
    seen = keras.ops.convert_to_tensor(photos(16, *made.input_size))
    made.model(made.preprocess(seen), training=True)
    return made


# --- the map: as Defense.activation_map, for any head ---


def check_maps(classifier, images, **options):
    defense = Defense(**options)
    maps = called(maps_of(defended_model(classifier, defense)), images)
    expected = defense.activation_map(classifier, images)
    assert maps.shape == expected.shape
    assert_maps_alike(maps, expected, defense.combine, atol=1e-3)
    # A map of zeros would agree with nothing but zeros.
    assert (expected.std(axis=(1, 2)) > 0.03).all()


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("activation", ["cam", "rcam"])
def test_the_map_is_that_of_the_defence_for_any_head(kind, activation):
    classifier = gradients(kind)
    assert classifier.head_weights is None
    check_maps(classifier, photos(4, *SIZE), activation=activation, k=3)


@pytest.mark.parametrize(("k", "combine"), [(1, "paper"), (2, "geometric"), (6, "repo")])
def test_the_map_is_that_of_the_defence_for_any_k_and_combination(toy_flat, k, combine):
    check_maps(toy_flat, photos(4), activation="rcam", k=k, combine=combine)


@pytest.mark.parametrize("activation", ["cam", "rcam"])
def test_the_map_is_scaled_up_and_biased_as_that_of_the_defence(toy, toy_flat, activation):
    for classifier in (toy, toy_flat):
        options = {"upscale": "tf1", "bias": -0.2, "k": 3, "combine": "repo"}
        check_maps(classifier, photos(4), activation=activation, **options)


def test_head_weights_are_used_where_there_are_some(toy, toy_flat):
    for classifier, kind in ((toy, RobustCAM), (toy_flat, RobustGradCAM)):
        model = defended_model(classifier, Defense(activation="rcam"))
        assert {type(part) for part in model.layers} & {RobustCAM, RobustGradCAM} == {kind}


@pytest.mark.parametrize("kind", ["softmax", "two branches"])
def test_a_map_does_not_depend_on_its_batch(kind):
    model = maps_of(defended_model(gradients(kind), Defense(activation="rcam", k=2)))
    images = photos(4, *SIZE)
    together = called(model, images)
    np.testing.assert_allclose(called(model, images[1:2])[0], together[1], atol=1e-3)
    images[:3] = 255 - images[:3]
    np.testing.assert_allclose(called(model, images)[3], together[3], atol=1e-3)


def test_the_map_is_the_same_wherever_the_model_runs(toy_flat):
    defense = Defense(activation="rcam", k=2)
    model, images = maps_of(defended_model(toy_flat, defense)), photos(5)
    expected = defense.activation_map(toy_flat, images)
    by_dataset = tf.data.Dataset.from_tensor_slices(images).batch(2).map(model)
    results = {
        "eager": model(images),
        "under XLA": tf.function(model, jit_compile=True)(images),
        "by predict": model.predict(images, batch_size=2, verbose=0),
        "in a dataset": np.concatenate(list(by_dataset)),
    }
    for where, maps in results.items():
        np.testing.assert_allclose(maps, expected, atol=1e-3, err_msg=where)


# --- without chance: as the classifier, and as Defense.predict ---


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_without_chance_it_is_the_classifier_or_the_defence(kind):
    classifier, images = classifiers(kind), photos(4, *SIZE)
    plain = classifier.predict(images)
    result = called(defended_model(classifier, NOTHING), images)
    np.testing.assert_allclose(result, plain, atol=1e-5)
    assert np.ptp(plain, axis=0).max() > 0.01
    expected = ONLY_DENOISED.predict(classifier, images)
    result = called(defended_model(classifier, ONLY_DENOISED), images)
    np.testing.assert_allclose(result, expected, atol=1e-3)
    assert np.abs(expected - plain).max() > 3e-3


@pytest.mark.parametrize("kind", ["toy", "toy_flat"])
@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("aggregate", ["mean", "majority"])
def test_runs_without_chance_are_those_of_the_defence(request, kind, runs, aggregate):
    classifier = request.getfixturevalue(kind)
    for denoiser in (None, "wavelet"):
        defense = Defense(deflections=0, denoiser=denoiser, runs=runs, aggregate=aggregate)
        result = called(defended_model(classifier, defense), photos(5))
        np.testing.assert_allclose(result, defense.predict(classifier, photos(5)), atol=1e-3)


@pytest.mark.parametrize("kind", ["toy_flat", "nested whole"])
@pytest.mark.parametrize("activation", ["cam", "rcam"])
def test_a_map_that_nothing_would_use_is_not_asked_for(request, kind, activation):
    classifier = classifiers(kind) if kind in CLASSIFIERS else request.getfixturevalue(kind)
    images = photos(2, *classifier.input_size)
    result = called(
        defended_model(classifier, Defense(deflections=0, activation=activation)), images
    )
    expected = Defense(deflections=0).predict(classifier, images)
    np.testing.assert_allclose(result, expected, atol=1e-3)


# --- with chance: the same distribution ---


@pytest.mark.parametrize("kind", ["toy", "toy_flat"])
@pytest.mark.parametrize("aggregate", ["mean", "majority"])
@pytest.mark.parametrize(("activation", "runs"), [("none", 3), ("cam", 1), ("rcam", 3)])
def test_rows_are_probabilities(request, kind, runs, activation, aggregate):
    defense = Defense(runs=runs, activation=activation, aggregate=aggregate, deflections=500)
    model = defended_model(request.getfixturevalue(kind), defense, seed=0)
    result = called(model, photos(5))
    assert result.shape == (5, 6)
    assert result.dtype == np.float32
    assert (result >= 0).all()
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-5)
    if aggregate == "majority":
        np.testing.assert_allclose(result * runs, np.rint(result * runs), atol=1e-5)
    assert not np.array_equal(called(model, photos(5)), result) or aggregate == "majority"


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


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("activation", ["none", "cam", "rcam"])
def test_averaged_over_many_runs_it_is_the_defence(activation, reading):
    # 3% of the values are written: reading them as they came makes next to no difference.
    deflections = {"blog": 15, "repo": 45, "paper": 15}[reading]
    options = {"activation": activation, "reading": reading, "deflections": deflections}
    options |= {"window": 3, "k": 3, "combine": "geometric", "denoiser": None}
    images, repeats = chequered(3), 300
    classifier = classifiers("softmax")
    expected, error = mean_and_error(classifier, Defense(**options), repeats, images)
    result = called(defended_model(classifier, Defense(**options, runs=repeats), seed=0), images)
    assert (np.abs(result - expected) < 4 * np.sqrt(2) * error).all()
    # No other defence is as near as that.
    other = {"none": "rcam", "cam": "none", "rcam": "none"}[activation]
    for change in ({"activation": other}, {"deflections": deflections // 2}, {"deflections": 0}):
        defense = Defense(**options | change, runs=repeats)
        result = called(defended_model(classifier, defense, seed=0), images)
        assert (np.abs(result - expected) > 4 * np.sqrt(2) * error).any()


@pytest.mark.parametrize("aggregate", ["mean", "majority"])
def test_averaged_over_many_runs_it_is_the_defence_for_any_head(aggregate):
    options = {"activation": "rcam", "deflections": 60, "window": 3, "k": 3, "denoiser": None}
    classifier, images, runs = gradients("softmax"), chequered(3), 400
    expected = Defense(**options, runs=runs, aggregate=aggregate).predict(classifier, images, rng=1)

    def distance(**other):
        defense = Defense(**options | {"runs": runs, "aggregate": aggregate} | other)
        return np.abs(called(defended_model(classifier, defense, seed=0), images) - expected).max()

    # A share of 400 votes has a standard error of 0.025 at most, a difference of two 0.035.
    bound, other = {
        "mean": (0.018, {"activation": "none"}),
        "majority": (0.12, {"aggregate": "mean"}),
    }[aggregate]
    assert distance() < bound
    assert distance(**other) > bound
    assert distance(deflections=0) > bound


def test_a_run_in_the_model_draws_anew(toy):
    model = defended_model(toy, Defense(runs=1), seed=0)
    once, again = called(model, photos(2)), called(model, photos(2))
    assert not np.array_equal(once, again)
    same = defended_model(toy, Defense(runs=1), seed=0)
    np.testing.assert_array_equal(called(same, photos(2)), once)
    # Were the runs alike, their mean would be as far from the whole mean as one is.
    many = called(defended_model(toy, Defense(runs=64), seed=0), photos(2))
    expected, error = mean_and_error(toy, Defense(), 200, photos(2))
    assert (np.abs(many - expected) < 5 * error * np.sqrt(1 + 200 / 64)).all()


def test_equal_images_of_a_batch_draw_differently(toy):
    result = called(defended_model(toy, Defense(), seed=0), np.stack([photo()] * 4))
    assert len({row.tobytes() for row in result}) == 4


@pytest.mark.parametrize(
    ("kind", "activation", "runs"),
    [("toy", "none", 1), ("toy", "rcam", 3), ("toy_flat", "rcam", 3)],
)
def test_a_result_depends_on_its_place_in_the_batch_but_not_on_its_neighbours(
    request, kind, runs, activation
):
    toy = request.getfixturevalue(kind)
    images, others = photos(4), 255 - photos(4)
    others[2] = images[2]
    defense = Defense(runs=runs, activation=activation)
    first, second = (
        called(defended_model(toy, defense, seed=0), batch) for batch in (images, others)
    )
    np.testing.assert_allclose(second[2], first[2], atol=1e-5)
    assert np.abs(second - first)[[0, 1, 3]].max() > 1e-3
    elsewhere = called(defended_model(toy, defense, seed=0), images[[0, 1, 3, 2]])
    assert np.abs(elsewhere[3] - first[2]).max() > 1e-5


# --- the vote, by a network whose answers are known ---


def bright_or_dark():
    """Tell how many of the 16 pixels are bright: 15 and 16 are class 1, fewer class 0."""
    inputs = keras.Input((4, 4, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    head = keras.layers.Dense(2)
    model = keras.Model(inputs, head(pooled))
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
    ("activation", "runs", "aggregate"),
    [("none", 3, "mean"), ("cam", 1, "mean"), ("rcam", 3, "majority")],
)
def test_a_saved_model_predicts_the_same(toy, tmp_path, activation, runs, aggregate):
    defense = Defense(
        activation=activation,
        runs=runs,
        aggregate=aggregate,
        reading="repo",
        denoiser_options={"sigma": 0.08},
    )
    model = defended_model(toy, defense, seed=5)
    loaded = saved(model, tmp_path)
    np.testing.assert_array_equal(called(loaded, photos(3)), called(model, photos(3)))


def test_a_model_that_was_saved_before_gives_what_it_gave_then():
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    loaded = keras.saving.load_model(Path(__file__).parents[1] / "data" / "defended_before.keras")
    expected = [[0.19478066, 0.74295443, 0.06226493], [0.19296053, 0.7459309, 0.06110856]]
    np.testing.assert_allclose(called(loaded, images), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["logits", "nested backbone", "two branches"])
def test_the_map_of_any_head_survives_saving(tmp_path, kind):
    classifier, images = gradients(kind), photos(3, *SIZE)
    defense = Defense(activation="rcam", k=3, combine="geometric", reading="repo", denoiser=None)
    model = defended_model(classifier, defense, seed=5)
    expected, maps = called(model, images), defense.activation_map(classifier, images)
    loaded = saved(model, tmp_path)
    np.testing.assert_array_equal(called(loaded, images), expected)
    assert_maps_alike(called(maps_of(loaded), images), maps, "geometric", atol=1e-3)
    # What has been loaded can be saved again.
    np.testing.assert_array_equal(called(saved(loaded, tmp_path), images), expected)


@pytest.mark.parametrize("kind", ["logits", "nested backbone", "Caffe's channel order"])
def test_any_model_survives_saving(tmp_path, kind):
    model = defended_model(classifiers(kind), Defense(), seed=5)
    expected = called(model, photos(3, *SIZE))
    np.testing.assert_array_equal(called(saved(model, tmp_path), photos(3, *SIZE)), expected)


@pytest.mark.slow
def test_mobilenet_with_a_map_and_its_preprocessing_survive_saving(tmp_path):
    options = {"alpha": 0.35, "input_shape": (48, 48, 3), "classes": 12}
    mobilenet = normalised(load_classifier("mobilenet_v2", "random", **options))
    images, repeats = photos(2, 48, 48), 12
    options = {"activation": "rcam", "deflections": 100}
    expected, error = mean_and_error(mobilenet, Defense(**options), repeats, images)
    model = saved(defended_model(mobilenet, Defense(**options, runs=repeats), seed=0), tmp_path)
    assert (np.abs(called(model, images) - expected) < 6 * np.sqrt(2) * error + 1e-4).all()
    raw = np.asarray(mobilenet.model(images))
    assert np.abs(raw - expected).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vgg16"])
def test_a_network_of_keras_with_a_map_by_gradients(name):
    options = {"input_shape": (48, 48, 3), "classes": 12}
    classifier = load_classifier(name, "random", **options)
    if name != "vgg16":
        normalised(classifier)
    check_maps(classifier, photos(3, 48, 48), activation="rcam")


def test_the_demo():
    demo = load_classifier("demo")
    images = photos(2, *demo.input_size)
    expected = Defense(deflections=0).predict(demo, images)
    # So few deflections leave the prediction about where it is.
    few = called(defended_model(demo, Defense(deflections=20, activation="rcam")), images)
    np.testing.assert_allclose(few, expected, atol=0.1)


# --- how much work it is ---


@keras.saving.register_keras_serializable("tests")
class Counter(keras.layers.Layer):
    """Count the images that pass through."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs):
        self.seen.assign_add(keras.ops.shape(inputs)[0])
        return inputs


@pytest.mark.parametrize(
    ("activation", "deflections", "runs", "passes"),
    [
        ("none", 20, 1, 1),
        ("none", 20, 3, 3),
        ("cam", 20, 1, 2),
        ("rcam", 20, 1, 2),
        ("rcam", 20, 3, 4),
        ("rcam", 0, 1, 1),
    ],
)
@pytest.mark.parametrize("end", ["GlobalAveragePooling2D", "Flatten"])
def test_only_the_map_takes_another_forward_pass(end, activation, deflections, runs, passes):
    inputs = keras.Input((*SIZE, 3))
    counter = Counter()
    x = inputs
    for part in (counter, *backbone().layers, getattr(keras.layers, end)(), dense()):
        x = part(x)
    classifier = Classifier(keras.Model(inputs, x))
    defense = Defense(activation=activation, deflections=deflections, runs=runs, denoiser=None)
    model = defended_model(classifier, defense)
    before = int(counter.seen.numpy())
    run = tf.function(model)
    for part in np.split(photos(4, *SIZE), 2):
        run(tf.constant(part))
    assert int(counter.seen.numpy()) - before == 4 * passes


class OneWay(keras.layers.Layer):
    """Let values through, and no gradient back."""

    def call(self, inputs):
        @tf.custom_gradient
        def through(x):
            def back(upstream):
                raise AssertionError("a gradient came back")

            return tf.identity(x), back

        return through(inputs)


def test_the_gradient_of_a_map_ends_at_the_feature_map():
    first, second = backbone().layers
    inputs = keras.Input((*SIZE, 3))
    x = keras.layers.Flatten()(second(OneWay()(first(inputs))))
    classifier = Classifier(keras.Model(inputs, dense(activation="softmax")(x)))
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


@pytest.mark.parametrize("kind", ["toy", "toy_flat"])
def test_the_weights_are_those_of_the_classifier(request, kind):
    toy = request.getfixturevalue(kind)
    model = defended_model(toy, Defense(activation="rcam"))
    theirs = {id(weight) for weight in toy.model.weights}
    assert {id(weight) for weight in model.trainable_weights} <= theirs
    assert theirs <= {id(weight) for weight in model.weights}


# --- wrong input ---


def test_a_preprocessing_that_no_graph_of_keras_takes():
    import tensorflow as tf

    classifier = small(dense(), preprocess=tf.image.per_image_standardization)
    with pytest.raises(ValueError, match=r"KerasTensor cannot be used as input to a TensorFlow"):
        defended_model(classifier, Defense())


@pytest.mark.parametrize("activation", ["cam", "rcam"])
def test_a_map_needs_a_feature_map(activation):
    inputs = keras.Input((*SIZE, 3))
    flat = keras.Model(inputs, dense()(keras.layers.Flatten()(inputs)), name="flat")
    with pytest.raises(ValueError, match=r"flat has no feature map"):
        defended_model(Classifier(flat), Defense(activation=activation))
    nested = wrapped()
    result = defended_model(nested, Defense(activation=activation), seed=0)
    assert called(result, photos(2, *SIZE)).shape == (2, 5)


@pytest.mark.parametrize(
    ("denoiser", "options"),
    [
        ("tv", {}),
        ("median", {"size": 3}),
        ("wavelet", {"wavelet": "db2"}),
        ("wavelet", {"shrinkage": "VisuShrink"}),
        ("wavelet", {"color": "rgb", "sigma": 0.1}),
        ("wavelets", {}),
    ],
)
def test_other_denoisers(toy, denoiser, options):
    defense = Defense(denoiser=denoiser, denoiser_options=options)
    with pytest.raises(ValueError, match=rf"expected 'wavelet' with .*got '{denoiser}'"):
        defended_model(toy, defense)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"activation": "rcam", "k": 7}, "k: expected 1 to 6 classes, got 7"),
        ({"denoiser_options": {"sigma": -1}}, "sigma: expected"),
        ({"denoiser_options": {"mode": "medium"}}, "mode: expected"),
    ],
)
@pytest.mark.parametrize("kind", ["toy", "toy_flat"])
def test_wrong_knobs(request, kind, knobs, message):
    with pytest.raises(ValueError, match=message):
        defended_model(request.getfixturevalue(kind), Defense(**knobs))
