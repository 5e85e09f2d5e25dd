"""The tests of chance give what scipy gives."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from lbswitch.core.histogram import Histogram
from lbswitch.core.stats import binomial_at_least, mann_whitney, poisson_at_least, two_proportions
from tests.unit.properties.search import searching

small = st.integers(0, 60)
buckets = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=8)


def values_of(histogram: Histogram) -> list[int]:
    return [index for index, count in histogram.buckets() for _ in range(count)]


@searching(100)
@given(buckets, buckets)
def test_mann_whitney(new: list[tuple[int, int]], old: list[tuple[int, int]]):
    """With ties, and corrected for continuity."""
    ours, theirs = Histogram.of(new), Histogram.of(old)
    assume(len(set(values_of(ours) + values_of(theirs))) > 1)
    assume(ours.count + theirs.count > 2)
    found = mann_whitney(ours, theirs)
    expected = scipy_stats.mannwhitneyu(
        values_of(ours), values_of(theirs), alternative="greater", method="asymptotic", use_continuity=True
    )
    assert found is not None
    assert found.u == expected.statistic
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-300)
    assert found.z == pytest.approx(scipy_stats.norm.isf(expected.pvalue), rel=1e-6, abs=1e-9)
    assert found.superiority == pytest.approx(expected.statistic / (ours.count * theirs.count))
    assert -1 <= found.rank_biserial <= 1


def test_mann_whitney_of_equal_values_tells_no_difference():
    found = mann_whitney(Histogram.of([(5, 1000)]), Histogram.of([(5, 30)]))
    assert found is not None
    assert (found.z, found.p, found.rank_biserial) == (0.0, 1.0, 0.0)


def test_mann_whitney_needs_two_sides():
    assert mann_whitney(Histogram(), Histogram.of([(1, 1)])) is None
    assert mann_whitney(Histogram.of([(1, 1)]), Histogram()) is None


def test_mann_whitney_of_millions_is_exact_in_its_counts():
    """Whole numbers do not overflow or round."""
    found = mann_whitney(Histogram.of([(1, 10**9), (2, 1)]), Histogram.of([(1, 10**9)]))
    assert found is not None
    assert found.u == 10**18 / 2 + 10**9
    assert 0 <= found.p <= 1


@searching(150)
@given(small, small, small, small)
def test_two_proportions(new_failed: int, new_ok: int, old_failed: int, old_ok: int):
    """Fisher's exact test."""
    new_total, old_total = new_failed + new_ok, old_failed + old_ok
    assume(new_total and old_total)
    found = two_proportions(new_failed, new_total, old_failed, old_total)
    expected = scipy_stats.fisher_exact([[new_failed, new_ok], [old_failed, old_ok]], alternative="greater")
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=1e-8, abs=1e-12)
    assert found.difference == pytest.approx(new_failed / new_total - old_failed / old_total)


@pytest.mark.parametrize(
    ("new_failed", "new_total", "old_failed", "old_total"),
    [
        (20, 1000, 1, 1000),
        (2_000, 100_000, 1_800, 100_000),
        (20_400, 1_000_000, 20_000, 1_000_000),
        (1_001_000, 10_000_000, 1_000_000, 10_000_000),
        (36_100, 36_000_000, 36_000, 36_000_000),
        (900, 1_000_000, 1_000, 1_000_000),
        (5_000_000, 5_000_000, 4_999_990, 5_000_000),
    ],
)
def test_two_proportions_of_many(new_failed: int, new_total: int, old_failed: int, old_total: int):
    """An hour of heavy traffic is tested as well as a few requests."""
    found = two_proportions(new_failed, new_total, old_failed, old_total)
    expected = scipy_stats.hypergeom.sf(new_failed - 1, new_total + old_total, new_failed + old_failed, new_total)
    assert found is not None
    assert found.p == pytest.approx(expected, rel=2e-6, abs=1e-300)


def test_two_proportions_needs_two_sides_and_sane_counts():
    assert two_proportions(0, 0, 1, 10) is None
    assert two_proportions(1, 10, 0, 0) is None
    with pytest.raises(ValueError, match="11 of 10"):
        two_proportions(11, 10, 0, 10)


def test_nothing_failed_is_no_difference():
    found = two_proportions(0, 500, 0, 500)
    assert found is not None
    assert (found.p, found.difference) == (1.0, 0.0)


@searching(150)
@given(st.integers(-1, 130), st.integers(0, 120), st.sampled_from([0.0, 0.001, 0.025, 0.3, 0.5, 0.97, 1.0]))
def test_binomial(k: int, n: int, share: float):
    expected = scipy_stats.binom.sf(k - 1, n, share)
    assert binomial_at_least(k, n, share) == pytest.approx(expected, rel=1e-8, abs=1e-13)


@pytest.mark.parametrize(
    ("k", "n", "share"), [(51_000, 1_000_000, 0.05), (1_000, 10_000_000, 0.0001), (1, 10**9, 1e-12)]
)
def test_binomial_of_many(k: int, n: int, share: float):
    assert binomial_at_least(k, n, share) == pytest.approx(scipy_stats.binom.sf(k - 1, n, share), rel=1e-6)


@searching(150)
@given(st.integers(-1, 400), st.sampled_from([0.0, 0.01, 1.5, 30.0, 300.0]))
def test_poisson(k: int, mean: float):
    expected = scipy_stats.poisson.sf(k - 1, mean)
    assert poisson_at_least(k, mean) == pytest.approx(expected, rel=1e-8, abs=1e-13)
