import itertools
import math

import numpy as np
import pytest

from pdutils.stats import Mean, PairedDifference, Rate

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
    assert str(Rate(81, 263)) == "0.31 [0.26, 0.37]"


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (0, -1)])
def test_a_rate_that_cannot_be_is_refused_with_what_came(successes, n):
    with pytest.raises(ValueError, match=rf"n >= 1, got Rate\(successes={successes}, n={n}\)"):
        Rate(successes, n)


def test_no_hits_at_all_are_refused():
    with pytest.raises(ValueError, match=r"got Rate\(successes=0, n=0\)"):
        Rate.of(np.zeros(0, bool))


# Paired differences


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
    difference = PairedDifference(*counts)
    np.testing.assert_allclose(difference.interval, (low, high), atol=5e-5)
    assert math.isclose(difference.p_value, p, abs_tol=5e-7)


def tables(n: int):
    """All counts (both, first only, second only, neither) of n images."""
    for a, b, c in itertools.product(range(n + 1), repeat=3):
        if a + b + c <= n:
            yield a, b, c, n - a - b - c


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


def test_every_table_of_seven_images_has_the_formula_s_interval_and_the_binomial_s_p_value():
    for counts in tables(7):
        a, b, c, d = counts
        difference = PairedDifference(*counts)
        np.testing.assert_allclose(difference.interval, newcombe(a, b, c, d), atol=1e-7)
        rarer = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
        assert math.isclose(difference.p_value, min(1, 2 * rarer / 2 ** (b + c)))
        low, high = difference.interval
        assert -1 <= low <= difference.value <= high <= 1
        np.testing.assert_allclose(PairedDifference(a, c, b, d).interval, (-high, -low), atol=1e-12)


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    # Exact: every table of 12 images with its multinomial probability.
    cases = [(0.7, 0.2, 0.05, 0.05), (0.4, 0.1, 0.1, 0.4), (0.05, 0.8, 0.05, 0.1)]
    covered = dict.fromkeys(cases, 0.0)
    for counts in tables(12):
        low, high = PairedDifference(*counts).interval
        ways = math.factorial(12) / math.prod(math.factorial(k) for k in counts)
        for shares in cases:
            probability = ways * math.prod(s**k for s, k in zip(shares, counts, strict=True))
            covered[shares] += probability * (low <= shares[1] - shares[2] <= high)
    assert all(0.93 < share < 0.995 for share in covered.values())


def test_where_both_hit_the_same_images_the_difference_is_nothing():
    difference = PairedDifference(7, 0, 0, 3)
    low, high = difference.interval
    assert (difference.value, difference.p_value) == (0, 1)
    assert low < 0 < high


def test_a_difference_is_counted_from_hits():
    first = np.array([True, True, True, False, False, True])
    second = np.array([True, False, False, True, False, False])
    difference = PairedDifference.of(first, second)
    assert difference == PairedDifference(1, 3, 1, 1)
    assert (difference.first, difference.second) == (Rate(4, 6), Rate(2, 6))
    assert (difference.n, difference.value) == (6, 2 / 6)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((36, 12, 2, 0), "+0.20 [+0.06, +0.34], p = 0.013"),
        # A bound just below 0 keeps its sign.
        ((59, 6, 16, 80), "-0.06 [-0.12, -0.00], p = 0.052"),
        ((50, 0, 30, 20), "-0.30 [-0.39, -0.21], p < 0.001"),
    ],
)
def test_a_difference_reads_as_value_interval_and_p_value(counts, text):
    assert str(PairedDifference(*counts)) == text


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (3, -1, 2, 2)])
def test_counts_that_cannot_be_are_refused_with_what_came(counts):
    with pytest.raises(ValueError, match=rf"not all of them 0, got .*first_only={counts[1]}"):
        PairedDifference(*counts)


@pytest.mark.parametrize("second", [np.ones(3, bool), np.ones(4), np.ones((4, 1), bool)])
def test_hits_that_do_not_pair_are_refused(second):
    with pytest.raises(ValueError, match="expected two boolean arrays of one shape, got bool"):
        PairedDifference.of(np.ones(4, bool), second)


# Means


# 2.262 is the 97.5% point of Student's t for 9 degrees of freedom, in any table.
TEN = np.array([2, 4, 4, 5, 5, 6, 7, 8, 9, 10], np.float64)
REACH = 2.262 * math.sqrt(sum((v - 6) ** 2 for v in TEN) / 9) / math.sqrt(10)


def test_the_interval_of_a_mean_of_differences_is_student_s():
    for shift in (0, 7):
        mean = Mean.of(TEN - shift, least=-np.inf)
        assert (mean.value, mean.n) == (6 - shift, 10)
        expected = (6 - shift - REACH, 6 - shift + REACH)
        np.testing.assert_allclose(mean.interval, expected, atol=2e-3)
    assert str(Mean.of(TEN, least=-np.inf)) == "6.00 [4.22, 7.78]"


def test_the_interval_of_a_mean_of_sizes_is_student_s_for_its_logarithm():
    mean = Mean.of(TEN)
    assert (mean.value, mean.n) == (6, 10)
    np.testing.assert_allclose(
        np.log(mean.interval), [math.log(6) - REACH / 6, math.log(6) + REACH / 6], atol=1e-3
    )
    assert str(mean) == "6.00 [4.46, 8.08]"


def test_a_mean_of_sizes_has_an_interval_above_0_however_uneven_they_are():
    norms = np.array([0.0014, 0.0013, 0.0016, 0.0012, 0.0015, 0.0013, 0.0014, 0.27])
    assert Mean.of(norms, least=-np.inf).low < 0 < Mean.of(norms).low < norms.mean()
    assert Mean.of(np.eye(1, 20)[0]).low > 0
    # In another unit it is the same interval.
    np.testing.assert_allclose(
        Mean.of(255 * norms).interval, 255 * np.array(Mean.of(norms).interval)
    )


def test_the_interval_of_a_mean_of_sizes_holds_it_about_as_often_as_it_says():
    # Exponential sizes have the mean 1. Student's own interval holds it less often.
    samples = np.random.default_rng(0).exponential(size=(1000, 8))

    def held(least):
        return np.mean([(m := Mean.of(x, least=least)).low <= 1 <= m.high for x in samples])

    assert 0.91 < held(0) < 0.97
    assert held(-np.inf) < held(0)


def test_the_interval_of_a_mean_of_shares_is_student_s_for_its_logit_and_within_0_and_1():
    shares = TEN / 10
    mean = Mean.of(shares, greatest=1)
    reach = REACH / 10 / (0.6 * 0.4)
    logits = [math.log(bound / (1 - bound)) for bound in mean.interval]
    np.testing.assert_allclose(logits, math.log(0.6 / 0.4) + np.array([-reach, reach]), atol=3e-3)
    # From the other side it is the same interval.
    other = Mean.of(1 - shares, greatest=1)
    np.testing.assert_allclose(mean.interval, [1 - other.high, 1 - other.low])
    wide = np.array([0.5, 0.9, 1.0])
    assert Mean.of(wide).high > 1 > Mean.of(wide, greatest=1).high
    assert Mean.of(np.ones(4), greatest=1) == Mean(1.0, 1.0, 1.0, 4)


def test_the_interval_of_a_mean_of_correlations_is_student_s_for_fisher_s_z_and_within_1():
    correlations = TEN / 5 - 1.0
    mean = Mean.of(correlations, least=-1, greatest=1)
    # Fisher's z of r is artanh(r), whose slope is 1 / (1 - r^2).
    reach = REACH / 5 / (1 - 0.2**2)
    found = [math.atanh(bound) for bound in mean.interval]
    np.testing.assert_allclose(found, math.atanh(0.2) + np.array([-reach, reach]), atol=3e-3)
    # With the sign of all turned it is the same interval.
    other = Mean.of(-correlations, least=-1, greatest=1)
    np.testing.assert_allclose(mean.interval, [-other.high, -other.low])
    near = np.array([0.99, 1.0, 0.9])
    assert Mean.of(near).high > 1 > Mean.of(near, least=-1, greatest=1).high


def test_equal_values_have_no_spread_and_one_value_no_interval():
    assert Mean.of(np.full(5, 0.25, np.float32)) == Mean(0.25, 0.25, 0.25, 5)
    assert Mean.of(np.zeros(5)) == Mean(0.0, 0.0, 0.0, 5)
    assert all(math.isnan(bound) for bound in Mean.of(np.array([0.5])).interval)


def test_a_value_below_0_shows_that_the_values_are_signed():
    values = np.array([1.0, 2.0, -0.5])
    assert Mean.of(values) == Mean.of(values, least=-np.inf)
    assert Mean.of(values).low < 0


@pytest.mark.parametrize("shape", [(0,), (), (2, 2)])
def test_what_is_no_row_of_values_is_refused(shape):
    with pytest.raises(ValueError, match="expected a row of values, got shape"):
        Mean.of(np.zeros(shape))


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [((40, 20, 2, 38), "more"), ((40, 2, 20, 38), "fewer"), ((40, 5, 4, 51), "not told apart")],
)
def test_the_verdict_is_what_the_interval_leaves_open(counts, verdict):
    assert PairedDifference(*counts).verdict == verdict


@pytest.mark.parametrize("count", [2**63, 2**70])
def test_counts_of_more_than_64_bits_are_refused(count):
    for make in (
        lambda: Rate(1, count),
        lambda: Rate(count, count),
        lambda: PairedDifference(count, 1, 1, 1),
        lambda: PairedDifference(0, 0, 1, count),
    ):
        with pytest.raises(ValueError, match=rf"expected .* got .*{count}"):
            make()
