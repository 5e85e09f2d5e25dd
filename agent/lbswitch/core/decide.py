"""Automatic failover as a pure function: no I/O, no clock.

`decide(state, observation, now) -> (state, actions)`. A color that gets traffic and is unhealthy loses it to the
other one if that is healthy. Everything else is a reason to hold, said once for each reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from lbswitch.core.durations import format_duration
from lbswitch.core.model import Color, Route

_HOUR_S = 3600.0


class PoolState(StrEnum):
    """What the checks say of a color."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """A color's state and the sentence with the checks behind it."""

    state: PoolState
    summary: str


@dataclass(frozen=True, slots=True)
class Limits:
    """The operator's settings for failover; `cooldown_s` in seconds."""

    enabled: bool
    cooldown_s: float
    max_per_hour: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of one service at this moment."""

    route: Route
    blue: PoolFacts
    green: PoolFacts
    limits: Limits
    frozen: str | None = None
    quarantined: Mapping[Color, str] = field(default_factory=dict)

    def pool(self, color: Color) -> PoolFacts:
        """The facts of `color`."""
        return self.blue if color is Color.BLUE else self.green


@dataclass(frozen=True, slots=True)
class FailoverState:
    """What is remembered between two decisions.

    `automatic` are the times of automatic switches (seconds since the epoch); `problem` is why the service is held.
    """

    automatic: tuple[float, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Failover:
    """Give all traffic to `to`."""

    to: Color
    reason: str


@dataclass(frozen=True, slots=True)
class Latch:
    """Freeze the service until a person releases it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Do nothing, and say why; only given when the reason is new."""

    reason: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was wrong is over; only given after a `Hold`."""

    was: str


Action = Failover | Latch | Hold | Recovered


def decide(state: FailoverState, observation: Observation, now: float) -> tuple[FailoverState, tuple[Action, ...]]:
    """What to do about one service now. `now` is in seconds since the epoch; a clock set back only delays."""
    state = replace(state, automatic=_recent(state, now))
    bad = _bad_color(observation)
    if bad is None:
        if state.problem is None:
            return state, ()
        return replace(state, problem=None), (Recovered(state.problem),)
    obstacle = _obstacle(state.automatic, observation, bad, now)
    if obstacle is None:
        reason = f"{bad} is unhealthy ({observation.pool(bad).summary}); {bad.other} is healthy"
        return FailoverState((*state.automatic, now)), (Failover(bad.other, reason),)
    if isinstance(obstacle, Latch):
        return replace(state, problem=f"frozen, {obstacle.reason}"), (obstacle,)
    if _kind_of(obstacle) == _kind_of(state.problem):
        return replace(state, problem=obstacle), ()
    return replace(state, problem=obstacle), (Hold(obstacle),)


def _bad_color(observation: Observation) -> Color | None:
    """The color that gets traffic and is unhealthy; the live one first."""
    live = observation.route.live
    for color in (live, live.other):
        if observation.route.share(color) > 0 and observation.pool(color).state is PoolState.UNHEALTHY:
            return color
    return None


def _obstacle(recent: tuple[float, ...], observation: Observation, bad: Color, now: float) -> str | Latch | None:
    """Why there is no failover away from `bad`, or None."""
    failed, rescue, limits = observation.pool(bad), observation.pool(bad.other), observation.limits
    if rescue.state is not PoolState.HEALTHY:
        both = "both colors are unhealthy" if rescue.state is PoolState.UNHEALTHY else f"{bad.other} is not known yet"
        return f"{both}, {bad} keeps the traffic: {bad}: {failed.summary}; {bad.other}: {rescue.summary}"
    if bad.other in observation.quarantined:
        why = observation.quarantined[bad.other]
        return f"{bad.other} is quarantined, {bad} keeps the traffic: {bad}: {failed.summary}; {bad.other}: {why}"
    if observation.frozen is not None:
        return f"frozen, {bad} keeps the traffic: {bad}: {failed.summary}; frozen because: {observation.frozen}"
    if not limits.enabled:
        return f"failover is off (failover.enabled), {bad} keeps the traffic: {bad}: {failed.summary}"
    if len(recent) >= limits.max_per_hour:
        return Latch(
            f"{len(recent)} automatic switches within an hour (failover.max_per_hour {limits.max_per_hour}): "
            f"traffic stays on {bad} ({failed.summary}); look at both colors before you release it"
        )
    waited = now - max(recent, default=now - limits.cooldown_s)
    if waited < limits.cooldown_s:
        left = format_duration(float(round(limits.cooldown_s - waited + 0.5)))
        return (
            f"cooldown, {bad} keeps the traffic for another {left} (failover.cooldown "
            f"{format_duration(limits.cooldown_s)}): {bad}: {failed.summary}"
        )
    return None


def _recent(state: FailoverState, now: float) -> tuple[float, ...]:
    """Automatic switches within the last hour; a time in the future (the clock was set back) counts as now."""
    return tuple(min(at, now) for at in state.automatic if now - at < _HOUR_S)


def _kind_of(problem: str | None) -> str | None:
    """The part of a reason before its numbers, by which a repetition is known."""
    return None if problem is None else problem.partition(",")[0]
