from dataclasses import replace
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import photo, photos
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import color, restoration

from pdutils._utils import streams
from pdutils.activation import robust_cam
from pdutils.attacks.adaptive import bpda, expected_gradient
from pdutils.attacks.gradient import igsm
from pdutils.classifiers import load_classifier
from pdutils.defenses.pipeline import Defense, OwnDefense
from pdutils.deflection import draw_writes, pixel_deflection
from pdutils.demo.examples import load_collection
from pdutils.denoising import denoise, denoise_wavelet
from pdutils.images import labelled_files, load_image
from pdutils.metrics import linf

BACKWARD = ["identity", "wavelet", "exact"]
#: The derivative of denoising is compiled for each size of a batch, which takes seconds.
SINGLY = {"batch_size": 1}
#: Small, but every part of it does something to a picture of 32 x 32 pixels.
WITH_MAP = Defense(deflections=60, window=4, activation="rcam", k=3)
WITHOUT_MAP = Defense(deflections=60, window=4, reading="paper")
BARE = replace(WITH_MAP, denoiser=None)
ALONE = Defense(deflections=60, window=4, denoiser=None)
BOTH = pytest.mark.parametrize("defense", [WITH_MAP, WITHOUT_MAP], ids=["map", "paper"])
EACH = pytest.mark.parametrize("backward", BACKWARD)
TARGETED = pytest.mark.parametrize("targeted", [False, True])


def assert_same_but_for_signs_of_nothing(result, expected):
    # Where a gradient is all but 0 its sign is chance: another batch size may round it otherwise.
    assert np.mean(result != expected) < 2e-3


class Fixed:
    """A network whose gradients are those that it was made with, the last one again and again."""

    def __init__(self, *gradients):
        self.gradients = list(gradients)
        self.shown = []

    def check_labels(self, labels, n):
        return np.full(n, labels)

    def loss_gradient(self, images, labels, batch_size):
        self.shown.append(images.copy())
        gradient = self.gradients.pop(0) if len(self.gradients) > 1 else self.gradients[0]
        slope = np.broadcast_to(gradient, images.shape).astype(np.float32)
        return slope, np.zeros((len(images), 2), np.float32)


class Watched:
    """A defence that keeps what it is given and what it gives."""

    def __init__(self, defense):
        self.inner, self.mapped, self.maps, self.defended = defense, [], [], []

    def activation_map(self, classifier, images):
        self.mapped.append(images.copy())
        self.maps.append(self.inner.activation_map(classifier, images))
        return self.maps[-1]

    def transform(self, classifier, images, *, rng=None, activation_map=None):
        self.defended.append((images.copy(), activation_map))
        return self.inner.transform(classifier, images, rng=rng, activation_map=activation_map)


def test_a_function_of_ones_own_hands_the_gradient_straight_through(toy):
    own = OwnDefense("shift", lambda images, rng: np.roll(images, rng.integers(1, 9), axis=2))
    shifts = [stream.integers(1, 9) for stream in streams(5, 2)]
    shown = np.stack([np.roll(*pair, axis=1) for pair in zip(photos(2), shifts, strict=True)])
    expected, _ = toy.loss_gradient(shown, [0, 1])
    slope = expected_gradient(toy, photos(2), [0, 1], defense=own, rng=5)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-9)
    assert np.abs(bpda(toy, photo(), 0, defense=own, rng=5, iterations=2) - photo()).max() == 1


# --- the bound and the grid ---


@given(
    eps=st.one_of(st.integers(1, 255), st.floats(1, 40)),
    step=st.sampled_from([0.1, 0.5, 3, 255]),
    iterations=st.integers(1, 3),
    draws=st.integers(1, 2),
    gradient=st.sampled_from(["identity", "exact"]),
    targeted=st.booleans(),
    amount=st.sampled_from([0.0, 0.97, 5.0]),
    rng=st.integers(0, 99),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_the_result_is_in_the_box_and_on_the_grid(toy, eps, amount, rng, **options):
    # A great amount makes an image that touches 0 and 255.
    images = np.clip(127 + amount * (photos(2) - 127), 0, 255).astype(np.float32)
    options |= SINGLY | {"defense": WITH_MAP, "eps": eps, "rng": rng}
    adversaries = bpda(toy, images, [rng % 6, 1], **options)
    assert adversaries.dtype == np.float32
    assert adversaries.shape == images.shape
    np.testing.assert_array_equal(adversaries, np.rint(np.clip(adversaries, 0, 255)))
    assert np.abs(adversaries - np.rint(images)).max() <= eps


@pytest.mark.parametrize("backward", ["identity", "exact"])
def test_nothing_is_changed_in_place_and_the_rank_is_kept(toy, backward):
    options = {"defense": WITH_MAP, "gradient": backward, "rng": 0} | SINGLY
    for images in (photo(), photos(2)):
        before = images.copy()
        images.flags.writeable = False
        adversaries = bpda(toy, images, 0, iterations=2, **options)
        slope = expected_gradient(toy, images, 0, **options)
        assert adversaries.shape == slope.shape == images.shape
        assert not np.shares_memory(adversaries, images)
        np.testing.assert_array_equal(images, before)
        off = bpda(toy, images + np.float32(0.3), 0, iterations=2, **options)
        np.testing.assert_array_equal(off, adversaries)


# --- a step is a step ---


@BOTH
@TARGETED
def test_steps_by_hand(toy, defense, targeted):
    batch, labels = photos(2), [0, 3]
    expected = []
    for image, label, stream in zip(batch, labels, streams(11, 2), strict=True):
        iterate = image.astype(np.float64)
        for _ in range(3):
            shown = np.rint(iterate).astype(np.float32)
            options = {"reading": defense.reading, "rng": [stream]}
            if defense is WITH_MAP:
                options["activation_map"] = robust_cam(toy, shown, k=3)
            draws = [denoise(pixel_deflection(shown, 60, 4, **options)) for _ in range(2)]
            slope = sum(toy.loss_gradient(draw, label)[0] for draw in draws)
            iterate = iterate + (-0.7 if targeted else 0.7) * np.sign(slope)
            iterate = np.clip(np.clip(iterate, image - 2, image + 2), 0, 255)
        expected.append(np.rint(iterate))
    options = {"eps": 2.9, "step": 0.7, "iterations": 3, "draws": 2, "targeted": targeted}
    result = bpda(toy, batch, labels, defense=defense, rng=11, **options)
    assert_same_but_for_signs_of_nothing(result, np.stack(expected))


@TARGETED
def test_without_a_defence_it_is_igsm(toy, targeted):
    batch, labels = photos(3), [0, 3, 5]
    options = {"eps": 5, "step": 0.7, "iterations": 6, "targeted": targeted}
    result = bpda(toy, batch, labels, defense=None, **options)
    np.testing.assert_array_equal(result, igsm(toy, batch, labels, **options))


def test_all_steps_are_taken_and_the_last_iterate_is_kept():
    network = Fixed(np.float32(1))
    image = np.full((16, 16, 3), 90, np.float32)
    options = {"defense": ALONE, "eps": 9, "step": 0.5, "rng": 0}
    result = bpda(network, image, 0, iterations=7, **options)
    # 3.5 is halfway; NumPy rounds 93.5 to the even 94.
    np.testing.assert_array_equal(result, np.full_like(image, 94))
    shown = [batch[0, 0, 0, 0] for batch in network.shown]
    np.testing.assert_array_equal(shown, np.rint(90 + 0.5 * np.arange(7)))


# --- the defence is the one that is met ---


def test_the_map_is_made_of_the_current_iterate(toy):
    watched = Watched(WITH_MAP)
    options = {"eps": 6, "step": 2, "draws": 3, "rng": 4}
    bpda(toy, photos(2), [0, 1], defense=watched, iterations=3, **options)
    assert len(watched.mapped) == 3
    np.testing.assert_array_equal(watched.mapped[0], photos(2))
    for taken in (1, 2):
        before = bpda(toy, photos(2), [0, 1], defense=WITH_MAP, iterations=taken, **options)
        np.testing.assert_array_equal(watched.mapped[taken], before)
    assert not np.array_equal(watched.maps[0], watched.maps[2])
    # Each of the three draws of a step is of that step's iterate, with its map.
    assert len(watched.defended) == 9
    for i, (images, used) in enumerate(watched.defended):
        np.testing.assert_array_equal(images, watched.mapped[i // 3])
        assert used is watched.maps[i // 3]


@EACH
@BOTH
def test_the_gradient_is_the_mean_of_those_at_the_very_images_that_the_defence_gives(
    toy, monkeypatch, defense, backward
):
    shown, loss_gradient = [], toy.loss_gradient

    def spy(images, labels, **options):
        shown.append(images.copy())
        return loss_gradient(images, labels, **options)

    monkeypatch.setattr(toy, "loss_gradient", spy)
    options, generators = {"defense": defense, "gradient": backward}, streams(9, 1)
    single = [expected_gradient(toy, photos(1), 0, rng=generators, **options) for _ in range(2)]
    mean = expected_gradient(toy, photos(1), 0, draws=2, rng=9, **options)
    np.testing.assert_allclose(mean, np.mean(single, axis=0), atol=1e-6)
    assert not np.allclose(mean, single[0], rtol=0.1)
    generators = streams(9, 1)
    expected = [defense.transform(toy, photos(1), rng=generators) for _ in range(2)]
    np.testing.assert_allclose(shown, expected * 2, atol=1e-3)
    assert not np.array_equal(*expected)


def test_every_step_draws_afresh_and_each_image_by_itself_and_a_seed_draws_the_same():
    def draws(seed):
        network = Fixed(np.float32(0))
        bpda(network, np.stack([photo()] * 2), 0, defense=ALONE, iterations=3, draws=2, rng=seed)
        return [image.tobytes() for batch in network.shown for image in batch]

    assert len(draws(1)) == len(set(draws(1) + draws(1))) == 12
    assert not set(draws(1)) & set(draws(2))


@pytest.mark.parametrize(
    ("defense", "backward"), [(WITH_MAP, "identity"), (WITHOUT_MAP, "identity"), (BARE, "exact")]
)
def test_the_result_does_not_depend_on_the_batch(toy, defense, backward):
    batch, labels = photos(2), np.array([1, 4])
    options = {"defense": defense, "gradient": backward, "iterations": 3, "draws": 2}

    def attack(chosen, batch_size=32):
        rng = [streams(3, 2)[i] for i in chosen]
        return bpda(toy, batch[chosen], labels[chosen], rng=rng, batch_size=batch_size, **options)

    together = attack([0, 1])
    assert_same_but_for_signs_of_nothing(together, attack([0, 1], batch_size=1))
    for chosen in ([1, 0], [0], [1]):
        assert_same_but_for_signs_of_nothing(together[chosen], attack(chosen))


# --- the gradient ---


def by_scikit_image(image, sigma):
    """Denoise in double precision, as today's library does."""
    ycbcr = color.rgb2ycbcr(image / 255)
    for channel in range(3):
        plane = ycbcr[..., channel]
        low, span = plane.min(), np.ptp(plane)
        stretched = (plane - low) / span
        shrunk = restoration.denoise_wavelet(stretched, sigma=sigma, rescale_sigma=False)
        ycbcr[..., channel] = low + span * np.clip(shrunk, 0, 1)
    return 255 * np.clip(color.ycbcr2rgb(ycbcr), 0, 1)


@pytest.mark.parametrize(("sigma", "backward"), [(0.04, "exact"), (0.1, "wavelet")])
def test_wavelets_have_the_derivative_that_finite_differences_give(sigma, backward):
    rng = np.random.default_rng(0)
    # So strong a contrast that both clips act, and no two extremes tie.
    image = np.clip(128 + 2 * (photo() - 128), 0, 255) + rng.uniform(-0.3, 0.3, (32, 32, 3))
    image = image.astype(np.float32)
    slope = rng.normal(size=image.shape)
    defense = Defense(deflections=0, denoiser_options={"sigma": sigma})
    denoised = denoise_wavelet(image, sigma=sigma)
    np.testing.assert_allclose(by_scikit_image(image, sigma), denoised, atol=0.01)
    result = expected_gradient(Fixed(slope), image, 0, defense=defense, gradient=backward)

    def along(direction):
        ends = (by_scikit_image(image + h * direction, sigma) for h in (1e-4, -1e-4))
        return np.sum(slope * np.subtract(*ends)) / 2e-4

    brightness = image @ [0.299, 0.587, 0.114]
    # Where the brightness is greatest or least, a pixel moves the range that sigma is a share of.
    ends = [np.unravel_index(at, (32, 32)) for at in (brightness.argmin(), brightness.argmax())]
    places = [(*end, 1) for end in ends] + [tuple(rng.integers(0, (32, 32, 3))) for _ in range(20)]
    # Where the result is clipped, and nearly so.
    clipped = np.argwhere((denoised <= 0.5) | (denoised >= 254.5))
    assert len(clipped) > 60
    places += [tuple(place) for place in clipped[rng.permutation(len(clipped))[:20]]]
    for place in places:
        direction = np.zeros(image.shape)
        direction[place] = 1
        assert result[place] == pytest.approx(along(direction), abs=2e-3), place
    # It is far from the identity.
    assert np.abs(result - slope).mean() > 0.2


@pytest.mark.parametrize("reading", ["blog", "repo", "paper"])
@pytest.mark.parametrize("activation", ["none", "rcam"])
def test_the_exact_gradient_of_deflection_is_that_of_a_loop_over_the_writes(
    toy, reading, activation
):
    image, label = photo(seed=2), 4
    # So many that later draws see earlier writes.
    defense = replace(ALONE, deflections=500, window=3, reading=reading, activation=activation)
    chances = defense.activation_map(toy, image)
    (stream,) = streams(8, 1)
    writes = draw_writes((32, 32), 500, 3, chances, reading, stream)
    deflected, origin = image.copy(), np.arange(image.size).reshape(image.shape)
    columns = (writes.to_row, writes.to_column, writes.from_row, writes.from_column, writes.channel)
    for to_row, to_column, from_row, from_column, channel in zip(*columns, strict=True):
        channels = slice(None) if channel == -1 else channel
        for values in (deflected, origin):
            values[to_row, to_column, channels] = values[from_row, from_column, channels]
    slope, _ = toy.loss_gradient(deflected, label)
    expected = np.zeros(image.size)
    for place, value in zip(origin.ravel(), slope.ravel(), strict=True):
        expected[place] += value
    result = expected_gradient(toy, image, label, defense=defense, gradient="exact", rng=8)
    np.testing.assert_allclose(result.ravel(), expected, atol=1e-7)
    assert np.mean(result == 0) > 0.1


def test_the_exact_gradient_is_the_slope_of_the_defended_loss(toy):
    image, label = photo(seed=1), 2
    rng = np.random.default_rng(0)

    def loss(images):
        defended = WITHOUT_MAP.transform(toy, images.astype(np.float32), rng=6)
        return -np.log(toy.predict(defended)[label])

    options = {"defense": WITHOUT_MAP, "rng": 6}
    gradients = {
        backward: expected_gradient(toy, image, label, gradient=backward, **options)
        for backward in BACKWARD
    }
    errors = dict.fromkeys(BACKWARD, 0.0)
    for _ in range(5):
        # Along a gradient, so that the loss moves by more than its rounding.
        direction = np.sign(gradients["exact"]) * rng.uniform(0, 0.4, image.shape)
        slope = (loss(image + direction) - loss(image - direction)) / 2
        for backward, gradient in gradients.items():
            errors[backward] += abs(np.sum(gradient * direction) / slope - 1) / 5
    assert errors["exact"] < 0.02
    assert errors["exact"] < errors["wavelet"]
    assert errors["exact"] < errors["identity"]


def test_an_object_that_holds_a_defence_is_differentiated_like_it(toy):
    named = Watched(WITH_MAP)
    named.defense = WITH_MAP
    for backward in BACKWARD:
        options = {"gradient": backward, "rng": 1}
        np.testing.assert_array_equal(
            expected_gradient(toy, photo(), 0, defense=named, **options),
            expected_gradient(toy, photo(), 0, defense=WITH_MAP, **options),
        )


# --- it gets through the defence ---


def behind(classifier, defense, images):
    """The predictions under each of three draws that the attacker has not seen."""
    draws = [defense.transform(classifier, images, rng=seed) for seed in (91, 92, 93)]
    return np.stack([classifier.predict(defended) for defended in draws])


def accuracy(classifier, defense, images, labels):
    return (behind(classifier, defense, images).argmax(axis=2) == labels).mean(axis=1).tolist()


@pytest.mark.parametrize(
    ("defense", "backward"),
    [(WITH_MAP, "identity"), (WITH_MAP, "exact"), (WITHOUT_MAP, "wavelet"), (ALONE, "exact")],
)
def test_it_moves_the_loss_behind_the_defence(toy, defense, backward):
    batch = photos(2)
    labels = toy.predict(batch).argmin(axis=1)
    options = {"defense": defense, "eps": 8, "step": 2, "iterations": 6, "gradient": backward}
    options |= SINGLY | {"rng": 0}
    towards = bpda(toy, batch, labels, targeted=True, **options)
    away = bpda(toy, batch, labels, **options)
    means = (behind(toy, defense, images).mean(axis=0) for images in (towards, batch, away))
    near, clean, far = (-np.log(rows[[0, 1], labels]).mean() for rows in means)
    assert near + 0.1 < clean < far - 0.1


def test_a_defence_that_turns_plain_adversaries_back_does_not_turn_these_back():
    demo, defense = load_classifier("demo"), Defense(denoiser="median")
    drawings = load_collection(demo, 6, seed=0)
    options = {"eps": 12, "step": 2, "iterations": 8}
    plain = igsm(demo, drawings.images, drawings.labels, **options)
    fooled = demo.predict(plain).argmax(axis=1) != drawings.labels
    assert fooled.mean() > 0.7
    images, labels = drawings.images[fooled], drawings.labels[fooled]
    adversaries = bpda(demo, images, labels, defense=defense, rng=0, **options)
    assert min(accuracy(demo, defense, plain[fooled], labels)) > 0.3
    assert max(accuracy(demo, defense, adversaries, labels)) == 0


@pytest.mark.slow
@pytest.mark.real
def test_no_photo_is_seen_right_behind_the_defence(real, monkeypatch):
    monkeypatch.setenv("PDUTILS_CACHE", str(real / "cache"))
    weights = real / "weights" / "mobilenet_v2.weights.h5"
    mobilenet = load_classifier("mobilenet_v2", weights)
    files = labelled_files(real / "imagenet")[:4]
    images = np.stack([load_image(path, mobilenet.input_size) for path, _ in files])
    labels = np.array([mobilenet.index(label) for _, label in files])
    right = mobilenet.predict(images).argmax(axis=1) == labels
    images, labels = images[right][:2], labels[right][:2]
    assert len(labels) == 2
    defense = Defense(deflections=1500, activation="rcam")
    adversaries = bpda(mobilenet, images, labels, defense=defense, iterations=8, rng=0)
    assert linf(images, adversaries).max() <= 4
    assert accuracy(mobilenet, defense, adversaries, labels) == [0, 0, 0]


# --- wrong input ---


WRONG = {
    "eps": [0, 0.99, 256, np.nan, "8", None, True], "step": [0], "iterations": [0, 2.0],
    "draws": [0, -1, 2.0, "1", None, True], "batch_size": [0, 2.0, True], "labels": [6, [0, 1]],
    "images": [photo() / 255, photo(32, 31)], "rng": [-1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("attack", "name"),
    [(a, n) for a in (bpda, expected_gradient) for n in WRONG if n in signature(a).parameters],
)
def test_what_is_wrong_is_told(toy, attack, name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=f"{name}: .*expect.* got"):
            attack(toy, **{"images": photo(), "labels": 0, "defense": ALONE} | {name: value})


@pytest.mark.parametrize("attack", [bpda, expected_gradient])
def test_a_gradient_that_the_defence_does_not_have(toy, attack):
    median = Defense(denoiser="median")
    coarse = Defense(denoiser_options={"wavelet": "db2", "sigma": 0.1})
    stranger = SimpleNamespace(transform=None, activation_map=None)
    own = OwnDefense("own", lambda images: images)
    both = ("wavelet", "exact")
    for match, defense, gradients in (
        (r"gradient: expected one of \('identity', .*\), got 'straight'", ALONE, ["straight"]),
        (r"'wavelet' needs a wavelet denoiser, got a defence without", ALONE, ["wavelet"]),
        (r"denoiser: expected 'wavelet' with .* got 'median'", median, both),
        (r"no other options than sigma, mode, sigma_scale, got .*db2", coarse, both),
        (r"needs a Defense to differentiate, got namespace", stranger, both),
        (r"needs a Defense to differentiate, got None", None, both),
        (r"needs a Defense to differentiate, got Own", own, both),
    ):
        for gradient in gradients:
            with pytest.raises(ValueError, match=match):
                attack(toy, photo(), 0, defense=defense, gradient=gradient)
