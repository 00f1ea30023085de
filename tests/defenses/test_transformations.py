import inspect
import itertools

import numpy as np
import pytest
from conftest import photo, photos

from pdutils._utils import streams
from pdutils.defenses.quilting import quilting
from pdutils.defenses.transformations import (
    PEERS,
    bit_depth,
    crop_rescale,
    crop_tv_quilting,
    nl_means,
    random_pad,
    random_resize,
    random_resize_pad,
    squeeze,
    tv_quilting,
)
from pdutils.denoising import DENOISERS

LAID = [random_resize, random_pad, random_resize_pad]
QUILTED = [quilting, tv_quilting, crop_tv_quilting]
RANDOM = [*LAID, crop_rescale, *QUILTED]
OWN = [bit_depth, nl_means, squeeze, *RANDOM]


def seeded(peer):
    return {"rng": 3} if peer in RANDOM else {}


# --- bit depth ---


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_depth_gives_the_nearest_of_evenly_spaced_levels(bits):
    ramp = np.arange(256, dtype=np.float32)[np.newaxis, :, np.newaxis].repeat(3, axis=2)
    # What a denoiser has left outside the range.
    ramp[0, 3], ramp[0, 250] = -30, 290
    levels = np.linspace(0, 255, 2**bits)
    nearest = levels[np.abs(ramp[..., np.newaxis] - levels).argmin(axis=-1)]
    np.testing.assert_allclose(bit_depth(ramp, bits=bits), nearest, atol=1e-4)


# --- non-local means and the squeezers in a row ---


def faint(height, width):
    """A picture of so little contrast that its patches look alike."""
    return photo(height, width) / 16 + np.float32(120)


@pytest.mark.parametrize(("search", "patch", "strength"), [(5, 3, 2), (5, 3, 4), (7, 5, 30)])
def test_nl_means_is_its_formula(search, patch, strength):
    image = faint(8, 7)
    height, width, _ = image.shape
    reach, rim = search // 2, patch // 2
    margin = [(reach + rim, reach + rim)] * 2
    mirrored = np.pad(image.astype(np.float64), [*margin, (0, 0)], mode="reflect")
    patches = np.lib.stride_tricks.sliding_window_view(mirrored, (patch, patch), axis=(0, 1))
    expected = np.zeros_like(image)
    for row, column in np.ndindex(height, width):
        others = patches[row : row + 2 * reach + 1, column : column + 2 * reach + 1]
        unlike = np.mean((others - others[reach, reach]) ** 2, axis=(2, 3, 4))
        weights = np.exp(-unlike / strength**2)
        total = np.einsum("ij,ijc->c", weights, others[..., rim, rim])
        expected[row, column] = total / weights.sum()
    result = nl_means(image, search=search, patch=patch, strength=strength)
    np.testing.assert_allclose(result, expected, atol=1e-3)
    assert np.abs(result - image).max() > 0.1


@pytest.mark.parametrize("size", [(9, 6), (5, 5), (1, 4), (3, 1), (1, 1)], ids=str)
def test_the_windows_of_nl_means_reach_no_further_than_the_image_is_long(size):
    image = faint(*size)
    whole = 2 * max(size) - 1
    for knob in ("search", "patch"):
        expected = nl_means(image, **{knob: whole})
        assert np.isfinite(expected).all()
        for value in (whole + 2, 75, 2**62 + 1):
            np.testing.assert_array_equal(nl_means(image, **{knob: value}), expected)


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_numbers_that_no_library_can_take(peer):
    for knob, option in inspect.signature(peer).parameters.items():
        for value in (2**63, -(2**70), 10**400) if isinstance(option.default, (int, float)) else ():
            with pytest.raises(ValueError, match=rf"{knob}: expected .* got -?\d+"):
                peer(photo(), **{knob: value})


def test_a_search_of_one_pixel_finds_the_pixel_and_a_boundless_strength_averages_the_window():
    image = photo(9, 9)
    np.testing.assert_array_equal(nl_means(image, search=1), image)
    by_hand = image[2:7, 2:7].mean(axis=(0, 1))
    np.testing.assert_allclose(nl_means(image, search=5, strength=1e6)[4, 4], by_hand, atol=1e-3)


def test_squeeze_is_three_squeezers_one_after_the_other_and_by_default_xus_best():
    image = photo(12, 13)
    # The levels of 3 bits, the median of 3 x 3 by hand, and the means of the above.
    reduced = bit_depth(image, bits=3)
    mirrored = np.pad(reduced, ((1, 1), (1, 1), (0, 0)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, (3, 3), axis=(0, 1))
    median = np.median(windows, axis=(-2, -1)).astype(np.float32)
    expected = nl_means(median, search=5, patch=5, strength=9)
    result = squeeze(image, bits=3, size=3, search=5, patch=5, strength=9)
    np.testing.assert_allclose(result, expected, atol=1e-3)
    best = squeeze(image, bits=5, size=2, search=11, patch=3, strength=4)
    np.testing.assert_array_equal(squeeze(image), best)


# --- a random size, a random place ---


def triangle_weights(old, new):
    """The weights (new, old) of bilinear scaling, antialiased where it makes smaller."""
    scale = old / new
    centres = (np.arange(new)[:, None] + 0.5) * scale
    rows = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centres) / max(scale, 1))
    return rows / rows.sum(axis=1, keepdims=True)


def scaled_by_hand(image, height, width):
    rows = triangle_weights(image.shape[0], height)
    columns = triangle_weights(image.shape[1], width)
    return np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns)


def box(result, ground):
    """The top, left, height and width of what lies on the ground."""
    rows = np.flatnonzero((result != ground).any(axis=(1, 2)))
    columns = np.flatnonzero((result != ground).any(axis=(0, 2)))
    return rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1


@pytest.mark.parametrize("peer", LAID)
@pytest.mark.parametrize("size", [(40, 40), (40, 60)])
def test_what_lies_on_the_ground_is_the_image_made_smaller(peer, size):
    image = photo(*size)
    for seed in range(3):
        result = peer(image, smallest=0.6, fill=7, rng=seed)
        top, left, height, width = box(result, 7)
        assert abs(width / size[1] - height / size[0]) <= 0.5 / size[1] + 1e-9
        inside = result[top : top + height, left : left + width]
        np.testing.assert_allclose(inside, scaled_by_hand(image, height, width), atol=1e-3)


def boxes(peer, n=400):
    results = peer(photos(1, 20, 20).repeat(n, axis=0), smallest=0.8, fill=0, rng=0)
    return np.array([box(result, 0) for result in results])


@pytest.mark.parametrize("peer", [random_resize, random_resize_pad])
def test_every_size_is_equally_likely_in_the_middle_or_in_every_place_that_it_leaves(peer):
    top, left, heights, widths = boxes(peer).T
    np.testing.assert_array_equal(heights, widths)
    sizes, counts = np.unique(heights, return_counts=True)
    np.testing.assert_array_equal(sizes, [16, 17, 18, 19])
    # Of 400 draws 100 each, give or take three standard deviations and a half.
    np.testing.assert_allclose(counts, 100, atol=30)
    for size, place in itertools.product(sizes, (top, left)):
        free = 20 - size
        places = np.arange(free + 1) if peer is random_resize_pad else [free // 2]
        np.testing.assert_array_equal(np.unique(place[heights == size]), places)


def test_random_pad_has_one_size_and_every_place():
    top, left, heights, widths = boxes(random_pad).T
    np.testing.assert_array_equal(np.unique([heights, widths]), 16)
    for place in (top, left):
        places, counts = np.unique(place, return_counts=True)
        np.testing.assert_array_equal(places, [0, 1, 2, 3, 4])
        np.testing.assert_allclose(counts, 80, atol=28)
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.15


def test_at_224_the_sizes_are_xies_nine_tenths():
    white = np.full((1, 224, 224, 3), 255, np.float32)
    laid = (random_resize_pad(white[0], rng=seed) for seed in range(50))
    heights = [box(result, 127.5)[2] for result in laid]
    assert min(heights) >= 202
    assert max(heights) <= 223
    assert len(set(heights)) > 12
    assert box(random_pad(white[0], rng=0), 127.5)[2:] == (202, 202)


@pytest.mark.parametrize("peer", LAID)
def test_a_grey_image_vanishes_in_the_ground(peer):
    grey = np.full((20, 20, 3), 127.5, np.float32)
    np.testing.assert_allclose(peer(grey, rng=0), grey, atol=1e-4)


# --- crops ---


def coordinates(height, width):
    """An image whose first two channels are the row and the column of each pixel."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.float32)


def test_a_crop_is_a_part_scaled_to_the_whole_and_may_lie_anywhere():
    image = coordinates(20, 30)
    results = crop_rescale(np.repeat(image[np.newaxis], 400, axis=0), side=0.7, rng=0)
    for result in results[:20]:
        top, left = np.rint(result[0, 0, :2]).astype(int)
        part = image[top : top + 14, left : left + 21]
        assert part.shape == (14, 21, 3)
        np.testing.assert_allclose(result, scaled_by_hand(part, 20, 30), atol=1e-3)
    for channel, free in ((0, 6), (1, 9)):
        places, counts = np.unique(np.rint(results[:, 0, 0, channel]), return_counts=True)
        np.testing.assert_array_equal(places, np.arange(free + 1))
        mean = 400 / (free + 1)
        np.testing.assert_allclose(counts, mean, atol=3.5 * np.sqrt(mean))


def test_guos_crop_is_90_of_224_pixels_and_a_crop_or_padding_of_everything_is_the_image():
    result = crop_rescale(coordinates(224, 224), rng=0)
    assert result[-1, 0, 0] - result[0, 0, 0] == pytest.approx(89, abs=1e-3)
    for whole in (crop_rescale(photo(), side=1, rng=0), random_pad(photo(), smallest=1, rng=0)):
        np.testing.assert_array_equal(whole, photo())


# --- quilting after others; by itself it is in test_quilting.py ---


@pytest.mark.parametrize("knobs", [{}, {"patch": 4, "overlap": 1, "nearest": 2}], ids=str)
def test_quilting_comes_last_and_draws_from_the_stream_that_the_crop_has_drawn_from(knobs):
    batch = photos(2, 20, 16)
    smooth = DENOISERS["tv"](batch, weight=0.3)
    expected = quilting(smooth, **knobs, rng=7)
    np.testing.assert_array_equal(tv_quilting(batch, weight=0.3, **knobs, rng=7), expected)
    generators = streams(7, 2)
    parts = DENOISERS["tv"](crop_rescale(batch, side=0.5, rng=generators), weight=0.3)
    expected = quilting(parts, **knobs, rng=generators)
    result = crop_tv_quilting(batch, side=0.5, weight=0.3, **knobs, rng=7)
    np.testing.assert_array_equal(result, expected)


# --- what holds for all of them ---


@pytest.mark.parametrize("peer", RANDOM)
def test_each_image_draws_from_its_own_stream(peer):
    batch = np.stack([photo(40, 40)] * 3)
    together = peer(batch, rng=5)
    assert len({image.tobytes() for image in together}) == 3
    np.testing.assert_array_equal(together, peer(batch, rng=5))
    np.testing.assert_array_equal(together[:2], peer(batch[:2], rng=5))
    assert not np.array_equal(together, peer(batch, rng=6))


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_each_image_of_a_batch_is_as_alone(peer):
    def run(images, generators):
        return peer(images, **({"rng": generators} if peer in RANDOM else {}))

    batch = photos(3, 20, 16)
    together = run(batch, streams(1, 3))
    for image, stream, expected in zip(batch, streams(1, 3), together, strict=True):
        np.testing.assert_array_equal(run(image, [stream]), expected)


@pytest.mark.parametrize("peer", OWN)
def test_any_size_is_taken_the_rank_is_kept_and_nothing_is_changed_in_place(peer):
    for images in (photos(2, 20, 16), photo(1, 1), photo(1, 9), photo(2, 2), photo(33, 31)):
        before = images.copy()
        images.flags.writeable = False
        result = peer(images, **seeded(peer))
        assert result.shape == images.shape
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
        assert np.isfinite(result).all()
        assert not np.shares_memory(result, images)
        np.testing.assert_array_equal(images, before)


def test_the_peers_by_name_are_the_functions_of_that_name():
    own = {peer.__name__: peer for peer in OWN}
    filters = ("median", "bilateral", "tv", "wiener", "jpeg", "dct")
    assert own | {name: DENOISERS[name] for name in filters} == PEERS
    drawn = [name for name in PEERS if "rng" in inspect.signature(PEERS[name]).parameters]
    assert drawn == [peer.__name__ for peer in RANDOM]


# --- wrong input ---


@pytest.mark.parametrize(
    ("peer", "knob", "values"),
    [
        (bit_depth, "bits", [0, 9, 5.0, True]),
        (nl_means, "search", [10, 0]),
        (nl_means, "patch", [2, "3"]),
        (nl_means, "strength", [0, np.inf, np.nan]),
        (random_resize, "smallest", [0]),
        (random_pad, "smallest", [1.1]),
        (random_resize_pad, "smallest", [None, np.nan]),
        (random_pad, "fill", [-1, 256]),
        (crop_rescale, "side", [0, 90]),
        (quilting, "patch", [0, 17, 5.0]),
        (quilting, "overlap", [-1, 3, True]),
        (quilting, "nearest", [0, 101, None]),
        (tv_quilting, "weight", [0]),
        (tv_quilting, "overlap", [3]),
        (crop_tv_quilting, "side", [0, 90]),
        (crop_tv_quilting, "nearest", [0]),
    ],
)
def test_knobs_out_of_their_range(peer, knob, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"{knob}: expected .* got"):
            peer(photo(), **{knob: value})


@pytest.mark.parametrize("peer", OWN)
@pytest.mark.parametrize("images", [photo() / 255, photo().astype(np.float64), photo()[0]])
def test_wrong_images(peer, images):
    with pytest.raises(ValueError, match=r"images: expected"):
        peer(images)
