import itertools
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pdutils.stats import Mean, PairedDifference, Rate


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval as the formula is written, at 95%."""
    z, p = 1.959963984540054, successes / n
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


# Newcombe 1998, DOI 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I.
PUBLISHED = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611)}


@pytest.mark.parametrize("counts", [(0, 1), (1, 1), (5, 10), (94, 100), (0, 1000), *PUBLISHED])
def test_the_interval_is_wilson_s_formula_and_the_published_one(counts):
    interval = Rate(*counts).interval
    assert_allclose(interval, wilson(*counts), atol=1e-9)
    assert_allclose(interval, PUBLISHED.get(counts, interval), atol=5e-5)


def test_rates_and_differences_are_counted_from_hits():
    rate = Rate.of(np.array([True, False, True, True]))
    assert (rate, rate.value, str(Rate(81, 263))) == (Rate(3, 4), 0.75, "0.31 [0.26, 0.37]")
    first = np.array([True, True, True, False, False, True])
    second = np.array([True, False, False, True, False, False])
    difference = PairedDifference.of(first, second)
    assert difference == PairedDifference(1, 3, 1, 1)
    assert (difference.first, difference.second) == (Rate(4, 6), Rate(2, 6))
    assert (difference.n, difference.value) == (6, 2 / 6)


@pytest.mark.parametrize(
    ("counts", "low", "high", "p"),
    [
        # Newcombe 1998 on paired data, DOI
        # 10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C, method 10. The
        # p-value is 2 (1 + 14 + 91) / 2^14.
        ((36, 12, 2, 0), 0.0569, 0.3404, 212 / 2**14),
        # Cavo and others 2012, as worked in Fagerland, Lydersen and Laake, Statistical Analysis
        # of Contingency Tables (2017), chapter 8.
        ((59, 6, 16, 80), -0.1186, -0.0046, 0.052479),
    ],
)
def test_interval_and_p_value_of_a_difference_are_the_published_ones(counts, low, high, p):
    assert_allclose(PairedDifference(*counts).interval, (low, high), atol=5e-5)
    assert math.isclose(PairedDifference(*counts).p_value, p, abs_tol=5e-7)


def newcombe(a: int, b: int, c: int, d: int) -> tuple[float, float]:
    """Method 10 as the paper writes it, on Wilson's formula above."""
    n = a + b + c + d
    p1, p2 = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = wilson(a + b, n), wilson(a + c, n)
    excess = a * d - b * c
    if excess > n / 2:
        excess -= n / 2
    elif excess >= 0:
        excess = 0
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    phi = excess / margins**0.5 if margins else 0
    below = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    above = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    return p1 - p2 - below**0.5, p1 - p2 + above**0.5


def test_every_table_of_five_images_has_the_formula_s_interval_and_the_binomial_s_p_value():
    for a, b, c in itertools.product(range(6), repeat=3):
        if (d := 5 - a - b - c) < 0:
            continue
        difference = PairedDifference(a, b, c, d)
        assert_allclose(difference.interval, newcombe(a, b, c, d), atol=1e-7)
        rarer = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
        assert math.isclose(difference.p_value, min(1, 2 * rarer / 2 ** (b + c)))
        low, high = difference.interval
        assert -1 <= low <= difference.value <= high <= 1
        assert_allclose(PairedDifference(a, c, b, d).interval, (-high, -low), atol=1e-12)


@pytest.mark.parametrize(
    ("counts", "verdict", "text"),
    [
        ((36, 12, 2, 0), "more", "+0.20 [+0.06, +0.34], p = 0.013"),
        # A bound just below 0 keeps its sign. Only the interval tells the two apart.
        ((59, 6, 16, 80), "not told apart", "-0.06 [-0.12, -0.00], p = 0.052"),
        ((50, 0, 30, 20), "fewer", "-0.30 [-0.39, -0.21], p < 0.001"),
        ((7, 0, 0, 3), "not told apart", "+0.00 [-0.20, +0.20], p = 1.000"),
    ],
)
def test_a_difference_reads_as_value_interval_and_p_value_and_has_a_verdict(counts, verdict, text):
    assert str(PairedDifference(*counts)) == text
    assert PairedDifference(*counts).verdict == verdict


@pytest.mark.parametrize(
    ("make", "said", "given"),
    [
        (Rate, r"got Rate\(successes={}, n={}\)", [(0, 0), (-1, 5), (6, 5), (0, -1)]),
        (PairedDifference, "not all of them 0, got .*ly={1}, s", [(0, 0, 0, 0), (3, -1, 2, 2)]),
        (
            PairedDifference.of,
            "expected two boolean arrays of one shape, got bool",
            [(np.ones(4, bool), other)
             for other in (np.ones(3, bool), np.ones(4), np.ones((4, 1), bool))],
        ),
        (Mean.of, "expected a row of values, got", [(np.zeros(n),) for n in (0, (), (2, 2))]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_came(make, said, given):
    for values in given:
        with pytest.raises(ValueError, match=said.format(*values)):
            make(*values)


# 2.262 is the 97.5% point of Student's t for 9 degrees of freedom, in any table.
TEN = np.array([2, 4, 4, 5, 5, 6, 7, 8, 9, 10], np.float64)
REACH = 2.262 * math.sqrt(sum((v - 6) ** 2 for v in TEN) / 9) / math.sqrt(10)
SIDES = np.array([-REACH, REACH])


def test_the_interval_of_a_mean_is_student_s_or_that_of_the_logarithm_for_sizes():
    for shift in (0, 7):
        mean = Mean.of(TEN - shift, least=-np.inf)
        assert (mean.value, mean.n) == (6 - shift, 10)
        assert_allclose(mean.interval, mean.value + SIDES, atol=2e-3)
    mean = Mean.of(TEN)
    assert (mean.value, mean.n) == (6, 10)
    assert_allclose(np.log(mean.interval), math.log(6) + SIDES / 6, atol=1e-3)
    assert [str(Mean.of(TEN, least=-np.inf)), str(mean)] == [
        "6.00 [4.22, 7.78]",
        "6.00 [4.46, 8.08]",
    ]


def test_a_mean_of_sizes_has_an_interval_above_0_however_uneven_they_are():
    norms = np.array([0.0014, 0.0013, 0.0016, 0.0012, 0.0015, 0.0013, 0.0014, 0.27])
    assert Mean.of(norms, least=-np.inf).low < 0 < Mean.of(norms).low < norms.mean()
    assert Mean.of(np.eye(1, 20)[0]).low > 0
    # In another unit it is the same interval.
    assert_allclose(Mean.of(255 * norms).interval, 255 * np.array(Mean.of(norms).interval))


@pytest.mark.parametrize(
    ("unit", "least", "link", "slope"),
    [
        (10, 0, lambda share: math.log(share / (1 - share)), 1 / (0.6 * 0.4)),
        # Fisher's z of r is artanh(r), whose slope is 1 / (1 - r^2).
        (5, -1, math.atanh, 1 / (1 - 0.2**2)),
    ],
)
def test_the_interval_between_two_bounds_is_student_s_for_the_logit(unit, least, link, slope):
    values, bounds = TEN / unit + least, {"least": least, "greatest": 1}
    mean = Mean.of(values, **bounds)
    found = [link(bound) for bound in mean.interval]
    assert_allclose(found, link(mean.value) + SIDES / unit * slope, atol=3e-3)
    # From the other side it is the same interval.
    other = Mean.of(1 + least - values, **bounds)
    assert_allclose(mean.interval, [1 + least - end for end in other.interval[::-1]])
    near = np.array([0.9, 0.99, 1.0])
    assert Mean.of(near).high > 1 > Mean.of(near, **bounds).high
    assert Mean.of(np.ones(4), **bounds) == Mean(1.0, 1.0, 1.0, 4)


def test_equal_values_have_no_spread_and_one_value_no_interval():
    for value in (0.25, 0.0):
        assert Mean.of(np.full(5, value, np.float32)) == Mean(value, value, value, 5)
    assert np.isnan(Mean.of(np.array([0.5])).interval).all()


def test_a_value_below_0_shows_that_the_values_are_signed():
    values = np.array([1.0, 2.0, -0.5])
    assert Mean.of(values) == Mean.of(values, least=-np.inf)
    assert Mean.of(values).low < 0
