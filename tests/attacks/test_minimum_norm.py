import warnings

import numpy as np
import pytest
from conftest import photo, photos

from pdutils.attacks import minimum_norm
from pdutils.attacks.gradient import fgsm
from pdutils.attacks.minimum_norm import (
    carlini_wagner,
    deepfool,
    fgsm_smallest,
    jsma,
    lbfgs,
    rescale,
)
from pdutils.classifiers import Classifier
from pdutils.metrics import linf, relative_l2

ATTACKS = [fgsm_smallest, deepfool, carlini_wagner, jsma, lbfgs]
TARGETED = [fgsm_smallest, carlini_wagner, jsma, lbfgs]

#: What makes them quick on the toys, and gives JSMA as many values as 32 x 32 pixels need.
QUICK = {attack: {} for attack in ATTACKS} | {
    carlini_wagner: {"search_steps": 3, "iterations": 40},
    jsma: {"max_share": 0.2},
    lbfgs: {"search_steps": 4, "iterations": 10},
}


def predicted(classifier, images):
    return classifier.predict(images).argmax(axis=-1)


def note_passes(monkeypatch, classifier, step):
    """Note of how many images the passes of one kind are."""
    passes, run = [], classifier.network.step(step)

    def noted(shown, *labels):
        passes.append(len(shown))
        return run(shown, *labels)

    monkeypatch.setitem(classifier.network._compiled, step, noted)
    return passes


@pytest.fixture(scope="module")
def linear():
    """A network whose logits are linear in the pixels: the smallest perturbation is known."""
    import keras

    inputs = keras.Input((16, 16, 3))
    start = keras.initializers.RandomNormal(stddev=1, seed=4)
    outputs = keras.layers.Dense(4, activation="softmax", kernel_initializer=start)(
        keras.layers.Flatten()(inputs)
    )
    return Classifier(keras.Model(inputs, outputs), preprocess=lambda x: x / 255)


def grey_photos(n):
    """Pictures far from black and white, so that no bound is met."""
    return np.rint(128 + (photos(n, 16, 16) - 128) * 0.5).astype(np.float32)


def distances(classifier, images):
    """The exact distance of each image to each class, in grey levels; 0 to its own."""
    kernel, bias = (np.asarray(w, np.float64) for w in classifier.model.layers[-1].weights)
    logits = images.reshape(len(images), -1).astype(np.float64) / 255 @ kernel + bias
    best = logits.argmax(axis=1)
    gaps = logits.max(axis=1, keepdims=True) - logits
    norms = np.linalg.norm(kernel[:, best].T[:, None] - kernel.T[None], axis=2) / 255
    return np.divide(gaps, norms, out=np.zeros_like(gaps), where=norms > 0)


def length(images, adversaries):
    changes = (adversaries - images).reshape(len(images), -1).astype(np.float64)
    return np.linalg.norm(changes, axis=1)


# --- what holds for every attack ---


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_fools_the_network_with_what_an_8_bit_file_holds_and_says_nothing(toy, attack, capfd):
    images = photos(3)
    labels = predicted(toy, images)
    labels[1] = (labels[1] + 1) % 6
    before = images.copy()
    images.flags.writeable = False
    capfd.readouterr()
    adversaries = attack(toy, images, labels, **QUICK[attack])
    assert capfd.readouterr() == ("", "")
    assert adversaries.dtype == np.float32
    assert adversaries.shape == images.shape
    np.testing.assert_array_equal(adversaries, np.rint(np.clip(adversaries, 0, 255)))
    assert (predicted(toy, adversaries) != labels).all()
    assert 0 < relative_l2(images, adversaries)[[0, 2]].max() < 0.15
    assert linf(images, adversaries)[[0, 2]].min() > 0
    np.testing.assert_array_equal(images, before)
    # One that is misclassified comes back as it is, or seen as the target.
    np.testing.assert_array_equal(adversaries[1], images[1])
    if attack in TARGETED:
        target = int(predicted(toy, images[0]))
        np.testing.assert_array_equal(attack(toy, images[0], target, targeted=True), images[0])
    # One image is a batch of one, and rounded first.
    alone = attack(toy, images[0] + np.float32(0.2), int(labels[0]), **QUICK[attack])
    assert alone.shape == images[0].shape
    batch = attack(toy, images[:1], labels[:1], **QUICK[attack])
    np.testing.assert_array_equal(batch[0], alone)


@pytest.mark.parametrize("attack", TARGETED)
def test_it_reaches_a_target(toy, attack):
    images = photos(3)
    targets = np.argsort(toy.predict(images), axis=1)[:, -3]
    options = QUICK[attack] | ({"max_share": 0.5} if attack is jsma else {})
    adversaries = attack(toy, images, targets, targeted=True, **options)
    reached = predicted(toy, adversaries) == targets
    # A single step along the sign need not get there.
    assert reached.mean() >= (0.3 if attack is fgsm_smallest else 1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_black_images_are_no_error(toy, attack):
    black = np.zeros((1, 32, 32, 3), np.float32)
    adversaries = attack(toy, black, int(predicted(toy, black)[0]), **QUICK[attack])
    np.testing.assert_array_equal(adversaries, np.rint(adversaries))


# --- how short a perturbation is, where the shortest is known ---


@pytest.mark.parametrize(
    ("attack", "targeted", "n", "factor"),
    [
        (deepfool, False, 4, 1.15),
        (carlini_wagner, False, 4, 1.35),
        (carlini_wagner, True, 3, 1.3),
        (lbfgs, False, 2, 1.3),
        (lbfgs, True, 3, 1.4),
    ],
)
def test_it_is_close_to_the_shortest_where_the_network_is_linear(
    linear, attack, targeted, n, factor
):
    images = grey_photos(n)
    by_class = distances(linear, images)
    classes = by_class.argmax(axis=1) if targeted else predicted(linear, images)
    exact = by_class.max(axis=1) if targeted else np.sort(by_class, axis=1)[:, 1]
    # Rounding is little beside it.
    assert exact.min() > 15
    adversaries = attack(linear, images, classes, **{"targeted": True} if targeted else {})
    assert ((predicted(linear, adversaries) == classes) == targeted).all()
    ratio = length(images, adversaries) / exact
    assert ratio.min() >= 1 - 1e-4
    # A third class may stand in the way, so the border to the target is a lower bound only.
    assert (np.median(ratio) if targeted else ratio.max()) <= factor


def test_without_lengthening_a_short_perturbation_is_rounded_away(toy, monkeypatch):
    images = photos(16)
    labels = predicted(toy, images)
    lengthened = deepfool(toy, images, labels)
    monkeypatch.setattr(minimum_norm, "_FACTORS", np.ones(1))
    as_found = deepfool(toy, images, labels)
    assert (predicted(toy, lengthened) != labels).all()
    assert (predicted(toy, as_found) == labels).mean() > 0.1
    kept = predicted(toy, as_found) != labels
    np.testing.assert_array_equal(lengthened[kept], as_found[kept])
    assert (length(images, lengthened) <= 11 * length(images, as_found) + 100).all()


def test_overshoot_and_confidence_go_farther(linear):
    images = grey_photos(3)
    labels = predicted(linear, images)
    near, far = (length(images, deepfool(linear, images, labels, overshoot=o)) for o in (0, 0.3))
    np.testing.assert_allclose(far / near, 1.3, rtol=0.06)
    near, far = (
        length(images, carlini_wagner(linear, images, labels, confidence=c)) for c in (0, 5)
    )
    assert (far > near * 1.05).all()
    probabilities = np.sort(linear.predict(carlini_wagner(linear, images, labels, confidence=5)))
    assert np.log(probabilities[:, -1] / probabilities[:, -2]).min() > 4.5


def test_deepfool_looks_at_its_candidates_and_stops_soon_after_the_border(toy, monkeypatch):
    images, passes = photos(5), note_passes(monkeypatch, toy, "gradient")
    deepfool(toy, images, predicted(toy, images), candidates=3, batch_size=7)
    # Two images at a time, three gradients of each, as long as it is not over the border.
    assert set(passes) == {6, 3}
    for image in images:
        passes.clear()
        deepfool(toy, image, predicted(toy, image))
        # One that overshoots at the end only creeps along the border for its 50 steps.
        assert 1 <= len(passes) <= 4


def test_deepfool_needs_no_gradient_of_what_is_over_the_border(toy, monkeypatch):
    from pdutils.attacks import _art

    images, passes = photos(5), note_passes(monkeypatch, toy, "gradient")

    class Thorough(_art.CandidateClassifier):
        def class_gradient(self, x, *args, **options):
            self._going[:] = True
            return super().class_gradient(x, *args, **options)

    found, totals = [], []
    for kind in (_art.CandidateClassifier, Thorough):
        passes.clear()
        monkeypatch.setattr(_art, "CandidateClassifier", kind)
        found.append(deepfool(toy, images, predicted(toy, images), candidates=3))
        totals.append(sum(passes))
    np.testing.assert_allclose(*found, atol=1)
    # At least the last step's of each image.
    assert totals[0] <= totals[1] - 3 * len(images)


def test_no_length_of_nothing_is_tried(toy, monkeypatch):
    images, labels = photos(3), predicted(toy, photos(3))
    passes = note_passes(monkeypatch, toy, "predict")
    judge = minimum_norm._Judge(toy, images, labels, False, 32)
    step = np.zeros_like(images)
    step[1, 0, 0, 0] = 1
    passes.clear()
    judge.take_first_success(step, [1, 2, 3])
    assert passes == [1, 1, 1]
    np.testing.assert_array_equal(judge.adversaries(), images)


# --- the smallest step ---


def test_the_smallest_step_is_that_of_a_plain_search(toy):
    images = photos(5)
    labels = predicted(toy, images)
    result = fgsm_smallest(toy, images, labels, max_eps=6)
    for image, label, adversary in zip(images, labels, result, strict=True):
        for eps in range(1, 7):
            expected = fgsm(toy, image, label, eps=eps)
            if predicted(toy, expected) != label:
                break
        assert np.mean(adversary != expected) < 2e-3


class Islands:
    """A network that is fooled by some brightnesses only, with gaps between them."""

    def __init__(self, *fooled):
        self.fooled = fooled
        self.sizes = []

    def check_labels(self, labels, n):
        return np.broadcast_to(labels, (n,)).astype(np.int64)

    def loss_gradient(self, images, labels, batch_size):
        return np.ones_like(images), None

    def predict(self, images, batch_size):
        self.sizes.append(len(images))
        seen = np.isin(images[:, 0, 0, 0], self.fooled).astype(int)
        return np.eye(2, dtype=np.float32)[seen]


def test_a_small_step_counts_though_a_greater_one_fails_and_finished_images_leave_the_batch():
    grey = np.full((3, 3, 3), 90, np.float32)
    # Halving the span from 1 to 16 looks at 8 and 12 first, and finds 13 at best.
    result = fgsm_smallest(Islands(92, 103), grey, 0, max_eps=16)
    np.testing.assert_array_equal(result, grey + 2)
    np.testing.assert_array_equal(fgsm_smallest(Islands(92), grey, 0, max_eps=1), grey + 1)
    network, greys = Islands(90), np.stack([grey - 10, grey - 5, grey - 2])
    result = fgsm_smallest(network, greys, 0, max_eps=8)
    np.testing.assert_array_equal(result[:, 0, 0, 0], [88, 90, 90])
    # All at first, then until the steps of 2 and of 5 have been taken.
    assert network.sizes == [3, 3, 3, 2, 2, 2, 1, 1, 1]


# --- JSMA ---


@pytest.mark.parametrize("step", [255, 40, -255])
def test_jsma_changes_the_two_values_that_matter_most(toy, step):
    image = photo(seed=2)
    order = np.argsort(toy.predict(image))
    label, target = int(order[-1]), int(order[-2])
    expected = image.copy()
    for _ in range(500):
        gradient, probabilities = toy.loss_gradient(expected, target)
        if probabilities.argmax() == target:
            break
        gain = -gradient.ravel() * np.sign(step)
        gain[expected.ravel() == (255 if step > 0 else 0)] = -np.inf
        best = np.argsort(gain)[-2:]
        flat = expected.ravel()
        flat[best] = np.clip(flat[best] + step, 0, 255)
        expected = flat.reshape(image.shape)
    result = jsma(toy, image, label, step=step, max_share=1)
    np.testing.assert_array_equal(result, expected)
    assert predicted(toy, result) == target


def test_jsma_changes_no_more_than_its_share(toy):
    images = photos(3)
    targets = np.argsort(toy.predict(images), axis=1)[:, 0]
    result = jsma(toy, images, targets, targeted=True, max_share=0.005)
    changed = (result != images).sum(axis=(1, 2, 3))
    # 15 values of 3072, and the two that exceed the share.
    assert changed.max() <= 17
    assert changed.max() >= 15


# --- L-BFGS ---


@pytest.fixture
def searched(monkeypatch):
    """From a search to the weights that are tried and what comes back, by weights of success."""

    def search(border, first, steps, value):
        consts = []

        def found(classifier, image, target, const, iterations):
            consts.append(const)
            return np.full_like(image, value(const))

        def predict(images, batch_size):
            # The weight of what is shown last; the clean image is never there.
            return np.eye(2, dtype=np.float32)[[int(bool(consts) and consts[-1] <= border)]]

        network, black = Islands(), np.zeros((1, 1, 3), np.float32)
        monkeypatch.setattr(minimum_norm, "_lbfgs", found)
        monkeypatch.setattr(network, "predict", predict)
        best = lbfgs(network, black, 0, initial_const=first, search_steps=steps)
        return np.array(consts), best[0, 0, 0]

    return search


@pytest.mark.parametrize("border", [0.003, 5.0, 700.0])
@pytest.mark.parametrize("first", [1.0, 50.0])
def test_the_search_closes_in_on_the_greatest_weight_that_succeeds(searched, border, first):
    def value(const):
        return np.rint(200 / (1 + const))

    consts, found = searched(border, first, 14, value)
    best = consts[consts <= border].max()
    assert border / 1.2 < best <= border
    assert found == value(best)


def test_a_search_that_never_succeeds_gives_the_last_and_the_next_lies_between(searched):
    consts, found = searched(0, 1.0, 3, lambda const: -np.log10(const))
    np.testing.assert_allclose(consts, [1, 0.1, 0.01])
    assert found == 2
    consts, _ = searched(0.2, 1.0, 4, lambda const: 1)
    np.testing.assert_allclose(consts, [1, 0.1, 10**-0.5, 10**-0.75])


def test_what_comes_out_for_a_weight_is_stationary(linear):
    image = grey_photos(1)[0]
    target = np.int64(distances(linear, image[None])[0].argmax())
    found = minimum_norm._lbfgs(linear, image, target, 0.5, 200)
    # Where the pull of the norm and that of the cross-entropy are equal.
    gradient, _ = linear.loss_gradient(found, target)
    pull = 2 * 0.5 * (found - image) / 255
    assert np.abs(pull).max() > 0.01
    np.testing.assert_allclose(pull, -255 * gradient, atol=0.02 * np.abs(pull).max())


# --- beside Foolbox ---


@pytest.fixture(scope="module")
def by_foolbox(toy):
    """From an attack of theirs to adversaries, one batch for each of `epsilons`, and successes."""
    import tensorflow as tf

    # It imports from a module of SciPy that is to go.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox

    def logits(x):
        return tf.math.log(toy.model(toy.preprocess(x * 255)))

    model = foolbox.TensorFlowModel(logits, bounds=(0, 1))

    def adversaries(name, images, labels, epsilons, **options):
        attack, unit = getattr(foolbox.attacks, name)(**options), tf.constant(images / 255)
        _, clipped, success = attack(model, unit, tf.constant(labels), epsilons=epsilons)
        return [np.asarray(c) * 255 for c in clipped], np.asarray(success)

    return adversaries


def test_the_smallest_step_is_foolboxs(toy, by_foolbox):
    images = photos(10)
    labels = predicted(toy, images)
    epsilons = np.arange(1, 17) / 255
    _, success = by_foolbox("FGSM", images, labels, epsilons, random_start=False)
    assert success.any(axis=0).all()
    smallest = 1 + success.argmax(axis=0)
    assert np.mean(linf(images, fgsm_smallest(toy, images, labels)) == smallest) >= 0.95


CARLINI = {"name": "L2CarliniWagnerAttack", "binary_search_steps": 5, "steps": 60}
DEEPFOOL = {"name": "L2DeepFoolAttack", "steps": 50, "candidates": 6, "overshoot": 0.02}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "other"), [(deepfool, DEEPFOOL), (carlini_wagner, CARLINI), (lbfgs, CARLINI)]
)
def test_perturbations_are_about_as_short_as_foolboxs(toy, by_foolbox, attack, other):
    images = photos(6)
    labels = predicted(toy, images)
    (theirs,), success = by_foolbox(**other, images=images, labels=labels, epsilons=[None])
    ours = attack(toy, images, labels)
    assert success.mean() >= 0.95
    assert (predicted(toy, ours) != labels).mean() >= 0.95
    # Theirs is not rounded to 8 bits, which costs ours some of its length here.
    ratio = np.median(length(images, ours)) / np.median(length(images, theirs))
    assert 0.6 < ratio < 1.5


# --- wrong input ---


@pytest.mark.parametrize("l2", [0.02, 0.1])
def test_a_perturbation_is_brought_to_a_length_in_its_own_direction(l2):
    clean = grey_photos(3)
    step = np.random.default_rng(0).normal(0, 2, clean.shape).astype(np.float32)
    found = rescale(clean, np.rint(clean + step), l2)
    assert np.array_equal(found, np.rint(found))
    norms = length(clean, found) / length(0 * clean, clean)
    # Many values reach their next grey level together: the perturbation is of whole ones already.
    assert norms == pytest.approx([l2] * 3, rel=0.05)
    change, wanted = found - clean, np.rint(clean + step) - clean
    assert not np.any(change[wanted == 0])
    assert np.all(change * wanted >= 0)
    for a, b in zip(change.reshape(3, -1), wanted.reshape(3, -1), strict=True):
        along = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert along > 0.99
    single = rescale(clean[1], np.rint(clean + step)[1], l2)
    assert np.array_equal(single, found[1])


def test_what_cannot_reach_a_length_comes_as_near_as_the_range_allows():
    clean = np.full((3, 16, 16, 3), 100, dtype=np.float32)
    clean[2] = 200
    adversaries = clean.copy()
    adversaries[1, 0, 0, 0] += 10
    # All values by one: 1 of 200 is 0.005, 2 are 0.01, and 0.008 lies nearer to the second.
    adversaries[2] += 1
    found = rescale(clean, adversaries, 0.008)
    assert np.array_equal(found[0], clean[0])
    reached = round(0.008 * 100 * np.sqrt(768))
    assert found[1, 0, 0, 0] == 100 + reached
    assert np.all(found[2] == 202)
    assert rescale(clean, adversaries, 5)[1, 0, 0, 0] == 255
    with pytest.raises(ValueError, match="l2: expected a number above 0, got 0"):
        rescale(clean, adversaries, 0)


def test_deepfool_has_no_targeted_form(toy):
    with pytest.raises(ValueError, match="targeted: expected False, for DeepFool has no targeted"):
        deepfool(toy, photo(), 0, targeted=True)


@pytest.mark.parametrize(
    ("attack", "knob", "values"),
    [
        (fgsm_smallest, "max_eps", [0, 256, 2.0, "8", True, None]),
        (deepfool, "iterations", [0, 1.5, None]),
        (deepfool, "overshoot", [-0.1, np.nan, np.inf, "0"]),
        (deepfool, "candidates", [1, 2.5]),
        (carlini_wagner, "confidence", [-1, np.nan, None]),
        (carlini_wagner, "learning_rate", [0, -1, np.inf]),
        (carlini_wagner, "iterations", [0, 2.0]),
        (carlini_wagner, "search_steps", [0, "3"]),
        (carlini_wagner, "initial_const", [0, np.nan]),
        (jsma, "step", [0, 256, -256, 1.5]),
        (jsma, "max_share", [0, 1.1, np.nan]),
        (lbfgs, "iterations", [0, 2.0]),
        (lbfgs, "search_steps", [0]),
        (lbfgs, "initial_const", [0, -1, np.inf]),
    ],
)
def test_wrong_knobs(toy, attack, knob, values):
    for value in (*values, 2**70):
        with pytest.raises(ValueError, match=rf"{knob}: expected .* got {value!r}"):
            attack(toy, photo(), 0, **{knob: value})


@pytest.mark.parametrize("attack", ATTACKS)
def test_wrong_labels_and_images(toy, attack):
    for labels in (6, -1, [0, 1], 1.0, None):
        with pytest.raises(ValueError, match="labels: expected"):
            attack(toy, photo(), labels)
    for images in (photo() / 255, photo(32, 31), photo().astype(np.float64)):
        with pytest.raises(ValueError, match="images: "):
            attack(toy, images, 0)
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        attack(toy, photo(), 0, batch_size=0)
