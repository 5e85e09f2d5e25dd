"""Checks are spread, share their instants, and are never late."""

from collections import Counter

import pytest

from lbswitch.health.rhythm import Rhythm


@pytest.mark.parametrize("jitter", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("interval", [0.01, 0.1, 1.0, 7.3, 3600.0])
def test_never_later_than_the_interval(interval, jitter):
    """The next check starts within the interval, at most `jitter` and one slot earlier, and always in the future."""
    rhythm = Rhythm(20)
    started = rhythm.first(123_456.789, interval)
    for _ in range(2000):
        due = rhythm.following(started, interval, jitter)
        assert started < due <= started + interval * 1.0001
        assert due >= started + interval * (1 - jitter - 1 / 8) - interval * 0.001
        started = due


def test_mean():
    """The jitter makes checks a little more frequent, by half of it on average."""
    rhythm = Rhythm(20)
    started = first = rhythm.first(1000.0, 1.0)
    for _ in range(5000):
        started = rhythm.following(started, 1.0, 0.1)
    assert 0.93 < (started - first) / 5000 < 0.97


def test_first_is_within_the_interval():
    """The first check comes within one interval."""
    rhythm = Rhythm(20)
    assert all(1000.0 < rhythm.first(1000.0, 0.1) <= 1000.1001 for _ in range(1000))


def test_spread():
    """A thousand servers are checked at many instants, several at each."""
    rhythm = Rhythm(1000)
    instants = Counter(rhythm.first(1000.0, 1.0) for _ in range(1000))
    assert len(instants) > 100
    assert max(instants.values()) < 40


def test_late_start_does_not_add_up():
    """A check that starts late is followed by one at a slot again, still within its interval."""
    rhythm = Rhythm(8)
    assert rhythm.following(1000.03, 1.0, 0.0) == pytest.approx(1001.0)
    assert rhythm.following(1000.2, 1.0, 0.0) == pytest.approx(1001.125)
