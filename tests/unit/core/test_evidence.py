"""Evidence is counted in constant memory and cut into windows; ignorance is told from silence."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbswitch.core.evidence import GAP_S, Batch, Evidence, Failure, Window
from lbswitch.core.histogram import BUCKETS, Histogram
from lbswitch.core.model import Color, PoolKey
from tests.unit.properties.search import searching

T = 1_700_000_000.0
GREEN = PoolKey("shop", Color.GREEN)
BLUE = PoolKey("shop", Color.BLUE)


def batch(requests: int = 1, failed: int = 0, status: int = 200, ms: float = 10.0, streak: int | None = None) -> Batch:
    latency = Histogram()
    latency.add(ms, requests)
    is_unbroken = failed == requests
    return Batch(
        requests,
        Counter({Failure.STATUS: failed}) if failed else Counter(),
        Counter({status: requests}),
        latency,
        failed if streak is None else streak,
        is_unbroken,
    )


def watch(evidence: Evidence, start: float, end: float, step: float = 0.05) -> None:
    for tick in range(round((end - start) / step) + 1):
        evidence.watched(start + tick * step)


def steady(seconds: float, **what: int) -> Evidence:
    """A reader that hands over a batch every tenth of a second."""
    evidence = Evidence()
    for tick in range(round(seconds * 10)):
        at = T + tick / 10
        evidence.watched(at)
        evidence.add(GREEN, at, batch(**what))
    return evidence


@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.0, 10.0, 60.0, 120.0, 300.0])
def test_a_window_holds_what_came_in_it(seconds: float):
    """Up to one step of its ring."""
    now = T + 399.95
    window = steady(400, requests=5).window(GREEN, now, seconds)
    step = 0.1 if seconds <= 3 else 1 if seconds <= 120 else 10
    assert seconds - step <= window.seconds <= seconds
    assert window.requests == pytest.approx(window.seconds * 50, abs=5)
    assert window.covered_s == pytest.approx(window.seconds, abs=0.11)
    assert window.requests_per_s == pytest.approx(50, rel=0.6 if seconds < 1 else 0.12)


def test_a_request_that_failed_counts_once():
    evidence = Evidence()
    both = batch(10, 2, 500)
    both.failures[Failure.REPLAY] = 3
    evidence.add(GREEN, T, both)
    window = evidence.window(GREEN, T + 0.01, 1.0)
    assert (window.errors, window.ratio) == (5, 0.5)
    assert dict(window.statuses) == {500: 10}
    assert window.to_json()["failures"] == {"replay": 3, "status": 2}


def test_a_window_without_requests_has_no_ratio():
    window = Evidence().window(GREEN, T, 10)
    assert (window.requests, window.ratio, window.errors_per_s, window.latency.quantile(0.5)) == (0, None, 0.0, None)
    assert Window(0.0).requests_per_s == 0.0


def test_pools_are_apart():
    evidence = Evidence()
    evidence.add(GREEN, T, batch(3))
    assert evidence.window(BLUE, T, 1).requests == 0


@pytest.mark.parametrize("age_s", [0.5, 2.9, 15.0, 119.0, 600.0])
def test_nothing_from_before_since(age_s: float):
    """Whatever ring it is cut from."""
    evidence = Evidence()
    now, since = T + age_s, T
    evidence.add(GREEN, since - 0.001, batch(100, 100, 500))
    evidence.add(GREEN, now, batch(7))
    assert evidence.window(GREEN, now, 3600, since).requests == 7
    assert evidence.window(GREEN, now, 3600, since).seconds <= age_s


def test_right_after_the_switch_long_windows_are_as_fine_as_short_ones():
    evidence = Evidence()
    evidence.watched(T)
    evidence.watched(T + 1)
    evidence.add(GREEN, T + 0.35, batch(4))
    window = evidence.window(GREEN, T + 1, 120, since=T + 0.3)
    assert (window.requests, round(window.seconds, 3), round(window.covered_s, 3)) == (4, 0.7, 0.7)


def test_silence_that_was_watched_is_covered():
    evidence = Evidence()
    watch(evidence, T, T + 10)
    window = evidence.window(GREEN, T + 10, 10)
    assert window.requests == 0
    assert window.covered_s == pytest.approx(window.seconds, abs=0.1)
    assert window.unwatched_s == pytest.approx(0, abs=0.01)


def test_silence_that_nobody_watched_is_not():
    evidence = Evidence()
    assert evidence.window(GREEN, T, 10).unwatched_s is None
    watch(evidence, T, T + 4)
    window = evidence.window(GREEN, T + 10, 10)
    assert window.covered_s == pytest.approx(4, abs=0.1)
    assert window.unwatched_s == pytest.approx(6, abs=0.01)


def test_a_reader_that_was_slow_for_a_moment_missed_nothing():
    """One that was away for longer did."""
    evidence = Evidence()
    for at in (T, T + GAP_S):
        evidence.watched(at)
    assert evidence.window(GREEN, T + GAP_S, 10).covered_s == pytest.approx(GAP_S)
    evidence.watched(T + 2 * GAP_S + 0.5)
    assert evidence.window(GREEN, T + 2 * GAP_S + 0.5, 10).covered_s == pytest.approx(GAP_S)


def test_a_streak_goes_on_over_batches_until_one_succeeds():
    evidence = Evidence()
    evidence.add(GREEN, T, batch(10, 2, streak=2))
    evidence.add(GREEN, T, batch(3, 3))
    assert evidence.streak(GREEN) == 5
    evidence.add(GREEN, T, Batch())
    assert evidence.streak(GREEN) == 5
    evidence.add(GREEN, T, batch(10, 1, streak=1))
    assert evidence.streak(GREEN) == 1
    assert evidence.streak(BLUE) == 0


def test_a_clock_that_is_set_back_leaves_nothing_from_the_future():
    """And counting goes on at once."""
    evidence = steady(100, requests=5)
    evidence.watched(T - 3600)
    watch(evidence, T - 3600, T - 3590)
    evidence.add(GREEN, T - 3590, batch(3))
    assert evidence.window(GREEN, T - 3590, 60).requests == 3
    watch(evidence, T - 0.5, T + 100, 1.0)
    assert evidence.window(GREEN, T + 100, 100).requests == 0


def test_a_clock_that_leaps_ahead_shows_nothing_that_was_not_watched():
    evidence = steady(100, requests=5)
    evidence.watched(T + 10_000)
    evidence.add(GREEN, T + 10_000, batch(3))
    window = evidence.window(GREEN, T + 10_000, 60)
    assert (window.requests, window.covered_s) == (3, 0.0)


def test_a_small_correction_of_the_clock_changes_nothing():
    evidence = steady(10, requests=5)
    evidence.watched(T + 9.5)
    assert evidence.window(GREEN, T + 9.9, 9).requests == pytest.approx(450, abs=55)


def test_what_seems_to_come_from_the_future_counts_now():
    """So that a failure isn't lost for a wrong time."""
    evidence = steady(10)
    evidence.add(GREEN, T + 1e6, batch(50, 50))
    assert evidence.window(GREEN, T + 11, 3).errors == 50


def test_what_is_older_than_a_ring_does_not_displace_what_is_newer():
    evidence = steady(100)
    before = [evidence.window(GREEN, T + 100, seconds).requests for seconds in (3, 120)]
    evidence.add(GREEN, T - 7200, batch(50, 50))
    assert [evidence.window(GREEN, T + 100, seconds).requests for seconds in (3, 120)] == before
    assert evidence.window(GREEN, T + 100, 3600).errors == 0


@pytest.mark.parametrize("at", [math.nan, math.inf, -math.inf])
def test_what_is_no_time_is_refused(at: float):
    with pytest.raises(ValueError, match=r"no time|NaN"):
        Evidence().watched(at)
    with pytest.raises(ValueError, match=r"no time|NaN"):
        Evidence().add(GREEN, at, batch())


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValueError, match="shows nothing"):
        Evidence().window(GREEN, T, 0)


def test_services_that_are_gone_are_forgotten():
    evidence = Evidence()
    evidence.add(GREEN, T, batch())
    evidence.add(PoolKey("old", Color.BLUE), T, batch())
    evidence.forget({"shop"})
    assert evidence.window(PoolKey("old", Color.BLUE), T, 1).requests == 0
    assert evidence.window(GREEN, T, 1).requests == 1


def cells(evidence: Evidence) -> int:
    """How many numbers are kept, whatever they are."""
    rings = [ring for pool in evidence._pools.values() for ring in pool.rings]
    tallies = [cell for ring in rings for cell in ring._cells if cell is not None]
    return sum(len(tally.failures) + len(tally.statuses) + len(tally.latency.buckets()) for tally in tallies)


def test_memory_does_not_grow_with_time_or_garbage():
    """The worst that can come fills every bucket of every step, and no more."""
    evidence, chance = Evidence(), random.Random(5)
    every = Histogram.of([(index, 1) for index in range(BUCKETS)])
    garbage = Counter({chance.randrange(10**9): 1 for _ in range(2_000)})
    for _ in range(300):
        at = T + chance.choice([1, 1e3, 1e5, -1e6, 1e8]) * chance.random()
        evidence.watched(at)
        evidence.add(GREEN, at, Batch(1, Counter(Failure), garbage, every))
    assert cells(evidence) <= (30 + 120 + 360) * (BUCKETS + len(Failure) + 501)


def test_memory_stands_still_once_the_rings_are_full():
    evidence = Evidence()
    one = batch(50, 1)
    for tick in range(3700):
        evidence.watched(T + tick)
        evidence.add(GREEN, T + tick, one)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for tick in range(3700, 5000):
            evidence.watched(T + tick)
            evidence.add(GREEN, T + tick, one)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert cells(evidence) <= 3 * 510
    assert grown < 1_000_000  # the steps that were replaced, counted since


@searching(60)
@given(
    st.lists(st.tuples(st.floats(-1e7, 1e7), st.integers(0, 20), st.booleans()), max_size=40),
    st.sampled_from([0.25, 3.0, 60.0, 3600.0]),
)
def test_no_clock_breaks_it(steps: list[tuple[float, int, bool]], seconds: float):
    """Whatever times come: nothing is counted twice, and no more is covered than there is."""
    evidence, total = Evidence(), 0
    for offset, requests, is_watched in steps:
        if is_watched:
            evidence.watched(T + offset)
        evidence.add(GREEN, T + offset, batch(requests))
        total += requests
        window = evidence.window(GREEN, T + offset, seconds)
        assert 0 <= window.requests <= total
        assert 0 <= window.covered_s <= window.seconds <= seconds


@searching(60)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.05, 0.4, 1.0, 7.0, -0.5, -3.0, -400.0]), st.integers(0, 9)), max_size=40)
)
def test_looking_changes_nothing(steps: list[tuple[float, int]]):
    """A window that was asked for all the time is the same as one that is asked for once."""
    often, once, now = Evidence(), Evidence(), T
    for step, requests in steps:
        now += step
        for evidence in (often, once):
            evidence.watched(now)
            evidence.add(GREEN, now, batch(requests))
        for seconds in (2.0, 30.0, 600.0):
            often.window(GREEN, now, seconds)
            often.window(GREEN, now + 1, seconds)
    for seconds in (2.0, 30.0, 600.0):
        assert often.window(GREEN, now, seconds) == once.window(GREEN, now, seconds)
