import subprocess
import sys

import numpy as np
import pytest
from conftest import photo, photos

from pdutils.defenses.art import (
    BridgedClassifier,
    CandidateClassifier,
    PixelDeflectionPreprocessor,
    WaveletDenoisingPreprocessor,
    art_attack,
    art_classifier,
    log_probabilities,
    loss_gradient,
)
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
def test_predictions_are_log_probabilities(toy, clip_values):
    images = photos(3)
    given = art_classifier(toy, clip_values=clip_values).predict(images * clip_values[1] / 255)
    np.testing.assert_allclose(np.exp(given), toy.predict(images), rtol=1e-5)
    assert given.max() < 0


@pytest.mark.parametrize("clip_values", RANGES)
@pytest.mark.parametrize("label", [None, 2, np.int64(3), [1, 5, 1], np.array([0, 2, 2])])
def test_class_gradients_are_those_of_arts_own_classifier(toy, clip_values, label):
    images = photos(3) * np.float32(clip_values[1] / 255)
    expected = plain_estimator(toy, clip_values).class_gradient(
        images, int(label) if isinstance(label, np.int64) else label
    )
    given = art_classifier(toy, clip_values=clip_values).class_gradient(images, label)
    assert given.shape == (3, 6 if label is None else 1, 32, 32, 3)
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("clip_values", RANGES)
def test_loss_gradients_and_losses_are_those_of_arts_own_classifier(toy, clip_values):
    import tensorflow as tf

    images = photos(3) * np.float32(clip_values[1] / 255)
    ours, plain = art_classifier(toy, clip_values=clip_values), plain_estimator(toy, clip_values)
    expected = plain.loss_gradient(images, one_hot([1, 4, 4]))
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * np.abs(expected).max()}
    for y in ([1, 4, 4], one_hot([1, 4, 4]), tf.constant(one_hot([1, 4, 4]))):
        np.testing.assert_allclose(ours.loss_gradient(images, y), expected, **tolerance)
    of_tensor = ours.loss_gradient(tf.constant(images), tf.constant(one_hot([1, 4, 4])))
    assert tf.is_tensor(of_tensor)
    np.testing.assert_allclose(of_tensor, expected, **tolerance)

    losses = -plain.predict(images)[[0, 1, 2], [1, 4, 4]]
    for reduction, value in (("none", losses), ("sum", losses.sum()), ("mean", losses.mean())):
        given = ours.compute_loss(images, one_hot([1, 4, 4]), reduction=reduction)
        np.testing.assert_allclose(given, value, rtol=1e-4)


def test_a_tape_sees_through_the_model_itself(toy):
    import tensorflow as tf

    images = photos(2)
    bridge = art_classifier(toy)
    with tf.GradientTape() as tape:
        x = tf.constant(images)
        tape.watch(x)
        loss = -tf.reduce_sum(bridge.model(x)[:, 2])
    gradient, _ = toy.loss_gradient(images, 2)
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


def test_candidates_are_a_part_of_the_classes(toy):
    images = photos(3)
    shown = np.array([[0, 1], [5, 2], [3, 4]])
    some, all_of_them = CandidateClassifier(toy, images, shown), art_classifier(toy)
    rows = np.arange(3)[:, None]
    np.testing.assert_allclose(some.predict(images), all_of_them.predict(images)[rows, shown])
    expected = all_of_them.class_gradient(images)[rows, shown]
    np.testing.assert_allclose(some.class_gradient(images), expected, rtol=1e-4, atol=1e-8)
    with pytest.raises(ValueError, match="label: expected None"):
        some.class_gradient(images, 1)


def test_candidates_are_judged_as_far_ahead_as_the_attack_overshoots(toy):
    images, others = photos(2), photos(2)[::-1].copy()
    shown = np.array([[0, 1], [5, 2]])
    ahead = CandidateClassifier(toy, images, shown, overshoot=0.5)
    there = np.clip(images + 1.5 * (others - images), 0, 255).astype(np.float32)
    plain = CandidateClassifier(toy, images, shown)
    np.testing.assert_allclose(ahead.predict(others), plain.predict(there), rtol=1e-5)
    np.testing.assert_allclose(
        ahead.class_gradient(others), plain.class_gradient(there), rtol=1e-3, atol=1e-8
    )


def test_a_batch_that_is_all_but_black_is_shown_as_it_is(toy):
    dark = np.random.default_rng(0).uniform(0, 0.9, (2, 32, 32, 3)).astype(np.float32)
    with_white = np.concatenate([dark, np.full((1, 32, 32, 3), 255, np.float32)])
    probabilities = toy.predict(with_white)[:2]
    np.testing.assert_allclose(np.exp(log_probabilities(toy, dark)), probabilities, rtol=1e-5)
    gradient, logits = loss_gradient(toy, dark, np.array([1, 2]))
    expected, _ = toy.loss_gradient(with_white, [1, 2, 0])
    np.testing.assert_allclose(gradient, expected[:2], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(np.exp(logits), probabilities, rtol=1e-5)


def test_other_attacks_of_art_run_on_it(toy):
    images = photos(2) / np.float32(255)
    labels = one_hot(toy.predict(photos(2)).argmax(axis=1))
    bridge = art_classifier(toy, clip_values=(0, 1))
    for name, options in (
        ("ProjectedGradientDescent", {"eps": 0.1, "eps_step": 0.02, "max_iter": 10}),
        ("AutoProjectedGradientDescent", {"eps": 0.1, "eps_step": 0.02, "max_iter": 10}),
        ("SquareAttack", {"eps": 0.1, "max_iter": 20}),
    ):
        adversaries = art_attack(name, bridge, **options).generate(images, labels)
        assert np.abs(adversaries - images).max() <= 0.1 + 1e-6
        if name != "SquareAttack":
            # A random search need not find a step in its few draws.
            gain = bridge.compute_loss(adversaries, labels) - bridge.compute_loss(images, labels)
            assert (gain > 0).all()


@pytest.mark.slow
def test_importing_it_says_nothing():
    command = [sys.executable, "-W", "error", "-c", "import pdutils.defenses.art"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


# --- pixel deflection for ART ---


@pytest.mark.parametrize("clip_values", RANGES)
@pytest.mark.parametrize("reading", ["blog", "repo", "paper"])
def test_the_preprocessor_deflects_as_pixel_deflection_does(clip_values, reading):
    images = photos(3)
    unit = np.float32(clip_values[1] / 255)
    defence = PixelDeflectionPreprocessor(150, 5, reading, rng=7, clip_values=clip_values)
    given, y = defence(images * unit, "y")
    expected = pixel_deflection(images, 150, 5, reading=reading, rng=7)
    np.testing.assert_array_equal(given, expected * unit)
    assert y == "y"


def test_each_call_draws_afresh_from_the_seed():
    images = photos(2)
    one, other = (PixelDeflectionPreprocessor(50, rng=1) for _ in range(2))
    first, second = one(images)[0], one(images)[0]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(other(images)[0], first)
    np.testing.assert_array_equal(other(images)[0], second)
    # No image draws what another does.
    same = PixelDeflectionPreprocessor(50, rng=1)(np.stack([images[0]] * 2))[0]
    assert not np.array_equal(same[0], same[1])


@pytest.mark.parametrize("clip_values", RANGES)
def test_the_map_is_made_of_grey_levels_at_each_call(clip_values):
    images = photos(2)
    seen = []

    def map_maker(shown):
        seen.append(shown)
        maps = np.zeros((2, 32, 32), np.float32)
        maps[:, 8:24, 8:24] = 1
        return maps

    defence = PixelDeflectionPreprocessor(400, map_maker=map_maker, rng=0, clip_values=clip_values)
    scaled = images * np.float32(clip_values[1] / 255)
    changed = (defence(scaled)[0] != scaled).any(axis=3)
    np.testing.assert_allclose(seen[0], images, rtol=1e-6)
    assert not changed[:, 8:24, 8:24].any()
    assert changed.sum() > 200


# --- wavelet denoising for ART ---


@pytest.mark.parametrize("clip_values", RANGES)
@pytest.mark.parametrize("options", [{}, {"sigma": 0.1, "mode": "soft", "sigma_scale": "rgb"}])
def test_the_preprocessor_denoises_as_denoise_wavelet_does(clip_values, options):
    images = photos(2)
    unit = np.float32(clip_values[1] / 255)
    given, y = WaveletDenoisingPreprocessor(**options, clip_values=clip_values)(images * unit)
    np.testing.assert_allclose(given / unit, denoise_wavelet(images, **options), atol=1e-2)
    assert y is None


@pytest.mark.parametrize("clip_values", RANGES)
def test_the_exact_gradient_is_that_of_finite_differences(clip_values):
    unit = clip_values[1] / 255
    image = (photos(1) * unit).astype(np.float32)
    defence = WaveletDenoisingPreprocessor(**BLUR, gradient="exact", clip_values=clip_values)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=image.shape).astype(np.float32)
    gradient = defence.estimate_gradient(image, weights)
    for _ in range(3):
        direction = rng.normal(size=image.shape)
        way = (0.05 * unit * direction).astype(np.float32)
        ahead, back = (
            np.sum(
                weights * denoise_wavelet((image + s * way) / np.float32(unit), **BLUR), None, float
            )
            for s in (1, -1)
        )
        measured = (ahead - back) / 2 * unit
        np.testing.assert_allclose(np.sum(gradient * way, None, float), measured, rtol=0.02)
    # It is no identity: what is shrunk does not come through whole.
    assert np.abs(gradient - weights).max() > 0.1


@pytest.mark.parametrize("defence", [PixelDeflectionPreprocessor(), WaveletDenoisingPreprocessor()])
def test_a_gradient_comes_straight_through(defence):
    gradient = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(defence.estimate_gradient(photos(2), gradient), gradient)


def test_gradients_of_many_classes_come_back_class_by_class():
    images = photos(2)
    gradients = np.random.default_rng(0).normal(size=(2, 4, 32, 32, 3)).astype(np.float32)
    defence = WaveletDenoisingPreprocessor(gradient="exact")
    back = defence.estimate_gradient(images, gradients)
    assert back.shape == gradients.shape
    for k in range(4):
        np.testing.assert_allclose(
            back[:, k], defence.estimate_gradient(images, gradients[:, k]), atol=1e-6
        )


# --- both, in estimators of ART ---


def make_defences(clip_values, **options):
    return [
        PixelDeflectionPreprocessor(60, 5, rng=3, clip_values=clip_values, **options),
        WaveletDenoisingPreprocessor(clip_values=clip_values, **options),
    ]


@pytest.mark.parametrize("make", [plain_estimator, "bridge", "black box"])
def test_estimators_of_art_predict_what_the_defended_network_sees(toy, make):
    from art.estimators.classification import BlackBoxClassifier

    images = photos(3)
    unit = images / np.float32(255)
    defences = make_defences((0.0, 1.0))
    if make == "bridge":
        estimator = art_classifier(toy, clip_values=(0, 1), preprocessing_defences=defences)
    elif make == "black box":
        bare = plain_estimator(toy)
        shape = (32, 32, 3)
        estimator = BlackBoxClassifier(
            bare.predict, shape, 6, clip_values=(0, 1), preprocessing_defences=defences
        )
    else:
        estimator = make(toy, (0.0, 1.0), defences)
    expected = toy.predict(denoise_wavelet(pixel_deflection(images, 60, 5, rng=3)))
    np.testing.assert_allclose(np.exp(estimator.predict(unit)), expected, rtol=1e-3)


def test_channels_may_come_first():
    images = photos(2)
    first = np.ascontiguousarray(np.moveaxis(images, 3, 1))
    pairs = zip(
        make_defences((0.0, 255.0)),
        make_defences((0.0, 255.0), channels_first=True),
        strict=True,
    )
    for last_defence, first_defence in pairs:
        expected = np.moveaxis(last_defence(images)[0], 3, 1)
        np.testing.assert_array_equal(first_defence(first)[0], expected)
        assert first_defence.estimate_gradient(first, first).shape == first.shape


@pytest.mark.parametrize("make", [plain_estimator, BridgedClassifier])
def test_the_exact_gradient_of_a_defended_estimator_is_that_of_its_loss(toy, make):
    images = photos(2) / np.float32(255)
    labels = one_hot([1, 4])
    defence = WaveletDenoisingPreprocessor(**BLUR, gradient="exact", clip_values=(0, 1))
    if make is BridgedClassifier:
        estimator = make(toy, clip_values=(0.0, 1.0), preprocessing_defences=[defence])
    else:
        estimator = make(toy, (0.0, 1.0), [defence])
    gradient = estimator.loss_gradient(images, labels)
    way = (2e-3 * np.sign(gradient)).astype(np.float32)
    ahead, back = (-(estimator.predict(images + s * way) * labels).sum() for s in (1, -1))
    np.testing.assert_allclose(np.sum(gradient * way), (ahead - back) / 2, rtol=0.03)


def test_the_chain_denoises_the_deflected_image_not_the_one_that_came(toy):
    images = photos(1)
    pixel = PixelDeflectionPreprocessor(300, 5, rng=3)
    wavelet = WaveletDenoisingPreprocessor(**BLUR, gradient="exact")
    bridge = art_classifier(toy, preprocessing_defences=[pixel, wavelet])
    given = bridge.loss_gradient(images, [2])
    deflected = pixel_deflection(images, 300, 5, rng=3)
    denoised = wavelet(deflected)[0]
    expected = wavelet.estimate_gradient(deflected, toy.loss_gradient(denoised, 2)[0])
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("make", [plain_estimator, BridgedClassifier])
@pytest.mark.parametrize("gradient", ["identity", "exact"])
def test_an_attack_of_art_fools_the_defended_estimator(toy, make, gradient):
    images = photos(4)
    unit = images / np.float32(255)
    pixel = PixelDeflectionPreprocessor(20, 3, rng=0, clip_values=(0, 1))
    wavelet = WaveletDenoisingPreprocessor(gradient=gradient, clip_values=(0, 1))
    if make is BridgedClassifier:
        estimator = make(toy, clip_values=(0.0, 1.0), preprocessing_defences=[pixel, wavelet])
    else:
        estimator = make(toy, (0.0, 1.0), [pixel, wavelet])

    # Judged by our own defence, with draws that the attack has not seen.
    def mean_probabilities(batch):
        draws = [pixel_deflection(batch, 20, 3, rng=seed) for seed in range(50, 58)]
        return np.mean([toy.predict(denoise_wavelet(draw)) for draw in draws], axis=0)

    labels = mean_probabilities(images).argmax(axis=1)
    attack = art_attack("ProjectedGradientDescent", estimator, eps=0.06, eps_step=0.01, max_iter=12)
    adversaries = attack.generate(unit, one_hot(labels))
    assert np.abs(adversaries - unit).max() <= 0.06 + 1e-6
    defended = mean_probabilities(np.clip(adversaries * 255, 0, 255).astype(np.float32))
    assert (defended.argmax(axis=1) != labels).all()


def test_they_may_be_left_out_at_prediction(toy):
    images = photos(2)
    off = PixelDeflectionPreprocessor(500, rng=0, apply_predict=False)
    bridge = art_classifier(toy, preprocessing_defences=[off])
    np.testing.assert_array_equal(bridge.predict(images), art_classifier(toy).predict(images))
    assert (off.apply_fit, off.apply_predict) == (False, False)


# --- ranges ---

#: Every way in which ART takes the same range.
ARRAYS = {
    "scalars of NumPy": lambda high: (np.float32(0), np.float32(high)),
    "a pair": lambda high: np.array([0, high]),
    "channels": lambda high: (np.zeros(3), np.full(3, high)),
    "channels to broadcast": lambda high: (np.zeros((1, 1, 3)), np.full((1, 1, 3), high)),
    "values": lambda high: (np.zeros((32, 32, 3)), np.full((32, 32, 3), high, np.float32)),
    "one number and channels": lambda high: (0, np.full(3, high)),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("high", [1, 255])
def test_arrays_say_what_numbers_say(toy, kind, high):
    images = photos(2) * np.float32(high / 255)
    plain, arrays = (0, high), ARRAYS[kind](high)
    for make in (
        lambda values: PixelDeflectionPreprocessor(80, 5, rng=1, clip_values=values),
        lambda values: WaveletDenoisingPreprocessor(clip_values=values),
    ):
        np.testing.assert_array_equal(make(arrays)(images)[0], make(plain)(images)[0])
    bridges = [art_classifier(toy, clip_values=values) for values in (arrays, plain)]
    np.testing.assert_allclose(*(bridge.predict(images) for bridge in bridges), rtol=1e-5)
    options = {"eps": 0.1 * high, "eps_step": 0.02 * high, "max_iter": 3}
    adversaries = [
        art_attack("ProjectedGradientDescent", bridge, **options).generate(images, one_hot([1, 4]))
        for bridge in bridges
    ]
    np.testing.assert_allclose(*adversaries, atol=1e-5 * high)


@pytest.mark.parametrize("reading", ["blog", "repo", "paper"])
@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_deflected_does_not_depend_on_the_range(reading, mapped):
    def map_maker(shown):
        return shown.mean(axis=3) / np.float32(256)

    images = photos(2)
    maker = map_maker if mapped else None
    options = {"deflections": 300, "window": 6, "reading": reading, "map_maker": maker, "rng": 5}
    unit = images / np.float32(255)
    given = PixelDeflectionPreprocessor(**options, clip_values=(0, 1))(unit)[0]
    expected = PixelDeflectionPreprocessor(**options)(images)[0]
    assert (expected != images).any()
    # A map that differs in its last bit may change a draw.
    assert np.mean(np.abs(given * 255 - expected) > 1e-3) < 0.005


@pytest.mark.parametrize("sigma_scale", ["channel", "rgb"])
@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("sigma", [0.0, 0.04, 0.3])
def test_what_is_denoised_does_not_depend_on_the_range(sigma_scale, mode, sigma):
    images = photos(2)
    unit = images / np.float32(255)
    weights = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    for gradient in ("identity", "exact"):
        options = {"sigma": sigma, "mode": mode, "sigma_scale": sigma_scale, "gradient": gradient}
        ones = WaveletDenoisingPreprocessor(**options, clip_values=(0, 1))
        grey = WaveletDenoisingPreprocessor(**options)
        away = [
            np.abs(ones(unit)[0] * 255 - grey(images)[0]),
            np.abs(ones.estimate_gradient(unit, weights) - grey.estimate_gradient(images, weights)),
        ]
        # A coefficient within rounding of its threshold may go either way.
        assert all(np.mean(one > 0.01) < 0.005 for one in away)


@pytest.mark.parametrize(
    "make", [PixelDeflectionPreprocessor, WaveletDenoisingPreprocessor], ids=["pixel", "wavelet"]
)
def test_images_of_another_range_are_refused(make):
    images = photos(2)
    with pytest.raises(ValueError, match=r"x: expected values in \[0, 1\], which clip_values says"):
        make(clip_values=(0, 1))(images)
    message = r"x: expected values in \[0, 255\], which clip_values says, got \[0\.\d+, 0\.\d+\]"
    with pytest.raises(ValueError, match=message):
        make()(images / np.float32(255))
    with pytest.raises(ValueError, match=r"x: expected values in \[0, 255\]"):
        make()(images - 200)
    with pytest.raises(ValueError, match=message):
        WaveletDenoisingPreprocessor(sigma_scale="rgb").estimate_gradient(
            images / np.float32(255), images
        )
    with pytest.raises(ValueError, match="x: expected at least one image"):
        make()(images[:0])
    # A black picture is one in either range, and a wavelet may ring a little.
    assert make()(np.zeros_like(images))[0].max() == 0
    make(clip_values=(0, 1))(images / np.float32(255) * 1.2 - 0.1)


# --- wrong input ---


def test_wrong_ranges(toy):
    per_channel = (np.zeros(3), np.array([1, 1, 255]))
    for wrong in (
        (0, 2),
        (-1, 1),
        (0.1, 1),
        (0, np.nan),
        per_channel,
        (0,),
        (0, 1, 255),
        None,
        255,
    ):
        with pytest.raises(ValueError, match=r"clip_values: expected \(0, 255\) or \(0, 1\), for"):
            art_classifier(toy, clip_values=wrong)
        with pytest.raises(ValueError, match="clip_values"):
            PixelDeflectionPreprocessor(clip_values=wrong)
        with pytest.raises(ValueError, match="clip_values"):
            WaveletDenoisingPreprocessor(clip_values=wrong)


def test_wrong_knobs(toy):
    for make, match in (
        (lambda: PixelDeflectionPreprocessor(-1), "deflections"),
        (lambda: PixelDeflectionPreprocessor(window=0), "window"),
        (lambda: PixelDeflectionPreprocessor(reading="book"), "reading"),
        (lambda: PixelDeflectionPreprocessor(rng=-1), "rng"),
        (lambda: WaveletDenoisingPreprocessor(-0.1), "sigma"),
        (lambda: WaveletDenoisingPreprocessor(mode="softer"), "mode"),
        (lambda: WaveletDenoisingPreprocessor(gradient="none"), "gradient: expected one of"),
        (lambda: PixelDeflectionPreprocessor().set_params(window=0), "window"),
        (lambda: art_classifier(toy, batch_size=0), "batch_size"),
        (lambda: art_attack("NoSuchAttack", art_classifier(toy)), "NoSuchAttack"),
    ):
        with pytest.raises(ValueError, match=match):
            make()


def test_wrong_images_and_gradients():
    for defence in (PixelDeflectionPreprocessor(), WaveletDenoisingPreprocessor()):
        for wrong in (photo(), photos(2)[..., :2], photos(2).astype(np.uint8)):
            with pytest.raises(ValueError, match=r"x: expected floats of shape \(N, H, W, 3\)"):
                defence(wrong)
        with pytest.raises(ValueError, match="grad: expected the shape"):
            defence.estimate_gradient(photos(2), photos(3))


def test_training_and_labels_in_parts_are_refused(toy):
    bridge = art_classifier(toy)
    for call in (
        lambda: bridge.predict(photos(1), training_mode=True),
        lambda: bridge.class_gradient(photos(1), 0, training_mode=True),
        lambda: bridge.loss_gradient(photos(1), [0], training_mode=True),
    ):
        with pytest.raises(ValueError, match="training_mode: expected False"):
            call()
    with pytest.raises(ValueError, match=r"y: expected class numbers \(N,\), or rows"):
        bridge.loss_gradient(photos(1), np.full((1, 6), 1 / 6))
    with pytest.raises(ValueError, match="labels: expected"):
        bridge.loss_gradient(photos(1), [6])
    with pytest.raises(ValueError, match="reduction: expected"):
        bridge.compute_loss(photos(1), [0], reduction="median")


def test_importing_art_leaves_the_logging_of_others_alone():
    script = (
        "import io, logging; stream = io.StringIO(); handler = logging.StreamHandler(stream); "
        "logging.getLogger().addHandler(handler); import pdutils.defenses.art; "
        "assert handler in logging.getLogger().handlers; "
        "import weakref; assert any(r() is handler for r in logging._handlerList)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_batch_of_no_image_is_refused_in_a_sentence(toy):
    none, bridge = np.zeros((0, 32, 32, 3), dtype=np.float32), art_classifier(toy)
    for step in (
        lambda: PixelDeflectionPreprocessor()(none),
        lambda: WaveletDenoisingPreprocessor()(none),
        lambda: WaveletDenoisingPreprocessor().estimate_gradient(none, none),
        lambda: bridge.predict(none),
        lambda: bridge.class_gradient(none),
        lambda: bridge.loss_gradient(none, np.zeros(0, dtype=int)),
    ):
        with pytest.raises(ValueError, match="x: expected at least one image, got none"):
            step()
