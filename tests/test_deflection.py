import random
from collections import Counter

import numpy as np
import pytest
from conftest import photo, photos
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.stats import chi2_contingency, chisquare

from pdutils._utils import streams
from pdutils.deflection import Writes, apply_writes, deflect, draw_writes, pixel_deflection

READINGS = ["blog", "repo", "paper"]
SIZES = [(1, 1), (2, 2), (7, 5), (1, 9), (9, 1), (32, 32), (300, 200)]
ALL = -1

each_reading = pytest.mark.parametrize("reading", READINGS)
with_and_without_map = pytest.mark.parametrize("with_map", [False, True], ids=["no map", "map"])


def places_picture(height=7, width=5):
    """An image whose values tell where they come from: no two are equal."""
    return np.arange(height * width * 3, dtype=np.float32).reshape(height, width, 3)


def uneven_map(height, width, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (height, width)).astype(np.float32)


def drawn(size, n, window, chances, reading, seed=0):
    return draw_writes(size, n, window, chances, reading, np.random.default_rng(seed))


def loop(image, writes):
    """Carry out writes one after the other, as the definition says."""
    result = image.copy()
    for i in range(len(writes)):
        channels = slice(None) if writes.channel[i] == ALL else writes.channel[i]
        value = result[writes.from_row[i], writes.from_column[i], channels].copy()
        result[writes.to_row[i], writes.to_column[i], channels] = value
    return result


@pytest.mark.parametrize("window", [1, 400])
@pytest.mark.parametrize("size", SIZES, ids=str)
@each_reading
@with_and_without_map
def test_deflection_equals_a_plain_loop_over_the_same_draws(reading, size, window, with_map):
    image = photo(*size)
    chances = uneven_map(*size) if with_map else None
    options = {"activation_map": chances, "reading": reading}
    deflected = pixel_deflection(image, 400, window, rng=11, **options)
    writes = draw_writes(size, 400, window, chances, reading, streams(11, 1)[0])
    assert len(writes) > 100
    assert_array_equal(deflected, loop(image, writes))


@given(
    st.lists(st.tuples(*[st.integers(0, 1)] * 4, st.integers(0, 2)), max_size=40),
    st.booleans(),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_writes_on_four_pixels_equal_the_loop(steps, whole_pixels):
    if whole_pixels:
        steps = [(*step[:4], ALL) for step in steps]
    image, writes = places_picture(2, 2), Writes(*np.array(steps, int).reshape(-1, 5).T)
    result = apply_writes(image, writes)
    assert_array_equal(result, loop(image, writes))
    assert not np.shares_memory(result, image)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1500])
def test_counts_without_a_map(n):
    channels = {reading: drawn((40, 30), n, 10, None, reading).channel for reading in READINGS}
    rounds = np.tile([0, 1, 2], n)
    assert_array_equal(channels["blog"], rounds)
    # No write is rejected: whole rounds of three channels, until there are n.
    assert_array_equal(channels["repo"], rounds[: 3 * -(-n // 3)])
    assert_array_equal(channels["paper"], [ALL] * n)


def test_counts_with_a_map():
    chances, seeds = uneven_map(12, 9), range(100)
    blog, repo, paper = (
        [len(drawn((12, 9), 50, 4, chances, reading, seed)) for seed in seeds]
        for reading in READINGS
    )
    assert (set(repo), set(paper)) == ({50, 51, 52}, {50})
    # 150 draws, of which the map keeps 1 - mean: a binomial.
    kept = 1 - float(chances.mean())
    assert abs(np.mean(blog) - 150 * kept) < 4 * np.sqrt(150 * kept * (1 - kept) / 100)


def naive(reading, size, n, window, chances, rng):
    """Draw places until they count, and an offset in the window until it ends inside the image."""
    writes, rounds = [], 0
    while rounds < n if reading == "blog" else len(writes) < n:
        rounds += 1
        for channel in (ALL,) if reading == "paper" else (0, 1, 2):
            row, column = rng.randrange(size[0]), rng.randrange(size[1])
            if chances is not None and rng.random() < chances[row, column]:
                continue
            first, source = int(reading != "paper"), (-1, -1)
            while not (first <= source[0] < size[0] and first <= source[1] < size[1]):
                source = row + rng.randint(-window, window), column + rng.randint(-window, window)
            writes.append((row, column, *source, channel))
    return writes


def as_tuples(writes):
    columns = (writes.to_row, writes.to_column, writes.from_row, writes.from_column, writes.channel)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def likeness(ours, theirs):
    """The p-value of the two samples of things coming from one distribution."""
    ours, theirs = Counter(ours), Counter(theirs)
    # A chi-square needs a few of each kind: the rare ones count as one kind.
    frequent = [kind for kind in ours | theirs if ours[kind] + theirs[kind] >= 10]
    table = np.array([[sample[kind] for kind in frequent] for sample in (ours, theirs)])
    rest = np.array([ours.total(), theirs.total()]) - table.sum(axis=1)
    return chi2_contingency(np.column_stack([table, rest]) if rest.any() else table).pvalue


@with_and_without_map
@each_reading
def test_draws_are_those_of_rejection(reading, with_map):
    chances = uneven_map(6, 3) if with_map else None

    # Taller than wide, so that a map or a window laid the wrong way round shows.
    def both(n, repeats):
        rng, plain = np.random.default_rng(2018), random.Random(2018)
        ours = (draw_writes((6, 3), n, 2, chances, reading, rng) for _ in range(repeats))
        theirs = [naive(reading, (6, 3), n, 2, chances, plain) for _ in range(repeats)]
        return [as_tuples(writes) for writes in ours], theirs

    samples = [writes for (writes,) in both(8000, 1)]
    sequences = [[tuple(w[4] for w in writes) for writes in sample] for sample in both(2, 2000)]
    for pair in (
        samples,
        [[w[:2] for w in sample] for sample in samples],
        [[(w[2] - w[0], w[3] - w[1]) for w in sample] for sample in samples],
        [[w[4] for w in sample] for sample in samples],
        [[*map(len, sample)] for sample in sequences],
        sequences,
    ):
        assert likeness(*pair) > 1e-3


@each_reading
def test_a_place_is_hit_in_proportion_to_one_minus_its_map(reading):
    chances = np.array([[0, 0.25], [0.75, 1]], dtype=np.float32)
    writes = drawn((2, 2), 6000, 1, chances, reading, seed=7)
    hits = np.bincount(writes.to_row * 2 + writes.to_column, minlength=4)
    assert hits[3] == 0
    assert chisquare(hits[:3], len(writes) * np.array([1, 0.75, 0.25]) / 2).pvalue > 1e-3


@each_reading
def test_row_and_column_0_are_written_but_read_in_the_paper_alone(reading):
    writes, least = drawn((6, 4), 3000, 10, None, reading), int(reading != "paper")
    assert (set(writes.to_row), set(writes.to_column)) == (set(range(6)), set(range(4)))
    assert set(writes.from_row) == set(range(least, 6))
    assert set(writes.from_column) == set(range(least, 4))


@each_reading
def test_a_neighbour_comes_from_the_window_which_reaches_no_further_than_the_image(reading):
    for window in (1, 3):
        writes = drawn((30, 20), 4000, window, None, reading)
        for offset in (writes.from_row - writes.to_row, writes.from_column - writes.to_column):
            # Or is the place itself.
            assert set(offset) == set(range(-window, window + 1))
    results = [
        pixel_deflection(places_picture(), 40, window, reading=reading, rng=1)
        for window in (7, 8, 400, 2**63 - 1)
    ]
    assert_array_equal(results[1:], [results[0]] * 3)


@each_reading
def test_no_deflections_or_a_map_of_ones_spare_all_or_are_an_error_where_writes_count(reading):
    image, ones = photo(), np.ones((32, 32), np.float32)
    free = [(0, None), (0, uneven_map(32, 32)), (0, ones), (300, ones)]
    for n, chances in {"blog": free, "repo": free[:3], "paper": free[:2]}[reading]:
        result = pixel_deflection(image, n, activation_map=chances, reading=reading, rng=0)
        assert_array_equal(result, image)
    if reading != "blog":
        with pytest.raises(ValueError, match=r"activation_map is 1 everywhere.*below 1.*repo"):
            pixel_deflection(image, 200, activation_map=ones, reading=reading)


def one_open_place(height, width, row, column):
    chances = np.ones((height, width), np.float32)
    chances[row, column] = np.nextafter(np.float32(1), np.float32(0))
    return chances


@pytest.mark.parametrize("reading", ["repo", "paper"])
@pytest.mark.parametrize("place", [(0, 0), (223, 223)])
def test_a_map_with_one_place_hardly_open_ends_at_once(reading, place):
    writes = drawn((224, 224), 200, 10, one_open_place(224, 224, *place), reading)
    assert 200 <= len(writes) <= 202
    assert {write[:2] for write in as_tuples(writes)} == {place}


def test_waits_too_long_for_their_sum_still_give_a_number_of_writes():
    class Patient(np.random.Generator):
        def geometric(self, p, size=None):
            # As long as NumPy ever says: 1 more than a multiple of 3, so that the channels go on.
            return np.full(size, 2**63 - 1)

    chances = one_open_place(8, 8, 2, 2)
    writes = draw_writes((8, 8), 7, 2, chances, "repo", Patient(np.random.PCG64(0)))
    # Every wait leads to another round, so that no write joins the last one.
    assert writes.channel.tolist() == [0, 1, 2, 0, 1, 2, 0]


@each_reading
@with_and_without_map
def test_each_image_of_a_batch_is_deflected_as_alone_and_none_is_changed(reading, with_map):
    batch, n, options = photos(5, 12, 9), 60, {"window": 3, "reading": reading}
    maps = np.stack([uneven_map(12, 9, i) for i in range(5)]) if with_map else None
    for array in (batch, maps) if with_map else (batch,):
        array.flags.writeable = False

    def part(i, rng):
        own = None if maps is None else maps[i]
        result = pixel_deflection(batch[i], n, activation_map=own, rng=rng, **options)
        assert (result.shape, result.dtype) == (batch[i].shape, np.float32)
        assert not np.shares_memory(result, batch)
        return result

    together = part(slice(None), 4)
    assert_array_equal(together[:2], part(slice(2), 4))
    assert_array_equal(together, [part(i, [stream]) for i, stream in enumerate(streams(4, 5))])
    assert_array_equal(together, deflect(batch, n, maps=maps, generators=streams(4, 5), **options))


def test_seeds_and_generators():
    first, second = pixel_deflection(np.stack([places_picture()] * 2), 20, 2, rng=0)
    assert not np.array_equal(first, second)
    numpys = pixel_deflection(photo(), np.int32(20), np.uint8(3), rng=np.int64(1))
    assert_array_equal(numpys, pixel_deflection(photo(), 20, 3, rng=1))
    first, again, other, *free = (pixel_deflection(photo(), rng=s) for s in (5, 5, 6, None, None))
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(*free)
    # A generator goes on from batch to batch.
    batch, rng = photos(4, 12, 9), np.random.default_rng(3)
    halves = [pixel_deflection(batch[i : i + 2], 50, rng=rng) for i in (0, 2)]
    whole = pixel_deflection(batch, 50, rng=np.random.default_rng(3))
    assert_array_equal(np.concatenate(halves), whole)


WRONG = {
    "deflections": ([-1, 2.0, 2.5, "10", None, np.nan, 2**63, 10**30], "a whole number .* got"),
    "window": ([0, -1, 2.5, "10", None, np.nan, 10**30], "a whole number of at least 1, got"),
    "reading": (["book"], r".*'blog', 'repo', 'paper'.*got 'book'"),
    "images": ([photo() / 255, photo().astype(np.float64), photo()[..., :2], photo()[0]], ""),
    "activation_map": ([np.zeros((32, 31), np.float32)], r".*\(1, 32, 32\).*got \(32, 31\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(name):
    for value in WRONG[name][0]:
        with pytest.raises(ValueError, match=f"{name}: expected {WRONG[name][1]}"):
            pixel_deflection(**{"images": photo(), name: value})


def test_wrong_maps():
    with pytest.raises(ValueError, match=r"activation_map: .*in \[0, 1\], got \[1.5, 1.5\]"):
        pixel_deflection(photo(), activation_map=np.full((32, 32), 1.5, np.float32))
    # Nor is one map stretched over a batch.
    with pytest.raises(ValueError, match=r"activation_map: .*\(3, 32, 32\).*got \(32, 32\)"):
        pixel_deflection(photos(3), activation_map=uneven_map(32, 32))
