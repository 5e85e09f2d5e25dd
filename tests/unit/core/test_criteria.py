"""Criteria: chance is no breach, ignorance is neither breach nor pass, and every sentence carries its numbers."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbswitch.core.criteria import Checks, Criterion, Facts, MetricReading, Outcome, Verdict, judge
from lbswitch.core.evidence import Batch, Evidence, Failure, Window
from lbswitch.core.histogram import Histogram
from lbswitch.core.model import Color, PoolKey
from tests.unit.properties.search import searching

NOW = 1_700_000_000.0
PASS, BREACH, INSUFFICIENT = Outcome.PASS, Outcome.BREACH, Outcome.INSUFFICIENT


def window(requests: int, failed: int = 0, ms: float = 20.0, seconds: float = 10.0, **more: Any) -> Window:
    chance, latency = random.Random(requests), Histogram()
    for _ in range(min(requests, 2_000)):
        latency.add(ms * chance.lognormvariate(0, 0.3), max(1, requests // 2_000))
    watched = {"covered_s": seconds, "unwatched_s": 0.05, **more}
    return Window(seconds, requests, {Failure.STATUS: failed}, {200: requests - failed}, latency, **watched)


def facts(new: Window | None = None, **more: Any) -> Facts:
    return Facts(NOW, Color.GREEN, lambda _: new or window(0), **more)


def error_ratio(**more: Any) -> Criterion:
    return Criterion(**{"name": "error_ratio", "metric": "error_ratio", "threshold": 0.05, "window_s": 10.0, **more})


def error_rate(**more: Any) -> Criterion:
    return Criterion(**{"name": "error_rate", "metric": "error_rate", "threshold": 5.0, "window_s": 60.0, **more})


def response_time(**more: Any) -> Criterion:
    return Criterion(
        **{"name": "response_time", "metric": "response_time", "threshold": 500.0, "window_s": 120.0, **more}
    )


def connections(**more: Any) -> Criterion:
    settings = {"name": "database_connections", "metric": "database_connections", "source": "db", "window_s": 30.0}
    return Criterion(**{"threshold": 0.9, "min_samples": 1, **settings, **more})


def verdict(criterion: Criterion, given: Facts) -> Verdict:
    return judge({}, [criterion], given)[1][0]


# --- error_ratio


@pytest.mark.parametrize(
    ("requests", "failed", "outcome"),
    [
        (2_413, 290, BREACH),
        (430, 31, BREACH),
        (20, 20, BREACH),
        (20, 1, INSUFFICIENT),  # 0.05, as the threshold says, but one stray failure of few
        (100, 5, INSUFFICIENT),
        (19, 19, INSUFFICIENT),
        (0, 0, INSUFFICIENT),
        (430, 3, PASS),
        (20, 0, PASS),
    ],
)
def test_error_ratio(requests: int, failed: int, outcome: Outcome):
    assert verdict(error_ratio(), facts(window(requests, failed))).outcome is outcome


def test_the_sentence_of_a_breach():
    found = verdict(error_ratio(), facts(window(2_413, 290)))
    assert found.sentence == "error_ratio of green 0.12 >= 0.05 over 10s (290 of 2,413 requests failed)"
    assert found.confidence > 0.99
    assert found.to_json()["outcome"] == "breach"


def test_the_sentence_of_a_pass():
    found = verdict(error_ratio(), facts(window(1_000, 2)))
    assert found.sentence == "error_ratio of green 0.002 < 0.05 over 10s (2 of 1,000 requests failed)"


def test_the_sentence_of_too_few():
    found = verdict(error_ratio(), facts(window(7, 1)))
    assert found.sentence == (
        "error_ratio of green 0.143 is insufficient to tell whether >= 0.05 over 10s (1 of 7 requests failed): "
        "7 of at least 20 requests seen"
    )
    assert found.confidence == 0


def test_rounding_never_makes_a_sentence_false():
    """It does not read `0.05 < 0.05`."""
    assert " 0.04999 < 0.05 " in verdict(error_ratio(), facts(window(100_000, 4_999))).sentence


@searching(100)
@given(st.integers(0, 5_000), st.integers(0, 5_000), st.sampled_from([0.001, 0.05, 0.5]))
def test_a_breach_is_beyond_the_threshold_and_more_failures_never_make_it_less(ok: int, failed: int, threshold: float):
    rank = [PASS, INSUFFICIENT, BREACH]
    criterion = error_ratio(threshold=threshold)
    found = verdict(criterion, facts(window(ok + failed, failed)))
    assert (found.outcome is BREACH) <= (found.value is not None and found.value >= threshold)
    if ok and ok + failed >= 20:
        worse = verdict(criterion, facts(window(ok + failed, failed + 1)))
        assert rank.index(worse.outcome) >= rank.index(found.outcome)


# --- error_rate and requests_rate


def test_error_rate():
    """Failures a second of the time that was watched."""
    found = verdict(error_rate(), facts(window(6_000, 432, seconds=60.0)))
    assert found.sentence == "error_rate of green 7.2/s >= 5/s over 1m (432 of 6,000 requests failed)"
    assert found.outcome is BREACH
    assert verdict(error_rate(), facts(window(6_000, 30, seconds=60.0))).outcome is PASS


def test_a_rate_needs_time():
    """Three failures in the first half second are no 6/s, but what is enough for the whole window is enough."""
    early = facts(window(50, 3, seconds=0.5), since=NOW - 0.5)
    assert verdict(error_rate(), early).outcome is INSUFFICIENT
    assert "0.5s of 1m" in verdict(error_rate(), early).sentence
    assert verdict(error_rate(), facts(window(900, 400, seconds=0.5), since=NOW - 0.5)).outcome is BREACH


def test_a_low_rate_of_few_failures_may_be_chance():
    found = verdict(error_rate(threshold=0.05), facts(window(600, 3, seconds=60.0)))
    assert (found.outcome, "may be chance" in found.sentence) == (INSUFFICIENT, True)


def test_a_missing_stream_of_requests():
    """Without a request there is nothing to count, but it was watched."""
    low = Criterion("requests_rate", "requests_rate", "<=", 1.0, 60.0)
    assert verdict(low, facts(window(0, seconds=60.0))).outcome is BREACH
    assert verdict(low, facts(window(600, seconds=60.0))).outcome is PASS
    assert verdict(low, facts(window(0, seconds=5.0), since=NOW - 5)).outcome is INSUFFICIENT


# --- response_time


def test_response_time():
    found = verdict(response_time(), facts(window(500, ms=900.0, seconds=120.0)))
    assert found.outcome is BREACH
    assert found.sentence.startswith("response_time p95 of green 1")
    assert found.sentence.endswith("ms >= 500ms over 2m (500 requests)")
    assert verdict(response_time(), facts(window(500, seconds=120.0))).outcome is PASS


def test_a_single_slow_answer_of_few_is_no_breach():
    slow = window(19, seconds=120.0)
    for _ in range(2):
        slow.latency.add(3_000)
    assert verdict(response_time(), facts(slow)).outcome is INSUFFICIENT


# --- ignorance


@pytest.mark.parametrize(
    ("watched", "words"),
    [
        ({"unwatched_s": None, "covered_s": 0.0}, "nobody has read the traffic yet"),
        ({"unwatched_s": 4.0}, "nobody has read the traffic for 4.0s"),
        ({"covered_s": 3.0}, "somebody read the traffic for only 3.0s of 10s"),
    ],
)
def test_a_dead_reader_is_ignorance(watched: dict[str, Any], words: str):
    """Whatever it counted before it died."""
    for failed in (0, 500):
        found = verdict(error_ratio(), facts(window(1_000, failed, **watched)))
        assert (found.outcome, words in found.sentence) == (INSUFFICIENT, True)


def test_only_what_came_since_the_switch_is_judged():
    """A color that failed all the time when it was idle starts with a clean sheet."""
    evidence, pool = Evidence(), PoolKey("shop", Color.GREEN)
    for tick in range(200):
        at = NOW - 10 + tick / 20
        evidence.watched(at)
        failed = 0 if at > NOW - 2 else 10
        evidence.add(pool, at, Batch(10, Counter({Failure.STATUS: failed}), Counter({200: 10})))
    fresh = verdict(error_ratio(), Facts.of(evidence, pool, NOW, since=NOW - 1.9))
    assert fresh.outcome is PASS
    assert "over 1.9s of 10s (0 of 3" in fresh.sentence
    assert verdict(error_ratio(), Facts.of(evidence, pool, NOW)).outcome is BREACH


# --- readings and health checks


def reading(value: float | None = 0.93, age_s: float = 2.1, error: str | None = None) -> dict[str, MetricReading]:
    return {"db": MetricReading("db", value, NOW - age_s, error)}


def test_a_metric_from_elsewhere():
    found = verdict(connections(), facts(readings=reading()))
    assert found.outcome is BREACH
    assert found.sentence == "database_connections of green 0.93 >= 0.9 over 30s (1 reading, 2.1s old)"
    assert verdict(connections(), facts(readings=reading(0.5))).outcome is PASS


@pytest.mark.parametrize(
    ("readings", "words"),
    [
        ({}, "nothing reads db"),
        (reading(error="connect refused"), "db is down: connect refused"),
        (reading(age_s=31.0), "db is 31s old"),
        (reading(None), "db gave no number"),
        (reading(float("nan")), "db gave no number"),
    ],
)
def test_a_source_that_is_down_or_stale_is_insufficient(readings: dict[str, MetricReading], words: str):
    found = verdict(connections(), facts(readings=readings))
    assert (found.outcome, words in found.sentence) == (INSUFFICIENT, True)


def test_a_reading_from_before_the_switch_says_nothing_about_the_new_color():
    assert verdict(connections(), facts(readings=reading(), since=NOW - 1)).outcome is INSUFFICIENT


def test_any_named_metric_is_read_by_its_name():
    queue = Criterion("backlog", "queue", ">", 100.0, 30.0)
    found = verdict(queue, facts(readings={"queue": MetricReading("queue", 250.0, NOW)}))
    assert found.sentence == "backlog: queue of green 250 > 100 over 30s (1 reading, 0.0s old)"


def test_health_checks():
    criterion = Criterion("health_check", "health_check", ">=", 1.0, 10.0, min_samples=1)
    found = verdict(criterion, facts(checks=lambda _: Checks(1, 10)))
    assert found.sentence == "health_check of green 1 >= 1 over 10s (1 of 10 checks failed)"
    assert verdict(criterion, facts(checks=lambda _: Checks(0, 10))).outcome is PASS
    assert verdict(criterion, facts()).outcome is INSUFFICIENT


# --- relative to a baseline


def against(new: Window, old: Window | None, **more: Any) -> Verdict:
    criterion = Criterion(**{"name": "worse", "metric": "error_ratio", "baseline": "other", "window_s": 60.0, **more})
    return verdict(criterion, facts(new, other=None if old is None else lambda _: old))


def test_failing_more_often_than_the_other_color():
    found = against(window(1_000, 20), window(9_000, 9))
    assert found.outcome is BREACH
    assert found.sentence.startswith(
        "worse: error_ratio of green 0.02 worse than 0.001 on blue (9 of 9,000 requests failed), "
        "difference 0.019 >= 0.01, p "
    )
    assert found.sentence.endswith("over 1m (20 of 1,000 requests failed)")


@pytest.mark.parametrize(
    ("new", "old", "outcome"),
    [
        ((1_000, 1), (9_000, 9), PASS),
        ((10, 10), (9_000, 9), INSUFFICIENT),  # too few on green
        ((1_000, 20), (10, 0), INSUFFICIENT),  # too few on blue
        ((40, 1), (9_000, 9), INSUFFICIENT),  # one failure may be chance
        ((100_000, 400), (900_000, 900), PASS),  # surely more, but less than the effect that counts
        ((1_000, 200), (9_000, 1_900), PASS),  # both are bad
    ],
)
def test_small_samples_and_small_effects_are_no_breach(new: tuple[int, int], old: tuple[int, int], outcome: Outcome):
    assert against(window(*new), window(*old)).outcome is outcome


def test_nothing_known_of_the_baseline_is_insufficient():
    assert against(window(1_000, 500), None).outcome is INSUFFICIENT
    assert against(window(1_000, 500), None, baseline="before").outcome is INSUFFICIENT


def test_slower_than_before_the_switch():
    criterion = response_time(threshold=None, baseline="before")
    found = verdict(criterion, facts(window(400, ms=200.0, seconds=120.0), before=lambda _: window(4_000, ms=20.0)))
    assert found.outcome is BREACH
    assert "ms before the switch (4,000 requests), rank-biserial 1 >= 0.2, times 10" in found.sentence
    as_fast = verdict(criterion, facts(window(400, ms=20.5), before=lambda _: window(4_000, ms=20.0)))
    assert as_fast.outcome is PASS


def test_a_moment_is_not_compared_with_minutes_of_before():
    """It may be a burst of traffic; what is worse beyond that needs no waiting."""
    criterion = response_time(threshold=None, baseline="before")
    before = window(4_000, ms=20.0, seconds=120.0)
    for ms, seconds, outcome in ((40.0, 4.0, INSUFFICIENT), (200.0, 4.0, BREACH), (40.0, 30.0, BREACH)):
        given = facts(window(400, ms=ms, seconds=seconds), before=lambda _: before)
        assert verdict(criterion, given).outcome is outcome
    early = verdict(criterion, facts(window(400, ms=40.0, seconds=4.0), before=lambda _: before))
    assert "it takes 30s to compare with before" in early.sentence


def test_a_threshold_beside_a_baseline_must_be_passed_too():
    """Ten times slower, but fast enough."""
    new, old = window(400, ms=200.0), window(4_000, ms=20.0)
    for threshold, outcome in ((100.0, BREACH), (1_000.0, PASS)):
        criterion = response_time(threshold=threshold, baseline="before")
        assert verdict(criterion, facts(new, before=lambda _: old)).outcome is outcome


# --- how long it must hold


def looks(criterion: Criterion, *course: tuple[float, str]) -> list[Outcome]:
    """Judge at these seconds, of windows that are good, bad or empty."""
    windows = {"bad": window(1_000, 500), "good": window(1_000), "nothing": window(0)}
    state: Any = {}
    outcomes = []
    for at, what in course:
        state, verdicts = judge(state, [criterion], replace(facts(windows[what]), now=NOW + at))
        outcomes.append(verdicts[0].outcome)
    return outcomes


def test_it_must_hold_for_as_long_as_it_says():
    holds = error_ratio(for_s=5.0)
    assert looks(holds, (0, "bad"), (3, "bad"), (5, "bad")) == [INSUFFICIENT, INSUFFICIENT, BREACH]
    assert looks(error_ratio(), (0, "bad")) == [BREACH]


def test_a_pass_begins_anew():
    holds = error_ratio(for_s=5.0)
    assert looks(holds, (0, "bad"), (3, "bad"), (4, "good"), (5, "bad"), (9, "bad"))[-1] is INSUFFICIENT


def test_insufficient_stops_the_clock():
    """It neither resets nor counts."""
    holds = error_ratio(for_s=5.0)
    course = [(0, "bad"), (3, "bad"), (4, "nothing"), (8, "nothing"), (9, "bad"), (10.5, "bad")]
    assert looks(holds, *course)[-1] is INSUFFICIENT
    assert looks(holds, *course, (11, "bad"))[-1] is BREACH


def test_a_judge_who_looked_away_does_not_know_what_was_in_between():
    """Two looks further apart than the window are no proof; nor is a clock that was set back."""
    holds = error_ratio(for_s=30.0)
    assert looks(holds, (0, "bad"), (40, "bad")) == [INSUFFICIENT, INSUFFICIENT]
    assert looks(holds, (0, "bad"), (-50, "bad"), (-49, "bad"))[-1] is INSUFFICIENT


def test_the_sentence_says_how_long_it_has_held():
    state, _ = judge({}, [error_ratio(for_s=30.0)], facts(window(1_000, 500)))
    _, found = judge(state, [error_ratio(for_s=30.0)], replace(facts(window(1_000, 500)), now=NOW + 4))
    assert found[0].sentence.endswith("(500 of 1,000 requests failed): for 4.0s of 30s so far")
    assert found[0].held_s == 4.0


# --- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"operator": "=="}, "none of"),
        ({"threshold": None}, "threshold or a baseline"),
        ({"threshold": float("nan")}, "must be a number"),
        ({"window_s": 0.0}, "window"),
        ({"window_s": 3601.0}, "window"),
        ({"confidence": 1.0}, "confidence"),
        ({"quantile": 95.0}, "quantile"),
        ({"for_s": -1.0}, "negative"),
        ({"metric": "cpu", "baseline": "other"}, "no baseline"),
        ({"baseline": "other", "operator": "<"}, "operator"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=f"criterion error_ratio: .*{words}"):
        error_ratio(**settings)


@pytest.mark.parametrize("criterion", [error_ratio(), error_rate(), response_time(), connections()])
@pytest.mark.parametrize("given", [facts(), facts(window(1_000, 900, 2_000.0, 60.0), readings=reading())])
def test_every_sentence_carries_its_numbers(criterion: Criterion, given: Facts):
    """Metric, value, operator, threshold, window and sample count."""
    found = verdict(criterion, given)
    assert criterion.metric in found.sentence
    assert f"{criterion.operator} {criterion.threshold:g}" in found.sentence
    assert " over " in found.sentence
    assert any(word in found.sentence for word in ("request", "reading", "check"))
    assert ("unknown" in found.sentence) == (found.value is None)
