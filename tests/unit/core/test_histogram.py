"""The histogram keeps its stated error, and its size, whatever comes."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbswitch.core.histogram import BUCKETS, LEAST_MS, MOST_MS, RELATIVE_ERROR, Histogram
from tests.unit.properties.search import searching

latencies = st.floats(LEAST_MS, MOST_MS)
quantiles = st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 1.0])


def of(*values: float) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def test_the_stated_error_is_at_most_two_percent():
    assert RELATIVE_ERROR <= 0.02


@searching(200)
@given(latencies)
def test_every_value_lies_in_its_bucket(value: float):
    """And the bucket's middle is within the stated error, at both ends of the range, too."""
    low, high = Histogram.bounds(Histogram.index(value))
    assert low <= value < high
    assert abs(Histogram.middle(Histogram.index(value)) - value) <= RELATIVE_ERROR * value


@searching(100)
@given(st.lists(latencies, min_size=1, max_size=60), quantiles)
def test_quantiles_are_within_the_stated_error(values: list[float], q: float):
    """Of the nearest rank."""
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    found = of(*values).quantile(q)
    assert found is not None
    assert abs(found - exact) <= RELATIVE_ERROR * exact * (1 + 1e-9)


@searching(100)
@given(st.lists(latencies, max_size=20), st.lists(latencies, max_size=20))
def test_merging_is_as_if_all_had_gone_into_one(some: list[float], others: list[float]):
    """And it survives being written down."""
    merged = of(*some)
    merged.merge(of(*others))
    assert merged == of(*some, *others)
    assert merged.count == len(some) + len(others)
    assert Histogram.from_json(merged.to_json()) == merged


def test_buckets_follow_each_other_without_a_gap():
    bounds = [Histogram.bounds(index) for index in range(BUCKETS)]
    assert all(low[1] == high[0] for low, high in pairwise(bounds))
    assert bounds[0][0] <= LEAST_MS < bounds[0][1]
    assert bounds[-1][0] <= MOST_MS < bounds[-1][1]


def test_what_lies_beyond_the_range_counts_as_its_end():
    """Clocks that were set back and endless requests, too."""
    histogram = of(-5.0, 0.0, 1e-300, -math.inf, 1e9, math.inf)
    assert histogram.buckets() == [(0, 4), (BUCKETS - 1, 2)]


def test_an_empty_one_has_no_quantiles():
    assert Histogram().quantile(0.5) is None
    assert Histogram().buckets() == []


def test_how_many_are_slow_agrees_with_the_quantile():
    histogram = of(*range(1, 1001))
    p95 = histogram.quantile(0.95)
    assert p95 is not None
    assert histogram.at_least(p95) >= 50
    assert histogram.at_least(p95 * 1.05) < 50


@pytest.mark.parametrize(("index", "count"), [(-1, 1), (BUCKETS, 1), (0, -1)])
def test_what_is_no_bucket_is_refused(index: int, count: int):
    with pytest.raises(ValueError, match="values in bucket"):
        Histogram().add_bucket(index, count)


def test_no_number_is_refused():
    with pytest.raises(ValueError, match="no number"):
        Histogram().add(math.nan)
    with pytest.raises(ValueError, match="quantile"):
        of(1.0).quantile(95)


def test_a_count_of_nothing_adds_nothing():
    histogram = Histogram()
    histogram.add(5.0, 0)
    assert histogram.buckets() == []
