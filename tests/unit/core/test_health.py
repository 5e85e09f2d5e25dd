"""Hysteresis, pools, and which servers are left out."""

import pytest

from lbswitch.core.health import (
    CheckResult,
    HealthState,
    PoolHealth,
    ServerHealth,
    advance,
    servers_to_eject,
)
from lbswitch.core.model import Color, ServerKey

PASS = CheckResult(True, "HTTP 200", 1.5)
FAIL = CheckResult(False, "connect refused", 0.5)
UNKNOWN, HEALTHY, UNHEALTHY = HealthState.UNKNOWN, HealthState.HEALTHY, HealthState.UNHEALTHY


def after(results: str, rise: int = 2, fall: int = 2, address: str = "127.0.0.1:9101") -> ServerHealth:
    """The health after results like `++-`, one a second from second 100 on."""
    health = ServerHealth(address)
    for number, sign in enumerate(results):
        health = advance(health, PASS if sign == "+" else FAIL, 100.0 + number, rise, fall)
    return health


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("", UNKNOWN),
        ("+", UNKNOWN),
        ("++", HEALTHY),
        ("-", UNKNOWN),
        ("--", UNHEALTHY),
        ("+-+-+-", UNKNOWN),
        ("++-", HEALTHY),
        ("++-+-+-", HEALTHY),
        ("++--", UNHEALTHY),
        ("--+", UNHEALTHY),
        ("--+-+", UNHEALTHY),
        ("--++", HEALTHY),
    ],
)
def test_state(results, state):
    """Only `rise` passes or `fall` failures in a row change the state."""
    assert after(results).state is state


def test_rise_and_fall_are_separate():
    """One failure is enough with fall 1, and four passes too few with rise 5."""
    assert after("-", rise=5, fall=1).state is UNHEALTHY
    assert after("++++", rise=5, fall=1).state is UNKNOWN
    assert after("+++++", rise=5, fall=1).state is HEALTHY


def test_numbers():
    """Streaks, totals, the time of the last change and the last latency are kept."""
    health = after("++-+--")
    assert (health.passes, health.failures, health.checks, health.failed) == (0, 2, 6, 3)
    assert health.changed_at == 105.0
    assert health.latency_ms == 0.5
    assert after("++++").changed_at == 101.0


def test_last_error():
    """The last error stays while the server is not healthy, and goes with a pass of a healthy one."""
    assert after("--+").last_error == "connect refused"
    assert after("-+").last_error == "connect refused"
    assert after("--++").last_error is None
    assert after("++-").last_error == "connect refused"
    assert after("++-+").last_error is None


@pytest.mark.parametrize(
    ("servers", "min_healthy", "state"),
    [
        (["++"], 1, HEALTHY),
        (["++", "--"], 1, HEALTHY),
        (["++", "--"], 2, UNHEALTHY),
        (["++", "+"], 2, UNKNOWN),
        (["--", "+"], 1, UNKNOWN),
        (["--", "+"], 2, UNHEALTHY),
        (["--"], 1, UNHEALTHY),
        ([""], 1, UNKNOWN),
    ],
)
def test_pool_state(servers, min_healthy, state):
    """A pool is unknown only as long as its unknown servers could still make it healthy."""
    pool = PoolHealth(tuple(after(results) for results in servers), min_healthy)
    assert pool.state is state
    assert pool.is_healthy is (state is HEALTHY)
    assert pool.total == len(servers)
    assert pool.healthy == servers.count("++")


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        ("--", "127.0.0.1:9101: 2 failed checks, connect refused"),
        ("-", "127.0.0.1:9101: 1 failed check, connect refused"),
        ("++-", "127.0.0.1:9101: 1 failed check, connect refused"),
        ("+", "127.0.0.1:9101: 1 of 2 checks passed so far"),
        ("", "127.0.0.1:9101: 0 of 2 checks passed so far"),
        ("--+", "127.0.0.1:9101: 1 of 2 checks passed since connect refused"),
        ("++", "1 of 1 server healthy"),
    ],
)
def test_summary_of_one_server(results, sentence):
    """The sentence carries the numbers of the checks and what was seen."""
    assert PoolHealth((after(results),), rise=2).summary() == sentence


def test_summary_of_several_servers():
    """Healthy servers are counted, the others told one by one."""
    pool = PoolHealth((after("++", address="a:1"), after("--", address="b:1"), after("+", address="c:1")), 2)
    assert pool.summary() == (
        "1 of 3 servers healthy, 2 needed; b:1: 2 failed checks, connect refused; c:1: 1 of 2 checks passed so far"
    )


def test_summary_of_very_many_servers_is_bounded():
    """A thousand failing servers make a sentence, not a page."""
    summary = PoolHealth(tuple(after("--", address=f"h{n}:1") for n in range(1000))).summary()
    assert summary.startswith("0 of 1000 servers healthy; h0:1: 2 failed")
    assert summary.endswith("and 995 more")
    assert len(summary) < 400


def pools(**colors: list[str]) -> dict[Color, PoolHealth]:
    """Pools whose servers h0:1, h1:1, ... had these results."""
    return {
        Color(name): PoolHealth(tuple(after(results, address=f"h{n}:1") for n, results in enumerate(servers)))
        for name, servers in colors.items()
    }


def key(color: Color, number: int) -> ServerKey:
    return ServerKey("shop", color, f"h{number}:1")


def test_unhealthy_servers_are_ejected():
    """Unhealthy servers of both colors leave; healthy and unknown ones stay."""
    found = servers_to_eject("shop", pools(blue=["++", "--", "+"], green=["--", "++"]), now=200.0)
    assert found == {key(Color.BLUE, 1), key(Color.GREEN, 0)}


def test_never_a_whole_pool():
    """A color whose servers are all unhealthy keeps all of them."""
    assert servers_to_eject("shop", pools(blue=["--", "--"], green=["--"]), now=200.0) == frozenset()


def test_the_last_server_to_fail_brings_the_others_back():
    """With the last server down too, the ejected ones serve again: one of them may be less broken."""
    out = frozenset({key(Color.BLUE, 0)})
    assert servers_to_eject("shop", pools(blue=["--", "++"]), now=200.0, ejected=out) == out
    assert servers_to_eject("shop", pools(blue=["--", "++--"]), now=200.0, ejected=out) == frozenset()


def test_patience():
    """A server leaves when it was unhealthy for as long as asked, counted from the change."""
    down = pools(blue=["++", "--"])  # since second 101
    assert servers_to_eject("shop", down, now=130.9, down_for_s=30) == frozenset()
    assert servers_to_eject("shop", down, now=131.0, down_for_s=30) == {key(Color.BLUE, 1)}


def test_clock_set_back():
    """A clock that was set back does not keep a failing server in its pool for hours."""
    assert servers_to_eject("shop", pools(blue=["++", "--"]), now=50.0, down_for_s=30) == {key(Color.BLUE, 1)}


def test_back_when_healthy():
    """An ejected server returns with `rise` passes, not with the first, and whatever the patience."""
    out = frozenset({key(Color.BLUE, 1)})
    for results, stays in [("--", True), ("--+", True), ("", True), ("+", True), ("--++", False), ("++", False)]:
        found = servers_to_eject("shop", pools(blue=["++", results]), now=102.0, down_for_s=30, ejected=out)
        assert found == (out if stays else frozenset())


def test_unknown_after_restart_never_empties_a_pool():
    """An ejected server that is not known yet comes back when everything else would be gone."""
    out = frozenset({key(Color.BLUE, 0)})
    assert servers_to_eject("shop", pools(blue=["", "--"]), now=200.0, ejected=out) == frozenset()


def test_an_ejected_server_that_is_no_longer_listed_is_forgotten():
    """Only servers of the configuration are ever left out."""
    gone = frozenset({ServerKey("shop", Color.BLUE, "gone:1"), ServerKey("other", Color.BLUE, "h0:1")})
    assert servers_to_eject("shop", pools(blue=["++", "+"]), now=200.0, ejected=gone) == frozenset()
