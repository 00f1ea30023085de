from inspect import signature

import numpy as np
import pytest
from conftest import photo, photos
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from pdutils._utils import streams
from pdutils.attacks.gradient import fgsm, igsm, igsm_path, pgd
from pdutils.images import load_image, save_image

ATTACKS = [fgsm, igsm, pgd]
TARGETED = pytest.mark.parametrize("targeted", [False, True])


def predicted(classifier, images):
    return classifier.predict(images).argmax(axis=-1)


@pytest.fixture
def shown(toy, monkeypatch):
    """The batches that the network is shown by an attack."""
    batches = []
    loss_gradient = toy.loss_gradient

    def spy(images, labels, **options):
        batches.append(images.copy())
        return loss_gradient(images, labels, **options)

    monkeypatch.setattr(toy, "loss_gradient", spy)
    return batches


@given(
    eps=st.one_of(st.integers(1, 255), st.floats(1, 40)),
    step=st.one_of(st.sampled_from([0.1, 0.5, 1, 3]), st.floats(0.01, 255)),
    iterations=st.integers(1, 4),
    targeted=st.booleans(),
    stop_at=st.sampled_from([None, "success", 0.0, 0.2]),
    random_start=st.booleans(),
    amount=st.sampled_from([0.0, 0.97, 5.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_result_is_in_the_box_and_on_the_grid(
    toy, eps, targeted, random_start, amount, seed, **options
):
    # A great amount makes an image that touches 0 and 255.
    images = np.clip(127 + amount * (photos(2) - 127), 0, 255).astype(np.float32)
    options |= {"eps": eps, "targeted": targeted}
    for adversaries in (
        fgsm(toy, images, [seed % 6, 1], eps=eps, targeted=targeted),
        igsm(toy, images, [seed % 6, 1], **options),
        pgd(toy, images, 1, random_start=random_start, rng=seed, **options),
    ):
        assert adversaries.dtype == np.float32
        assert adversaries.shape == images.shape
        assert_array_equal(adversaries, np.rint(np.clip(adversaries, 0, 255)))
        assert np.abs(adversaries - np.rint(images)).max() <= eps


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_holds_for_each_attack(toy, tmp_path, attack):
    options = {"eps": 3.7} | ({"rng": 0} if attack is pgd else {})
    for images, labels in ((photos(1), [0]), (photos(2), np.zeros(2, np.int64)), (photo(), 0)):
        before = images.copy()
        images.flags.writeable = False
        adversary = attack(toy, images, labels, **options)
        assert adversary.shape == images.shape
        assert not np.shares_memory(adversary, images)
        assert_array_equal(images, before)
    assert_array_equal(attack(toy, photo() + np.float32(0.3), 0, **options), adversary)
    save_image(tmp_path / "adversary.png", adversary)
    assert_array_equal(load_image(tmp_path / "adversary.png"), adversary)


@TARGETED
def test_steps_by_hand(toy, targeted):
    batch, labels, towards = photos(3), [0, 3, 5], -1 if targeted else 1
    gradient, _ = toy.loss_gradient(batch, labels)
    for eps in (1, 7.9, 255):
        expected = np.clip(batch + towards * np.floor(eps) * np.sign(gradient), 0, 255)
        result = fgsm(toy, batch, labels, eps=eps, targeted=targeted)
        assert_array_equal(result, expected)
    image = photo(seed=3)
    for step in (0.3, 2.5, 30):
        iterate = image.astype(np.float64)
        for _ in range(4):
            gradient, _ = toy.loss_gradient(np.rint(iterate).astype(np.float32), 2)
            iterate = iterate + towards * step * np.sign(gradient)
            iterate = np.clip(np.clip(iterate, image - 5, image + 5), 0, 255)
        result = igsm(toy, image, 2, eps=5, step=step, iterations=4, targeted=targeted)
        assert_array_equal(result, np.rint(iterate))


@pytest.mark.parametrize(
    ("slopes", "start", "end"),
    # 250, 254, cut at 255, 255, and from there back by 4; the box around 90 ends at 98.
    [((1, 1, 1, -1), 250, 251), ((-1, -1, -1, 1), 5, 4), ((1, 1, 1, -1), 90, 94), ((0,) * 4, 9, 9)],
)
def test_an_iterate_does_not_wait_beyond_white_or_black_or_the_box(
    toy, monkeypatch, slopes, start, end
):
    left = iter(slopes)

    def sloping(images, labels, batch_size):
        return np.full_like(images, next(left)), np.zeros((len(images), 6), np.float32)

    monkeypatch.setattr(toy, "loss_gradient", sloping)
    result = igsm(toy, np.full((32, 32, 3), start, np.float32), 0, step=4, iterations=4)
    assert (result == end).all()


@TARGETED
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", ["toy", "toy_flat"])
def test_attacks_move_the_probability_of_the_label(request, kind, attack, targeted):
    classifier = request.getfixturevalue(kind)
    batch = photos(8)
    clean = classifier.predict(batch)
    labels = clean.argmin(axis=1) if targeted else clean.argmax(axis=1)
    options = {"rng": 0} if attack is pgd else {}
    options |= {} if attack is fgsm else {"iterations": 20}
    adversaries = attack(classifier, batch, labels, eps=8, targeted=targeted, **options)
    attacked = classifier.predict(adversaries)
    gain = (attacked - clean)[np.arange(8), labels].mean()
    assert gain > 0.02 if targeted else gain < -0.02
    if not targeted:
        assert np.mean(attacked.argmax(axis=1) == labels) <= 0.25


def test_the_path_and_pgd_without_a_random_start_are_igsm(toy):
    image, options = photo() + 0.3, {"eps": 2, "step": 0.7}
    path = igsm_path(toy, image, 2, iterations=5, **options)
    assert_array_equal(path[0], np.rint(image))
    for steps in range(1, 6):
        assert_array_equal(path[steps], igsm(toy, image, 2, iterations=steps, **options))
    with pytest.raises(ValueError, match=r"image: expected one of shape \(H, W, 3\)"):
        igsm_path(toy, photos(2), 2)
    options |= {"iterations": 3, "targeted": True, "stop_at": 0.9}
    expected = igsm(toy, photos(2), [0, 1], **options)
    assert_array_equal(pgd(toy, photos(2), [0, 1], random_start=False, **options), expected)


@pytest.mark.parametrize("eps", [6, 6.9])
def test_the_random_start_is_uniform_in_the_box_and_each_image_has_its_own(toy, shown, eps):
    # Away from 0 and 255, so that nothing is cut off.
    clean = np.full((8, 32, 32, 3), 128, np.float32)
    for images, seed in ((clean, 0), (clean, 0), (clean[:1], 0), (clean, 8)):
        pgd(toy, images, 0, eps=eps, iterations=1, rng=seed)
    start, again, alone, other = shown
    offsets, counts = np.unique(start - clean, return_counts=True)
    assert_array_equal(offsets, np.arange(-6, 7))
    # Rounding gives the two outermost grey levels half of what the others get.
    shares = counts / counts.sum() * 12
    assert_allclose(shares[1:-1], 1, atol=0.08)
    assert_allclose(shares[[0, -1]], 0.5, atol=0.06)
    assert_array_equal(start, again)
    assert_array_equal(start[:1], alone)
    assert not np.array_equal(start[0], start[1])
    assert not np.array_equal(start, other)


@TARGETED
@pytest.mark.parametrize("more", [None, 0.02])
def test_it_stops_at_the_first_success_or_as_soon_as_it_is_sure_enough(toy, shown, targeted, more):
    image = photo(seed=5)
    label = int(np.argsort(toy.predict(image))[-2 if targeted else -1])
    options = {"eps": 16, "step": 0.5, "targeted": targeted}
    stop_at = "success"
    if more:
        success = igsm(toy, image, label, iterations=80, stop_at="success", **options)
        stop_at = float(toy.predict(success).max()) + more
        shown.clear()
    adversary = igsm(toy, image, label, iterations=80, stop_at=stop_at, **options)
    # The last batch is only looked at.
    steps = len(shown) - 1
    assert 1 < steps < 80
    assert_array_equal(adversary, igsm(toy, image, label, iterations=steps, **options))
    before = igsm(toy, image, label, iterations=steps - 1, **options)
    for images, enough in ((adversary, True), (before, False)):
        probabilities = toy.predict(images)
        fooled = (probabilities.argmax() == label) == targeted
        assert (fooled and probabilities.max() >= (stop_at if more else 0)) == enough


def test_what_counts_as_being_there(toy, shown):
    image = photo(seed=5)
    label = int(predicted(toy, image))
    # It is surer than asked for at the start, but of the right class.
    sure = float(toy.predict(image).max()) - 0.02
    assert predicted(toy, igsm(toy, image, label, stop_at=sure)) != label
    expected = igsm(toy, image, label, stop_at="success")
    for zero in (0, 0.0, np.float32(0)):
        assert_array_equal(igsm(toy, image, label, stop_at=zero), expected)
    shown.clear()
    # One that never gets there takes all steps and gives the last.
    options = {"eps": 4, "iterations": 7}
    results = [igsm(toy, image, label, stop_at=stop_at, **options) for stop_at in (None, 0.999)]
    assert len(shown) == 14
    assert_array_equal(*results)
    # One that is there already is left as it is.
    for there, targeted in (((label + 1) % 6, False), (label, True)):
        results = [
            igsm(toy, image, there, targeted=targeted, stop_at=stop_at)
            for stop_at in ("success", None)
        ]
        assert [np.array_equal(result, image) for result in results] == [True, False]


def test_finished_images_leave_the_batch(toy, shown):
    batch = photos(8)
    labels = predicted(toy, batch)
    labels[3] = (labels[3] + 1) % 6
    igsm(toy, batch, labels, step=0.5, iterations=30, stop_at="success")
    sizes = [len(images) for images in shown]
    assert sizes[1] < sizes[0] == 8
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 3


@pytest.mark.parametrize("stop_at", [None, "success", 0.25])
@pytest.mark.parametrize("attack", [igsm, pgd])
def test_the_result_does_not_depend_on_the_batch(toy, attack, stop_at):
    batch, options = photos(5), {"step": 0.7, "iterations": 20, "stop_at": stop_at}
    labels = predicted(toy, batch)

    def attacked(*chosen, batch_size=32):
        seeds = {"rng": [streams(3, 5)[i] for i in chosen]} if attack is pgd else {}
        rows = list(chosen)
        return attack(toy, batch[rows], labels[rows], batch_size=batch_size, **seeds, **options)

    together = attacked(*range(5))
    for part, other in (
        (together[:1], attacked(0)),
        (together, attacked(*range(5), batch_size=2)),
        (together[::-1], attacked(4, 3, 2, 1, 0)),
    ):
        # Where a gradient is all but 0 its sign is chance: another batch may round it otherwise.
        assert np.mean(part != other) < 1e-3


WRONG = {
    "eps": ([0, 0.99, -8, 256, np.nan, np.inf, "8", None], r"eps: expected 1 to 255 grey levels"),
    "step": ([0, -1, 256, np.nan, np.inf, "1", None], r"step: expected a number of grey levels"),
    "iterations": ([0, -1, 2.0, "10", None, 2**70], r"iterations: expected a whole number of at"),
    "stop_at": ([1.5, 1, -0.1, np.nan, "Success", True, [0.5]], r"stop_at: expected None, 'succe"),
    "labels": ([6, -1, [0, 1], 1.0, "cat", None], r"labels: expected"),
    "images": ([photo() / 255, photo(32, 31), photo().astype(np.float64)], r"images: "),
    "rng": ([-1, 0.5, "seed", [np.random.default_rng(0)] * 2], r"rng: expected"),
}


@pytest.mark.parametrize(
    ("attack", "name"), [(a, n) for a in ATTACKS for n in WRONG if n in signature(a).parameters]
)
def test_what_is_wrong_is_told(toy, attack, name):
    values, message = WRONG[name]
    for value in values:
        with pytest.raises(ValueError, match=message):
            attack(toy, **{"images": photo(), "labels": 0} | {name: value})
