import math

import numpy as np
import pytest

from pdutils.statistics import Mean, Rate, correlation

# Rates


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval as the formula is written, at 95%."""
    z, p = 1.959963984540054, successes / n
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (1, 2), (5, 10), (94, 100), (188, 200), (0, 1000)]
)
def test_the_interval_is_wilson_s_formula(successes, n):
    low, high = wilson(successes, n)
    np.testing.assert_allclose(Rate(successes, n).interval, (low, high), atol=1e-9)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, DOI 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_the_published_one(successes, n, low, high):
    np.testing.assert_allclose(Rate(successes, n).interval, (low, high), atol=5e-5)


def test_a_rate_is_counted_from_hits():
    rate = Rate.of(np.array([True, False, True, True]))
    assert rate == Rate(3, 4)
    assert rate.value == 0.75
    assert repr(rate) == "Rate(3, 4)"


def test_a_rate_reads_as_value_and_interval():
    assert str(Rate(81, 263)) == "0.31 [0.26, 0.37]"


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (0, -1)])
def test_a_rate_that_cannot_be_is_refused_with_what_came(successes, n):
    with pytest.raises(ValueError, match=rf"n >= 1, got Rate\({successes}, {n}\)"):
        Rate(successes, n)


def test_no_hits_at_all_are_refused():
    with pytest.raises(ValueError, match=r"got Rate\(0, 0\)"):
        Rate.of(np.zeros(0, bool))


# Means


def test_a_mean_s_interval_is_student_s():
    # 2.262 is the 97.5% point of Student's t for 9 degrees of freedom, in any table.
    values = np.array([2, 4, 4, 5, 5, 6, 7, 8, 9, 10], np.float64)
    spread = math.sqrt(sum((v - 6) ** 2 for v in values) / 9)
    mean = Mean.of(values)
    assert (mean.value, mean.n) == (6, 10)
    assert math.isclose(mean.half_width, 2.262 * spread / math.sqrt(10), rel_tol=1e-3)
    np.testing.assert_allclose(mean.interval, (6 - mean.half_width, 6 + mean.half_width))
    assert str(mean) == "6.00 [4.22, 7.78]"


def test_equal_values_have_no_spread_and_one_value_no_interval():
    assert Mean.of(np.full(5, 0.25, np.float32)) == Mean(0.25, 0.0, 5)
    assert math.isnan(Mean.of(np.array([0.5])).half_width)


@pytest.mark.parametrize("shape", [(0,), (), (2, 2)])
def test_what_is_no_row_of_values_is_refused(shape):
    with pytest.raises(ValueError, match="expected a row of values, got shape"):
        Mean.of(np.zeros(shape))


# Correlation


def test_the_correlation_is_the_one_worked_by_hand():
    # Deviations (-1.5, -.5, .5, 1.5) and (-1, 1, -1, 1): 2 / sqrt(5 * 4).
    field = np.array([[1, 2], [3, 4]], np.float32)
    other = np.array([[0, 2], [0, 2]], np.uint8)
    assert math.isclose(correlation(field, other), 2 / math.sqrt(20))
    assert math.isclose(correlation(field, 5 - 3 * field), -1)


def test_a_constant_field_correlates_with_nothing():
    field = np.array([[1, 2], [3, 4]], np.float32)
    assert correlation(field, np.full((2, 2), 7.0)) == 0
    assert correlation(np.zeros((2, 2)), field) == 0


def test_fields_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2\) and \(4,\)"):
        correlation(np.zeros((2, 2)), np.zeros(4))
