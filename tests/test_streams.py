import numpy as np
import pytest

from pdutils._utils import generator, streams


def draws(rng, n: int) -> np.ndarray:
    return np.stack([stream.uniform(size=4) for stream in streams(rng, n)])


def test_the_same_seed_gives_the_same_draws():
    np.testing.assert_array_equal(draws(7, 3), draws(7, 3))
    np.testing.assert_array_equal(draws(np.int64(7), 3), draws(7, 3))
    assert not np.array_equal(draws(7, 3), draws(8, 3))


def test_the_streams_are_those_that_numpy_spawns_from_the_seed():
    children = np.random.SeedSequence(7).spawn(3)
    expected = np.stack([np.random.default_rng(child).uniform(size=4) for child in children])
    np.testing.assert_array_equal(draws(7, 3), expected)


def test_no_two_images_share_their_draws():
    assert len(np.unique(draws(7, 50))) == 200


def test_an_image_s_draws_do_not_depend_on_how_many_follow():
    np.testing.assert_array_equal(draws(7, 1), draws(7, 5)[:1])
    np.testing.assert_array_equal(draws(7, 3), draws(7, 5)[:3])


def test_one_image_s_appetite_does_not_move_its_neighbours():
    calm, greedy = streams(7, 2), streams(7, 2)
    greedy[0].uniform(size=1000)
    np.testing.assert_array_equal(greedy[1].uniform(size=4), calm[1].uniform(size=4))


@pytest.mark.parametrize("sizes", [(6,), (1, 1, 1, 1, 1, 1), (4, 2), (1, 0, 5)])
def test_a_generator_carried_over_batches_gives_what_one_batch_gives(sizes):
    carried = np.random.default_rng(7)
    parts = [draws(carried, size) for size in sizes if size]
    np.testing.assert_array_equal(np.concatenate(parts), draws(np.random.default_rng(7), 6))
    np.testing.assert_array_equal(np.concatenate(parts), draws(7, 6))


def test_drawing_from_the_generator_itself_does_not_move_the_streams():
    drawn = np.random.default_rng(7)
    drawn.uniform(size=100)
    np.testing.assert_array_equal(draws(drawn, 2), draws(7, 2))


def test_no_global_seed_is_read_or_moved():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draws(7, 3)
    draws(None, 3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_none_gives_fresh_draws():
    assert not np.array_equal(draws(None, 1), draws(None, 1))


def test_generators_are_returned_as_they_are():
    own = [np.random.default_rng(seed) for seed in range(3)]
    assert all(a is b for a, b in zip(streams(own, 3), own, strict=True))
    assert all(a is b for a, b in zip(streams(tuple(own), 3), own, strict=True))


def test_no_streams_are_an_empty_list():
    assert streams(7, 0) == []
    assert streams([], 0) == []


@pytest.mark.parametrize(
    "wrong",
    [-1, 1.0, "7", b"7", True, np.array([1, 2]), np.random.RandomState(0), {"seed": 1}],
)
def test_what_is_no_seed_is_refused(wrong):
    with pytest.raises(ValueError, match=r"rng: expected an int seed >= 0.*got"):
        streams(wrong, 2)
    with pytest.raises(ValueError, match=r"rng: expected an int seed >= 0.*got"):
        generator(wrong)


@pytest.mark.parametrize("n", [2, 4])
def test_a_sequence_of_another_length_is_refused(n):
    own = [np.random.default_rng(seed) for seed in range(3)]
    with pytest.raises(ValueError, match=f"rng: expected a sequence of {n} generators"):
        streams(own, n)


def test_a_sequence_of_seeds_is_refused():
    with pytest.raises(ValueError, match=r"rng: expected a sequence of 3 generators, got \[1"):
        streams([1, 2, 3], 3)


def test_a_generator_stays_itself_and_a_seed_is_numpy_s():
    own = np.random.default_rng(3)
    assert generator(own) is own
    assert generator(3).uniform() == np.random.default_rng(3).uniform()
    assert generator(None).uniform() != generator(None).uniform()


@pytest.mark.parametrize("n", [-1, 2.0, 2**70])
def test_a_number_of_streams_that_there_cannot_be(n):
    with pytest.raises(ValueError, match=r"n: expected a whole number of at least 0, got"):
        streams(0, n)
