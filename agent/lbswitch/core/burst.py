"""The fast path: a burst of failures that is decided on within a second, without the criteria's longer windows. Pure.

A single stray failure is none, however little traffic there is: every rule needs several.
"""

from __future__ import annotations

from dataclasses import dataclass

from lbswitch.core.durations import format_duration
from lbswitch.core.evidence import Evidence, Failure, Window
from lbswitch.core.model import PoolKey


@dataclass(frozen=True, slots=True)
class RatioRule:
    """A burst is a share of failures of `ratio` or more among at least `requests` within `seconds`."""

    seconds: float
    requests: int
    ratio: float


@dataclass(frozen=True, slots=True)
class BurstLimits:
    """What makes a burst.

    `in_a_row` failed requests without a success between them within `in_a_row_s`; `refused` requests within
    `refused_s`, all of them without a connection; or one of `ratios`.
    """

    in_a_row: int = 5
    in_a_row_s: float = 60.0
    refused: int = 3
    refused_s: float = 3.0
    ratios: tuple[RatioRule, ...] = (RatioRule(0.25, 20, 0.5), RatioRule(1.0, 40, 0.25))


def burst(
    evidence: Evidence,
    pool: PoolKey,
    now: float,
    *,
    since: float | None = None,
    servers_down: bool = False,
    limits: BurstLimits = BurstLimits(),
) -> str | None:
    """Why the color must lose its traffic at once, or None. Nothing from before `since` counts.

    `servers_down`: all servers of the color are known to fail their checks.
    """
    if servers_down:
        return f"all servers of {pool.color} fail their health checks"
    return (
        _in_a_row(evidence, pool, now, since, limits)
        or _refused(pool, evidence.window(pool, now, limits.refused_s, since), limits)
        or _ratio(evidence, pool, now, since, limits)
    )


def _in_a_row(evidence: Evidence, pool: PoolKey, now: float, since: float | None, limits: BurstLimits) -> str | None:
    streak = evidence.streak(pool)
    if streak < limits.in_a_row:
        return None
    window = evidence.window(pool, now, limits.in_a_row_s, since)
    failed = min(streak, window.errors)  # the older ones of the streak are not in the window
    if failed < limits.in_a_row:
        return None
    span = format_duration(limits.in_a_row_s)
    return f"{failed:,} >= {limits.in_a_row} requests in a row failed on {pool.color} within {span}{_kinds(window)}"


def _refused(pool: PoolKey, window: Window, limits: BurstLimits) -> str | None:
    refused = window.failures.get(Failure.CONNECT, 0)
    if refused < limits.refused or refused < window.requests:
        return None
    span = format_duration(limits.refused_s)
    return f"{refused:,} >= {limits.refused} requests, all within {span}, got no connection to {pool.color}"


def _ratio(evidence: Evidence, pool: PoolKey, now: float, since: float | None, limits: BurstLimits) -> str | None:
    for rule in limits.ratios:
        window = evidence.window(pool, now, rule.seconds, since)
        ratio = window.ratio
        if ratio is not None and window.requests >= rule.requests and ratio >= rule.ratio:
            return (
                f"error_ratio of {pool.color} {ratio:.3g} >= {rule.ratio:g} over {format_duration(rule.seconds)} "
                f"({window.errors:,} of {window.requests:,} requests failed{_kinds(window)})"
            )
    return None


def _kinds(window: Window) -> str:
    kinds = sorted(window.failures.items(), key=lambda kind: -kind[1])
    return ": " + ", ".join(f"{failure} {count:,}" for failure, count in kinds if count)
