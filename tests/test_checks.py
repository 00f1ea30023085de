import numpy as np
import pytest

from pdutils._utils import check_odd, check_one_of, check_whole, is_finite, is_number, is_whole


@pytest.mark.parametrize("value", [0, -3, np.int64(7), 2**70])
def test_whole_numbers_are_whole_and_numbers(value):
    assert is_whole(value)
    assert is_number(value)


@pytest.mark.parametrize("value", [1.0, np.float32(2), float("inf")])
def test_floats_are_numbers_and_not_whole(value):
    assert is_number(value)
    assert not is_whole(value)


@pytest.mark.parametrize("value", [True, np.bool_(False), "1", None, [1], 1j])
def test_truth_texts_and_lists_are_neither(value):
    assert not is_whole(value)
    assert not is_number(value)


@pytest.mark.parametrize(("value", "low", "high"), [(1, 1, 1), (0, 0, None), (np.int8(5), 1, 9)])
def test_a_whole_number_in_its_range_passes(value, low, high):
    check_whole("k", value, low, high)


@pytest.mark.parametrize("value", [0, 10, 3.0, "3", True, None])
def test_a_whole_number_out_of_its_range_is_named(value):
    with pytest.raises(ValueError, match=r"^k: expected a whole number from 1 to 9, got"):
        check_whole("k", value, 1, 9)
    with pytest.raises(ValueError, match=r"^k: expected a whole number of at least 11, got"):
        check_whole("k", value, 11)


@pytest.mark.parametrize("value", [2**63, 2**70, 10**400])
def test_a_whole_number_of_more_than_64_bits_is_refused(value):
    check_whole("k", 2**63 - 1, 1)
    check_odd("k", 2**63 - 1)
    with pytest.raises(
        ValueError, match=rf"^k: expected a whole number of at least 1, got {value}"
    ):
        check_whole("k", value, 1)
    with pytest.raises(ValueError, match=rf"^k: expected an odd number of pixels, got {value + 1}"):
        check_odd("k", value + 1)


@pytest.mark.parametrize("value", [0, -1.5, 2**63 - 1, np.float32(2), np.int8(3), 1e300])
def test_numbers_that_can_be_taken_are_finite(value):
    assert is_finite(value)


@pytest.mark.parametrize("value", [2**63, -(2**70), 10**400, np.inf, -np.inf, np.nan, "1", True])
def test_what_cannot_be_taken_is_not_finite(value):
    assert not is_finite(value)


@pytest.mark.parametrize("value", [0, -1, 2, 3.0, True])
def test_an_even_window_is_refused(value):
    check_odd("size", 3)
    with pytest.raises(ValueError, match=rf"^size: expected an odd number of pixels, got {value}"):
        check_odd("size", value)


@pytest.mark.parametrize("value", ["medium", "", None, 1])
def test_an_unknown_word_is_refused_with_those_that_are_known(value):
    check_one_of("mode", "hard", ("soft", "hard"))
    with pytest.raises(ValueError, match=r"^mode: expected one of \('soft', 'hard'\), got"):
        check_one_of("mode", value, ("soft", "hard"))
