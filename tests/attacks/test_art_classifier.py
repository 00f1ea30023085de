import numpy as np
import pytest
from conftest import photos

from pdutils.attacks._art import CandidateClassifier, art_classifier, evasion
from pdutils.defenses.art import PixelDeflectionPreprocessor, WaveletDenoisingPreprocessor
from pdutils.deflection import pixel_deflection
from pdutils.denoising import denoise_wavelet

RANGES = [(0.0, 255.0), (0.0, 1.0)]
BLUR = {"sigma": 0.1}


def plain_estimator(classifier, clip_values=(0.0, 1.0), defences=()):
    """ART's own classifier of the same network, in ART's own way: the oracle."""
    import keras
    import tensorflow as tf
    from art.estimators.classification import TensorFlowV2Classifier

    def model(x, training=False):
        grey = x * (255 / clip_values[1])
        return tf.math.log(classifier.model(classifier.preprocess(grey), training=training))

    return TensorFlowV2Classifier(
        model=model,
        nb_classes=len(classifier.class_ids),
        input_shape=(*classifier.input_size, 3),
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
        clip_values=clip_values,
        preprocessing_defences=list(defences),
    )


def one_hot(labels, classes=6):
    return np.eye(classes, dtype=np.float32)[np.asarray(labels)]


# --- the classifier that ART sees ---


@pytest.mark.parametrize("clip_values", RANGES)
def test_gradients_and_losses_are_those_of_arts_own_classifier(toy, clip_values):
    import tensorflow as tf

    images = photos(3) * np.float32(clip_values[1] / 255)
    ours, plain = art_classifier(toy, clip_values=clip_values), plain_estimator(toy, clip_values)
    np.testing.assert_allclose(np.exp(ours.predict(images)), toy.predict(photos(3)), rtol=1e-5)
    assert ours.predict(images).max() < 0

    def same(given, expected):
        tolerance = {"rtol": 1e-3, "atol": 1e-4 * np.abs(expected).max()}
        np.testing.assert_allclose(given, expected, **tolerance)

    for label in (None, 2, [1, 5, 1], np.array([0, 2, 2])):
        given = ours.class_gradient(images, label)
        assert given.shape == (3, 6 if label is None else 1, 32, 32, 3)
        same(given, plain.class_gradient(images, label))
    same(ours.class_gradient(images, np.int64(3)), plain.class_gradient(images, 3))

    expected, rows = plain.loss_gradient(images, one_hot([1, 4, 4])), one_hot([1, 4, 4])
    for y in ([1, 4, 4], rows, tf.constant(rows)):
        same(ours.loss_gradient(images, y), expected)
    of_tensor = ours.loss_gradient(tf.constant(images), tf.constant(rows))
    assert tf.is_tensor(of_tensor)
    same(of_tensor, expected)

    losses = -plain.predict(images)[[0, 1, 2], [1, 4, 4]]
    for reduction, value in (("none", losses), ("sum", losses.sum()), ("mean", losses.mean())):
        given = ours.compute_loss(images, rows, reduction=reduction)
        np.testing.assert_allclose(given, value, rtol=1e-4)


def test_a_tape_sees_through_the_model_itself(toy):
    import tensorflow as tf

    x = tf.constant(photos(2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = -tf.reduce_sum(art_classifier(toy).model(x)[:, 2])
    gradient, _ = toy.loss_gradient(photos(2), 2)
    np.testing.assert_allclose(tape.gradient(loss, x), gradient, rtol=1e-3, atol=1e-7)


def test_passes_go_through_the_classifier_in_its_batch_size(toy, monkeypatch):
    sizes = []
    for name in ("predict", "gradient"):
        step = toy.network.step(name)

        def counted(images, *labels, step=step, name=name):
            sizes.append((name, len(images)))
            return step(images, *labels)

        monkeypatch.setitem(toy.network._compiled, name, counted)
    bridge = art_classifier(toy, batch_size=4)
    bridge.predict(photos(6), batch_size=128)
    bridge.loss_gradient(photos(3), [0, 1, 2])
    # One pass for labels that differ, where ART takes one for each.
    bridge.class_gradient(photos(3), [0, 1, 2])
    assert sizes == [("predict", 4), ("predict", 2), ("gradient", 3), ("gradient", 3)]


def test_candidates_are_a_part_of_the_classes_and_judged_as_far_ahead_as_the_attack_overshoots(toy):
    images, unit = photos(3), photos(3) / np.float32(255)
    shown, rows = np.array([[0, 1], [5, 2], [3, 4]]), np.arange(3)[:, None]
    plain, ahead = (CandidateClassifier(toy, images, shown, o, 32) for o in (0.0, 0.5))
    all_, others = art_classifier(toy, clip_values=(0, 1)), unit[::-1]
    there = np.clip(unit + 1.5 * (others - unit), 0, 1).astype(np.float32)
    for some, seen, as_if in ((plain, unit, unit), (ahead, others, there)):
        np.testing.assert_allclose(some.predict(seen), all_.predict(as_if)[rows, shown], rtol=1e-4)
        expected = all_.class_gradient(as_if)[rows, shown]
        np.testing.assert_allclose(some.class_gradient(seen), expected, rtol=1e-3, atol=1e-5)


def test_a_batch_that_is_all_but_black_is_shown_as_it_is(toy):
    dark = np.random.default_rng(0).uniform(0, 0.9, (2, 32, 32, 3)).astype(np.float32)
    with_white = np.concatenate([dark, np.full((1, 32, 32, 3), 255, np.float32)])
    bridge = art_classifier(toy)
    expected = toy.predict(with_white)[:2]
    np.testing.assert_allclose(np.exp(bridge.predict(dark)), expected, rtol=1e-5)
    gradient, _ = toy.loss_gradient(with_white, [1, 2, 0])
    found = bridge.loss_gradient(dark, np.array([1, 2]))
    np.testing.assert_allclose(found, gradient[:2], rtol=1e-4, atol=1e-9)
    with pytest.raises(ValueError, match=r"images: expected values in \[0, 255\]"):
        bridge.predict(dark * 1000)


def test_other_attacks_of_art_run_on_it(toy):
    images = photos(2) / np.float32(255)
    labels = one_hot(toy.predict(photos(2)).argmax(axis=1))
    bridge = art_classifier(toy, clip_values=(0, 1))
    for name, options in (
        ("AutoProjectedGradientDescent", {"eps": 0.1, "eps_step": 0.02, "max_iter": 10}),
        ("SquareAttack", {"eps": 0.1, "max_iter": 20}),
    ):
        attack = getattr(evasion, name)(bridge, verbose=False, **options)
        adversaries = attack.generate(images, labels)
        assert np.abs(adversaries - images).max() <= 0.1 + 1e-6
        if name != "SquareAttack":
            # A random search need not find a step in its few draws.
            gain = bridge.compute_loss(adversaries, labels) - bridge.compute_loss(images, labels)
            assert (gain > 0).all()


# --- with the defence before it, and before ART's own ---


def defences(**options):
    pixel = PixelDeflectionPreprocessor(60, 5, rng=3, clip_values=(0, 1))
    return [pixel, WaveletDenoisingPreprocessor(**options, clip_values=(0, 1))]


def bridge(classifier, clip_values, preprocessing):
    return art_classifier(classifier, clip_values=clip_values, preprocessing_defences=preprocessing)


def black_box(classifier, clip_values, preprocessing):
    from art.estimators.classification import BlackBoxClassifier

    bare = plain_estimator(classifier)
    options = {"clip_values": clip_values, "preprocessing_defences": preprocessing}
    return BlackBoxClassifier(bare.predict, (32, 32, 3), 6, **options)


@pytest.mark.parametrize("make", [plain_estimator, bridge, black_box])
def test_estimators_of_art_predict_what_the_defended_network_sees(toy, make):
    images = photos(3)
    given = make(toy, (0.0, 1.0), defences()).predict(images / np.float32(255))
    expected = toy.predict(denoise_wavelet(pixel_deflection(images, 60, 5, rng=3)))
    np.testing.assert_allclose(np.exp(given), expected, rtol=1e-3)


@pytest.mark.parametrize("make", [plain_estimator, bridge])
def test_the_exact_gradient_of_a_defended_estimator_is_that_of_its_loss(toy, make):
    images, labels = photos(2) / np.float32(255), one_hot([1, 4])
    defence = WaveletDenoisingPreprocessor(**BLUR, gradient="exact", clip_values=(0, 1))
    estimator = make(toy, (0.0, 1.0), [defence])
    gradient = estimator.loss_gradient(images, labels)
    way = (2e-3 * np.sign(gradient)).astype(np.float32)
    ahead, back = (-(estimator.predict(images + s * way) * labels).sum() for s in (1, -1))
    np.testing.assert_allclose(np.sum(gradient * way), (ahead - back) / 2, rtol=0.03)


def test_the_chain_denoises_the_deflected_image_not_the_one_that_came(toy):
    images, pixel = photos(1), PixelDeflectionPreprocessor(300, 5, rng=3)
    wavelet = WaveletDenoisingPreprocessor(**BLUR, gradient="exact")
    given = art_classifier(toy, preprocessing_defences=[pixel, wavelet]).loss_gradient(images, [2])
    deflected = pixel_deflection(images, 300, 5, rng=3)
    behind, _ = toy.loss_gradient(wavelet(deflected)[0], 2)
    expected = wavelet.estimate_gradient(deflected, behind)
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "gradient"), [(plain_estimator, "identity"), (bridge, "identity"), (bridge, "exact")]
)
def test_an_attack_of_art_fools_the_defended_estimator(toy, make, gradient):
    images = photos(4)
    pixel = PixelDeflectionPreprocessor(20, 3, rng=0, clip_values=(0, 1))
    wavelet = WaveletDenoisingPreprocessor(gradient=gradient, clip_values=(0, 1))
    estimator = make(toy, (0.0, 1.0), [pixel, wavelet])

    # Judged by our own defence, with draws that the attack has not seen.
    def mean_probabilities(batch):
        draws = [pixel_deflection(batch, 20, 3, rng=seed) for seed in range(50, 58)]
        return np.mean([toy.predict(denoise_wavelet(draw)) for draw in draws], axis=0)

    labels, unit = mean_probabilities(images).argmax(axis=1), images / np.float32(255)
    options = {"eps": 0.06, "eps_step": 0.01, "max_iter": 12, "verbose": False}
    attack = evasion.ProjectedGradientDescent(estimator, **options)
    adversaries = attack.generate(unit, one_hot(labels))
    assert np.abs(adversaries - unit).max() <= 0.06 + 1e-6
    defended = mean_probabilities(np.clip(adversaries * 255, 0, 255).astype(np.float32))
    assert (defended.argmax(axis=1) != labels).all()


def test_defences_may_be_left_out_at_prediction(toy):
    off = PixelDeflectionPreprocessor(500, rng=0, apply_predict=False)
    given = art_classifier(toy, preprocessing_defences=[off]).predict(photos(2))
    np.testing.assert_array_equal(given, art_classifier(toy).predict(photos(2)))
    assert (off.apply_fit, off.apply_predict) == (False, False)


# --- ranges and wrong input ---


@pytest.mark.parametrize("high", [1, 255])
def test_arrays_say_a_range_as_numbers_do(toy, high):
    images = photos(2) * np.float32(high / 255)
    arrays = (np.zeros((1, 1, 3)), np.full((1, 1, 3), high))
    bridges = [art_classifier(toy, clip_values=values) for values in (arrays, (0, high))]
    np.testing.assert_array_equal(*(made.predict(images) for made in bridges))
    for made in bridges:
        assert np.unique(made.clip_values).tolist() == [0, high]


def test_what_is_wrong_is_told(toy):
    made, one = art_classifier(toy), photos(1)
    none = one[:0]
    shares = np.full((1, 6), 1 / 6)
    for match, call in (
        ("batch_size: expected at least 1", lambda: art_classifier(toy, batch_size=0)),
        ("clip_values: expected", lambda: art_classifier(toy, clip_values=(0, 2))),
        ("training_mode: expected False", lambda: made.predict(one, training_mode=True)),
        ("training_mode", lambda: made.class_gradient(one, 0, training_mode=True)),
        ("training_mode", lambda: made.loss_gradient(one, [0], training_mode=True)),
        (r"y: expected class numbers \(N,\), or rows", lambda: made.loss_gradient(one, shares)),
        ("labels: expected", lambda: made.loss_gradient(one, [6])),
        ("reduction: expected", lambda: made.compute_loss(one, [0], reduction="median")),
        ("x: expected at least one image, got none", lambda: made.predict(none)),
        ("x: expected at least one image, got none", lambda: made.class_gradient(none)),
        ("x: expected at least one", lambda: made.loss_gradient(none, [])),
    ):
        with pytest.raises(ValueError, match=match):
            call()
