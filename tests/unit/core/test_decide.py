"""Failover decisions, without a clock or a network."""

import pytest

from lbswitch.core.decide import (
    Failover,
    FailoverState,
    Hold,
    Latch,
    Limits,
    Observation,
    PoolFacts,
    PoolState,
    Recovered,
    decide,
)
from lbswitch.core.model import Color, Route

HEALTHY = PoolFacts(PoolState.HEALTHY, "1 of 1 server healthy")
SICK = PoolFacts(PoolState.UNHEALTHY, "127.0.0.1:9102: 2 failed checks, connect refused")
UNKNOWN = PoolFacts(PoolState.UNKNOWN, "127.0.0.1:9101: 0 of 2 checks passed so far")
LIMITS = Limits(enabled=True, cooldown_s=30, max_per_hour=3)
NOW = 1_000_000.0


GREEN_LIVE = Route(Color.GREEN)


def observe(blue: PoolFacts, green: PoolFacts, route: Route = GREEN_LIVE, **more: object) -> Observation:
    return Observation(route, blue, green, **{"limits": LIMITS, **more})


def test_a_sick_live_color_fails_over_with_its_failed_checks_as_the_reason() -> None:
    """The reason carries address, number of checks and what was seen."""
    state, actions = decide(FailoverState(), observe(HEALTHY, SICK), NOW)
    assert state.automatic == (NOW,)
    assert actions == (
        Failover(
            Color.BLUE,
            "green is unhealthy (127.0.0.1:9102: 2 failed checks, connect refused); blue is healthy",
        ),
    )


def test_a_sick_idle_color_is_nobodys_business() -> None:
    """Only a color that gets traffic matters."""
    assert decide(FailoverState(), observe(SICK, HEALTHY), NOW) == (FailoverState(), ())


def test_a_sick_canary_loses_its_traffic() -> None:
    """The live color keeps everything."""
    _, actions = decide(FailoverState(), observe(HEALTHY, SICK, Route(Color.BLUE, 90)), NOW)
    assert isinstance(actions[0], Failover)
    assert actions[0].to is Color.BLUE


@pytest.mark.parametrize(
    ("blue", "words"),
    [(SICK, "both colors are unhealthy"), (UNKNOWN, "blue is not known yet")],
)
def test_no_move_to_a_color_that_is_not_known_to_be_healthy(blue: PoolFacts, words: str) -> None:
    """Both bad, or the other unknown: hold, say why, say it once."""
    state, actions = decide(FailoverState(), observe(blue, SICK), NOW)
    assert isinstance(actions[0], Hold)
    assert words in actions[0].reason
    assert state.problem == actions[0].reason
    again, actions = decide(state, observe(blue, SICK), NOW + 1)
    assert actions == ()
    assert again.problem is not None


def test_recovery_is_told_once() -> None:
    """After a hold, and never without one."""
    held, _ = decide(FailoverState(), observe(SICK, SICK), NOW)
    state, actions = decide(held, observe(SICK, HEALTHY), NOW + 5)
    assert isinstance(actions[0], Recovered)
    assert state.problem is None
    assert decide(state, observe(SICK, HEALTHY), NOW + 6)[1] == ()


def test_cooldown_delays_and_then_lets_go() -> None:
    """29 s after an automatic switch: hold; after 30 s: switch."""
    just = FailoverState(automatic=(NOW,))
    held, actions = decide(just, observe(HEALTHY, SICK), NOW + 29)
    assert "cooldown" in actions[0].reason
    _, actions = decide(held, observe(HEALTHY, SICK), NOW + 30)
    assert isinstance(actions[0], Failover)


def test_too_many_automatic_switches_latch() -> None:
    """Three within an hour: the fourth freezes instead; a frozen service is left alone."""
    three = FailoverState(automatic=(NOW - 3000, NOW - 2000, NOW - 1000))
    state, actions = decide(three, observe(HEALTHY, SICK), NOW)
    assert isinstance(actions[0], Latch)
    assert "3 automatic switches within an hour" in actions[0].reason
    _, actions = decide(state, observe(HEALTHY, SICK, frozen="latched"), NOW + 1)
    assert actions == ()
    later = NOW + 3601 - 1000
    _, actions = decide(three, observe(HEALTHY, SICK), later)
    assert isinstance(actions[0], Failover), "an hour later the old ones no longer count"


def test_a_frozen_or_switched_off_service_holds() -> None:
    """And says which of the two it is."""
    off = Limits(enabled=False, cooldown_s=30, max_per_hour=3)
    assert "frozen" in decide(FailoverState(), observe(HEALTHY, SICK, frozen="inventory"), NOW)[1][0].reason
    assert "failover is off" in decide(FailoverState(), observe(HEALTHY, SICK, limits=off), NOW)[1][0].reason


def test_a_clock_that_was_set_back_delays_by_the_cooldown_at_most() -> None:
    """A remembered switch in the future counts as one of now."""
    future = FailoverState(automatic=(NOW + 86_400,))
    held, actions = decide(future, observe(HEALTHY, SICK), NOW)
    assert "cooldown" in actions[0].reason
    assert held.automatic == (NOW,)
    assert isinstance(decide(held, observe(HEALTHY, SICK), NOW + 30)[1][0], Failover)
