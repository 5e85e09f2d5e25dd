"""A burst of failures is told within a second, and a stray failure is none."""

from __future__ import annotations

from collections import Counter

import pytest

from lbswitch.core.burst import burst
from lbswitch.core.evidence import Batch, Evidence, Failure
from lbswitch.core.model import Color, PoolKey

T = 1_700_000_000.0
GREEN = PoolKey("shop", Color.GREEN)


def feed(evidence: Evidence, at: float, requests: int, failed: int, kind: Failure = Failure.STATUS, streak: int = 0):
    """One batch; `streak` of its failures come last."""
    evidence.watched(at)
    evidence.add(
        GREEN, at, Batch(requests, Counter({kind: failed}), streak=streak, unbroken=failed == requests == streak)
    )


def test_everything_fails():
    """Told after the first fifty milliseconds, with its numbers."""
    evidence = Evidence()
    feed(evidence, T, 200, 0)
    feed(evidence, T + 0.05, 200, 200, streak=200)
    found = burst(evidence, GREEN, T + 0.05, since=T - 60)
    assert found == "200 >= 5 requests in a row failed on green within 1m: status 200"


@pytest.mark.parametrize(
    ("requests", "failed", "seconds", "words"),
    [
        (20, 10, 0.2, "error_ratio of green 0.5 >= 0.5 over 250ms (10 of 20 requests failed: status 10)"),
        (60, 20, 0.9, "error_ratio of green 0.333 >= 0.25 over 1s (20 of 60 requests failed: status 20)"),
        (1_000, 200, 0.9, None),  # a fifth is left to the criteria
        (19, 18, 0.2, None),
        (39, 19, 0.9, None),
        (1, 1, 0.2, None),
    ],
)
def test_a_share_fails(requests: int, failed: int, seconds: float, words: str | None):
    """One bad server of three is a burst, too; few requests are none."""
    evidence = Evidence()
    feed(evidence, T, requests, failed)
    assert burst(evidence, GREEN, T + seconds - 0.05, since=None) == words


def test_nobody_listens():
    evidence = Evidence()
    feed(evidence, T, 2, 2, Failure.CONNECT, 2)
    assert burst(evidence, GREEN, T, since=None) is None
    feed(evidence, T + 1, 1, 1, Failure.CONNECT, 1)
    found = burst(evidence, GREEN, T + 1, since=None)
    assert found == "3 >= 3 requests, all within 3s, got no connection to green"


def test_some_connections_fail_and_others_do_not():
    evidence = Evidence()
    feed(evidence, T, 10, 3, Failure.CONNECT)
    assert burst(evidence, GREEN, T, since=None) is None


def test_all_servers_down_needs_no_traffic():
    found = burst(Evidence(), GREEN, T, since=None, servers_down=True)
    assert found == "all servers of green fail their health checks"


def test_a_stray_failure_at_low_traffic_is_none():
    """Nor are several, with successes between them."""
    evidence = Evidence()
    for second in range(0, 600, 2):
        fails = second % 20 == 0
        feed(evidence, T + second, 1, int(fails), streak=int(fails))
        assert burst(evidence, GREEN, T + second, since=T) is None


def test_low_traffic_that_fails_entirely_is_a_burst():
    evidence = Evidence()
    for second in range(0, 40, 10):
        feed(evidence, T + second, 1, 1, streak=1)
        assert burst(evidence, GREEN, T + second, since=T - 1) is None
    feed(evidence, T + 40, 1, 1, streak=1)
    assert burst(evidence, GREEN, T + 40, since=T - 1) is not None


def test_failures_from_before_the_switch_do_not_count():
    """A color that failed until it was mended starts with a clean sheet."""
    evidence = Evidence()
    feed(evidence, T, 500, 500, streak=500)
    assert burst(evidence, GREEN, T + 1, since=T + 0.5) is None
    feed(evidence, T + 1, 3, 3, streak=3)
    assert burst(evidence, GREEN, T + 1, since=T + 0.5) is None
    feed(evidence, T + 1.1, 2, 2, streak=2)
    assert burst(evidence, GREEN, T + 1.1, since=T + 0.5) is not None


def test_an_old_streak_is_none():
    evidence = Evidence()
    feed(evidence, T, 4, 4, streak=4)
    feed(evidence, T + 300, 1, 1, streak=1)
    assert burst(evidence, GREEN, T + 300, since=T - 60) is None
