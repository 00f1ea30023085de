import itertools

import numpy as np
import pytest
from conftest import photo
from skimage import data

from pdutils._utils import streams
from pdutils.defenses import quilting as module
from pdutils.defenses.quilting import COMPONENTS, PLACES, _seams, bank, quilting


def nearest_by_hand(patch, count):
    """The bank's nearest patches by its first principal components, nearest first."""
    known = bank(len(patch)).patches.reshape(-1, patch.size).astype(np.float64)
    centre = known.mean(axis=0)
    _, _, axes = np.linalg.svd(np.cov((known - centre).T))
    apart = (known - patch.ravel()) @ axes[:COMPONENTS].T
    return np.argsort(np.square(apart).sum(axis=1))[:count]


def best_path(errors):
    """The path through errors (length, places) of the least sum, out of all that there are."""
    length, places = errors.shape
    steady = [
        path
        for path in itertools.product(range(places), repeat=length)
        if all(abs(a - b) <= 1 for a, b in itertools.pairwise(path))
    ]
    return min(steady, key=lambda path: sum(errors[i, place] for i, place in enumerate(path)))


def joined_by_hand(left, right, overlap):
    """Two images side by side, each row cut where the best path crosses it."""
    shared = left.shape[1] - overlap
    errors = np.square(left[:, shared:] - right[:, :overlap]).sum(axis=2)
    rows = [
        np.concatenate([left[i, : shared + place], right[i, place:]])
        for i, place in enumerate(best_path(errors))
    ]
    return np.stack(rows)


def quilted_by_hand(image, side, overlap, draws, nearest):
    """Quilt an image that the grid fills, patch by patch."""
    step, strips, draws = side - overlap, [], iter(draws)
    for top in range(0, image.shape[0] - overlap, step):
        strip = None
        for left in range(0, image.shape[1] - overlap, step):
            place = image[top : top + side, left : left + side]
            chosen = nearest_by_hand(place, nearest)[next(draws)]
            patch = bank(side).patches[chosen].astype(np.float64)
            strip = patch if strip is None else joined_by_hand(strip, patch, overlap)
        strips.append(strip.swapaxes(0, 1))
    whole = strips[0]
    for strip in strips[1:]:
        whole = joined_by_hand(whole, strip, overlap)
    return whole.swapaxes(0, 1)


@pytest.mark.parametrize(
    ("size", "side", "overlap", "full"),
    [
        ((10, 7), 5, 2, (11, 8)),
        ((7, 5), 3, 1, (7, 5)),
        ((8, 9), 6, 3, (9, 9)),
        ((3, 4), 5, 0, (5, 5)),
    ],
)
def test_quilting_is_its_recipe_on_an_image_that_is_mirrored_where_the_grid_goes_on(
    size, side, overlap, full
):
    image = photo(*size)
    beyond = [(0, long - short) for long, short in zip(full, size, strict=True)]
    mirrored = np.pad(image, [*beyond, (0, 0)], mode="symmetric").astype(np.float64)
    places = [(length - overlap) // (side - overlap) for length in full]
    for seed in range(2):
        (rng,) = streams(seed, 1)
        draws = rng.integers(3, size=np.prod(places))
        expected = quilted_by_hand(mirrored, side, overlap, draws, nearest=3)
        result = quilting(image, patch=side, overlap=overlap, nearest=3, rng=seed)
        np.testing.assert_array_equal(result, expected[: size[0], : size[1]])


def test_by_default_the_three_numbers_are_guos():
    image = photo(14, 11)
    expected = quilting(image, patch=5, overlap=2, nearest=10, rng=4)
    np.testing.assert_array_equal(quilting(image, rng=4), expected)


@pytest.mark.parametrize("shape", [(6, 2), (6, 3), (5, 4), (1, 3), (4, 1)], ids=str)
def test_no_path_has_a_smaller_sum_than_the_seam(shape):
    errors = np.random.default_rng(0).integers(0, 100, (3, 2, *shape)).astype(np.float32)
    seams = _seams(errors)
    assert np.abs(np.diff(seams, axis=-1)).max(initial=0) <= 1
    for i, j in np.ndindex(3, 2):
        steps = np.arange(shape[0])
        best = errors[i, j, steps, list(best_path(errors[i, j]))].sum()
        assert errors[i, j, steps, seams[i, j]].sum() == best


def test_what_is_made_of_patches_of_the_bank_comes_back_and_the_rest_near_itself():
    chosen = np.random.default_rng(2).choice(len(bank(5).patches), 12, replace=False)
    tiles = bank(5).patches[chosen].astype(np.float32)
    np.testing.assert_array_equal(np.stack([quilting(tile, nearest=1) for tile in tiles]), tiles)
    image = tiles.reshape(3, 4, 5, 5, 3).swapaxes(1, 2).reshape(15, 20, 3)
    np.testing.assert_array_equal(quilting(image, overlap=0, nearest=1), image)
    # The bank's own photo, between whose patches others lie.
    part = data.astronaut()[200:264, 200:264].astype(np.float32)
    error = np.sqrt(np.mean(np.square(quilting(part, nearest=1) - part)))
    assert 0 < error < 15


def test_each_of_the_nearest_is_equally_likely():
    image = photo(5, 5)
    results = quilting(np.repeat(image[np.newaxis], 400, axis=0), nearest=4, rng=0)
    nearest = bank(5).patches[nearest_by_hand(image, 4)].astype(np.float32)
    counts = [(results == patch).all(axis=(1, 2, 3)).sum() for patch in nearest]
    assert sum(counts) == 400
    np.testing.assert_allclose(counts, 100, atol=30)


def test_values_outside_the_range_come_back_inside_and_grey_nearly_grey():
    wild = photo(24, 24) * 2 - 120
    result = quilting(wild, rng=0)
    assert result.min() >= 0
    assert result.max() <= 255
    for level in (0, 90, 255):
        grey = np.full((24, 24, 3), level, np.float32)
        assert np.abs(quilting(grey, rng=0) - grey).mean() < 8


def test_the_bank_is_made_of_different_patches_of_two_photos_that_are_at_hand(monkeypatch):
    def no_network(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(data._fetchers._image_fetcher, "fetch", no_network)
    made, again = module.bank.__wrapped__(4), module.bank.__wrapped__(4)
    np.testing.assert_array_equal(made.patches, again.patches)
    assert 0.9 * PLACES < len(made.patches) <= PLACES
    assert len(np.unique(made.patches.reshape(len(made.patches), -1), axis=0)) == len(made.patches)
    found, orders = [], list(itertools.permutations(range(3)))
    photos = [data.astronaut(), data.stereo_motorcycle()[0]]
    for patch in np.random.default_rng(0).choice(made.patches, 8, replace=False):
        for number, picture in enumerate(photos):
            windows = np.lib.stride_tricks.sliding_window_view(picture, (4, 4), axis=(0, 1))
            for order in orders:
                first = (picture[:-3, :-3] == patch[0, 0, list(order)]).all(axis=-1)
                same = windows[first] == np.moveaxis(patch[..., list(order)], -1, 0)
                if same.all(axis=(1, 2, 3)).any():
                    found.append((number, order))
                    break
    assert len(found) >= 8
    assert {number for number, _ in found} == {0, 1}
    assert len({order for _, order in found}) > 2


def test_the_components_that_count_hold_nearly_all_of_the_variance():
    known = bank(5).patches.reshape(-1, 75)
    shares = np.linalg.eigvalsh(np.cov(known.T)) / known.var(axis=0, ddof=1).sum()
    assert shares[-COMPONENTS:].sum() > 0.99


def test_an_overlap_is_at_most_half_of_a_patch():
    with pytest.raises(ValueError, match="overlap: expected a whole number from 0 to 3, got 4"):
        quilting(photo(), patch=7, overlap=4)
