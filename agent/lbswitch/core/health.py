"""What checks say about servers, as values: hysteresis, pools, and which servers to leave out.

A server is unknown until `rise` checks passed or `fall` checks failed in a row; after that it takes as many in
a row to change its state. A single result in between never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from lbswitch.core.model import Color, ServerKey

_LISTED = 5


class HealthState(StrEnum):
    """What is known about a server or a pool."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check. `detail` says what was seen: `HTTP 200`, `connect refused`, `timeout after 500ms`."""

    passed: bool
    detail: str
    latency_ms: float


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """What all checks of one server say so far.

    `passes` and `failures` count in a row, one of them is 0; `checks` and `failed` count all. `last_error` is the
    detail of the last failure, None again after a pass of a healthy server. `changed_at` is the time of the last
    change of state in seconds since the epoch, `latency_ms` the time the last check took.
    """

    address: str
    state: HealthState = HealthState.UNKNOWN
    passes: int = 0
    failures: int = 0
    last_error: str | None = None
    changed_at: float | None = None
    checks: int = 0
    failed: int = 0
    latency_ms: float | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether it is known to be healthy."""
        return self.state is HealthState.HEALTHY


def advance(health: ServerHealth, result: CheckResult, now: float, rise: int, fall: int) -> ServerHealth:
    """Take in one more result, seen at `now` (seconds since the epoch)."""
    passes = health.passes + 1 if result.passed else 0
    failures = 0 if result.passed else health.failures + 1
    state = _next_state(health.state, passes >= rise, failures >= fall)
    return ServerHealth(
        health.address,
        state,
        passes,
        failures,
        _last_error(health, result, state),
        health.changed_at if state is health.state else now,
        health.checks + 1,
        health.failed + (not result.passed),
        result.latency_ms,
    )


def _next_state(state: HealthState, has_risen: bool, has_fallen: bool) -> HealthState:
    if has_risen:
        return HealthState.HEALTHY
    return HealthState.UNHEALTHY if has_fallen else state


def _last_error(health: ServerHealth, result: CheckResult, state: HealthState) -> str | None:
    if not result.passed:
        return result.detail
    return None if state is HealthState.HEALTHY else health.last_error


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """The servers of one color. `min_healthy` of them make it healthy; `rise` is only told in summaries."""

    servers: tuple[ServerHealth, ...]
    min_healthy: int = 1
    rise: int = 2

    @property
    def healthy(self) -> int:
        """How many servers are healthy."""
        return self._count(HealthState.HEALTHY)

    @property
    def total(self) -> int:
        """How many servers there are."""
        return len(self.servers)

    @property
    def state(self) -> HealthState:
        """Healthy with enough healthy servers, unknown while unknown ones may still make it so, else unhealthy."""
        if self.healthy >= self.min_healthy:
            return HealthState.HEALTHY
        possible = self.healthy + self._count(HealthState.UNKNOWN)
        return HealthState.UNKNOWN if possible >= self.min_healthy else HealthState.UNHEALTHY

    @property
    def is_healthy(self) -> bool:
        """Whether enough servers are known to be healthy."""
        return self.state is HealthState.HEALTHY

    def summary(self) -> str:
        """One sentence with the failed checks, such as `127.0.0.1:9102: 2 failed checks, connect refused`."""
        troubled = [server for server in self.servers if not server.is_healthy or server.failures]
        parts = [f"{server.address}: {_trouble(server, self.rise)}" for server in troubled[:_LISTED]]
        if len(troubled) > _LISTED:
            parts.append(f"and {len(troubled) - _LISTED} more")
        if self.total != 1 or not troubled:
            parts.insert(0, self._numbers())
        return "; ".join(parts)

    def _numbers(self) -> str:
        needed = f", {self.min_healthy} needed" if self.min_healthy > 1 else ""
        return f"{self.healthy} of {self.total} server{'s' * (self.total != 1)} healthy{needed}"

    def _count(self, state: HealthState) -> int:
        return sum(server.state is state for server in self.servers)


def _trouble(server: ServerHealth, rise: int) -> str:
    if server.failures:
        return f"{server.failures} failed check{'s' * (server.failures != 1)}, {server.last_error}"
    if server.state is HealthState.UNHEALTHY:
        return f"{server.passes} of {rise} checks passed since {server.last_error}"
    return f"{server.passes} of {rise} checks passed so far"


def servers_to_eject(
    service: str,
    pools: Mapping[Color, PoolHealth],
    *,
    now: float,
    down_for_s: float = 0.0,
    ejected: frozenset[ServerKey] = frozenset(),
) -> frozenset[ServerKey]:
    """Which servers of `service` to leave out of their pools from now on: unhealthy ones, never a whole pool.

    A server must have been unhealthy for `down_for_s` seconds; `now` is in seconds since the epoch. Those in `ejected`
    are left out now and stay so until they are healthy, also while an agent that just started knows nothing yet.
    """
    return frozenset(
        key for color, pool in pools.items() for key in _leaving(service, color, pool, now - down_for_s, now, ejected)
    )


def _leaving(
    service: str, color: Color, pool: PoolHealth, since: float, now: float, ejected: frozenset[ServerKey]
) -> list[ServerKey]:
    if all(server.state is HealthState.UNHEALTHY for server in pool.servers):
        return []
    keys = {ServerKey(service, color, server.address): server for server in pool.servers if not server.is_healthy}
    leaving = [key for key, server in keys.items() if key in ejected or _is_down_since(server, since, now)]
    return leaving if len(leaving) < pool.total else []


def _is_down_since(server: ServerHealth, since: float, now: float) -> bool:
    if server.state is not HealthState.UNHEALTHY or server.changed_at is None:
        return False
    return server.changed_at <= since or server.changed_at > now  # from the future: the clock was set back, don't wait
