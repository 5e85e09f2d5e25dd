"""Criteria: what counts as worse, judged from the evidence of one moment; `docs/criteria.md` explains.

A verdict is a breach only when chance is no good explanation, a pass only when there was enough to see, and
insufficient otherwise. Its sentence carries metric, value, operator, threshold, window and sample count.
"""

from __future__ import annotations

import math
import operator as operators
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

from lbswitch.core.durations import format_duration
from lbswitch.core.evidence import Evidence, Window
from lbswitch.core.model import Color, PoolKey
from lbswitch.core.stats import binomial_at_least, mann_whitney, poisson_at_least, two_proportions

Baseline = Literal["other", "before"]

ERROR_RATE, ERROR_RATIO, RESPONSE_TIME = "error_rate", "error_ratio", "response_time"
REQUESTS_RATE, HEALTH_CHECK, DATABASE_CONNECTIONS = "requests_rate", "health_check", "database_connections"

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": operators.ge,
    ">": operators.gt,
    "<=": operators.le,
    "<": operators.lt,
}
_OPPOSITE = {">=": "<", ">": "<=", "<=": ">", "<": ">="}
_COMPARABLE = (ERROR_RATIO, RESPONSE_TIME)
_EFFECTS = {ERROR_RATIO: 0.01, RESPONSE_TIME: 0.2}

_WELL_WITHIN = 0.5  # of what the threshold allows: what chance is measured against
_LEAST_COVERED = 0.5  # of a window
_STALE_S = 2.0  # nobody read for so long: what came since is not known
_LOOKS_PER_WINDOW = 10
_TYPICAL = 0.25  # of a window: until then a burst of traffic may be all that was seen
_OVERWHELMING_TIMES, _OVERWHELMING_EFFECT = 3.0, {ERROR_RATIO: 0.1, RESPONSE_TIME: 0.8}
_HOUR_S = 3600.0


class Severity(StrEnum):
    """How bad a breach is, in ascending order."""

    LOW = "low"
    MEDIUM = "medium"
    CRITICAL = "critical"


class Outcome(StrEnum):
    """What a criterion says."""

    PASS = "pass"  # noqa: S105 - no password
    BREACH = "breach"
    INSUFFICIENT = "insufficient"


@dataclass(frozen=True, slots=True)
class MetricReading:
    """The newest value of a metric from elsewhere, read `at` (seconds since the epoch).

    `error` says why there is none; a value from before stays with it.
    """

    name: str
    value: float | None
    at: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Checks:
    """How many health checks of a color's servers there were, and how many failed."""

    failed: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that must not happen: `metric operator threshold` during `window_s`.

    `metric` is one of the constants above or the name of a reading (`source` when given). `quantile` is of
    response_time (0.95 unless given). `for_s`: how long it must hold. `trigger`: whether it decides, or only alerts.
    With a `baseline` (error_ratio and response_time only) it is compared with the other color now or the live color
    just before the switch: `effect` is the least difference that counts (error_ratio: of the shares, 0.01 unless given;
    response_time: the rank-biserial correlation 0 .. 1, 0.2 unless given), `factor` how many times the old quantile the
    new one must be, and a threshold, if any, must be passed, too. `confidence` is how sure a breach must be.

    Raises: ValueError.
    """

    name: str
    metric: str
    operator: str = ">="
    threshold: float | None = None
    window_s: float = 60.0
    min_samples: int = 20
    for_s: float = 0.0
    trigger: bool = True
    severity: Severity = Severity.MEDIUM
    quantile: float | None = None
    baseline: Baseline | None = None
    source: str | None = None
    effect: float | None = None
    confidence: float = 0.99
    factor: float = 1.25

    def __post_init__(self) -> None:
        for wrong, what in self._problems():
            if wrong:
                raise ValueError(f"criterion {self.name}: {what}")

    def _problems(self) -> Iterable[tuple[bool, str]]:
        yield self.operator not in _HOLDS, f"{self.operator} is none of {', '.join(_HOLDS)}"
        yield self.threshold is None and self.baseline is None, "needs a threshold or a baseline"
        yield self.threshold is not None and not math.isfinite(self.threshold), "its threshold must be a number"
        yield not 0 < self.window_s <= _HOUR_S, "its window must be above 0 and an hour at most"
        yield not 0 < self.confidence < 1, "its confidence must lie between 0 and 1"
        yield self.quantile is not None and not 0 < self.quantile < 1, "its quantile must lie between 0 and 1"
        yield self.min_samples < 0 or self.for_s < 0, "min_samples and for must not be negative"
        yield (
            self.baseline is not None and self.metric not in _COMPARABLE,
            f"{self.metric} has no baseline; {' and '.join(_COMPARABLE)} have",
        )
        yield self.baseline is not None and self.is_for_low, "with a baseline the operator must be >= or >"

    @property
    def is_for_low(self) -> bool:
        """Whether it is low values that are bad."""
        return self.operator in ("<=", "<")

    @property
    def least_effect(self) -> float:
        """The effect size from which a difference from the baseline counts."""
        return _EFFECTS.get(self.metric, 0.0) if self.effect is None else self.effect

    @property
    def used_quantile(self) -> float:
        """The quantile of response_time."""
        return 0.95 if self.quantile is None else self.quantile

    def is_beyond(self, value: float) -> bool:
        """Whether the value is a bad one, however many samples it comes from; True without a threshold."""
        return self.threshold is None or _HOLDS[self.operator](value, self.threshold)


def _no_checks(_: float) -> Checks:
    return Checks()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a criterion may look at, for one color of one service at `now` (seconds since the epoch).

    `windows`, `other` and `before` give the window of so many seconds: of the color under watch, of the other color at
    the same time, and of the live color just before the switch; None: not known. `since` is when the color got its
    traffic; `windows` hold nothing from before. `checks` gives the health checks of the last so many seconds.
    """

    now: float
    color: Color
    windows: Callable[[float], Window]
    since: float | None = None
    other: Callable[[float], Window] | None = None
    before: Callable[[float], Window] | None = None
    readings: Mapping[str, MetricReading] = field(default_factory=dict)
    checks: Callable[[float], Checks] = _no_checks

    @classmethod
    def of(cls, evidence: Evidence, pool: PoolKey, now: float, since: float | None = None, **more: Any) -> Self:
        """With both colors' windows cut from the evidence; `more` are further fields."""
        other = PoolKey(pool.service, pool.color.other)
        return cls(
            now,
            pool.color,
            lambda seconds: evidence.window(pool, now, seconds, since),
            since,
            lambda seconds: evidence.window(other, now, seconds, since),
            **more,
        )

    def span_s(self, window_s: float) -> float:
        """How much of a window lies after the color got its traffic."""
        return window_s if self.since is None else max(0.0, min(window_s, self.now - self.since))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one criterion says at one moment.

    `confidence` is how sure the outcome is, 0 for insufficient; `held_s` for how long it has been a breach but for the
    time that it must hold. `p` is the probability of chance where a test was made.
    """

    criterion: Criterion
    outcome: Outcome
    value: float | None
    threshold: float | None
    samples: int
    sentence: str
    confidence: float = 0.0
    held_s: float = 0.0
    p: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As CLI, API, alerts and history show it."""
        return {
            "criterion": self.criterion.name,
            "metric": self.criterion.metric,
            "outcome": str(self.outcome),
            "value": self.value,
            "operator": self.criterion.operator,
            "threshold": self.threshold,
            "baseline": self.criterion.baseline,
            "window_s": self.criterion.window_s,
            "samples": self.samples,
            "trigger": self.criterion.trigger,
            "severity": str(self.criterion.severity),
            "confidence": self.confidence,
            "held_s": self.held_s,
            "p": self.p,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, slots=True)
class Held:
    """For how long a criterion has been breaching, up to its last judgment at `seen_at`; `counting`: that was one."""

    held_s: float
    seen_at: float
    counting: bool


JudgeState = Mapping[str, Held]
"""What `judge` has to remember, by name of criterion; empty at first."""


def judge(
    state: JudgeState, criteria: Iterable[Criterion], facts: Facts
) -> tuple[dict[str, Held], tuple[Verdict, ...]]:
    """Judge all criteria; gives what to remember for the next time, and the verdicts in the same order."""
    remembered: dict[str, Held] = {}
    verdicts = []
    for criterion in criteria:
        found = _look(criterion, facts)
        held = _held(state.get(criterion.name), criterion, found.outcome, facts.now)
        if held is not None:
            remembered[criterion.name] = held
        verdicts.append(_verdict(criterion, _enduring(criterion, found, held), facts, held))
    return remembered, tuple(verdicts)


@dataclass(frozen=True, slots=True)
class _Found:
    """A verdict before it is put into words: `counted` what the value comes from, `why` what there is to add."""

    outcome: Outcome
    value: float | None
    samples: int
    counted: str
    why: str = ""
    confidence: float = 0.0
    p: float | None = None
    against: str = ""


def _look(criterion: Criterion, facts: Facts) -> _Found:
    if criterion.metric == HEALTH_CHECK:
        return _health(criterion, facts)
    if criterion.metric in _FROM_TRAFFIC:
        window = facts.windows(criterion.window_s)
        ignorance = _ignorance(window)
        value = _value(criterion, window)
        if ignorance:
            return _insufficient(criterion, window, value, ignorance)
        if criterion.baseline is not None:
            return _compared(criterion, window, value, facts)
        return _FROM_TRAFFIC[criterion.metric](criterion, window, value)
    return _reading(criterion, facts)


def _insufficient(criterion: Criterion, window: Window, value: float | None, why: str, **more: Any) -> _Found:
    return _Found(Outcome.INSUFFICIENT, value, window.requests, _counted(criterion, window), why, **more)


def _ignorance(window: Window) -> str:
    """Why nothing can be said, whatever the window holds; empty when it can."""
    if window.unwatched_s is None:
        return "nobody has read the traffic yet"
    if window.unwatched_s > _STALE_S:
        return f"nobody has read the traffic for {_seconds(window.unwatched_s)}"
    if window.covered_s < _LEAST_COVERED * window.seconds or window.covered_s <= 0:
        return f"somebody read the traffic for only {_seconds(window.covered_s)} of {_seconds(window.seconds)}"
    return ""


def _value(criterion: Criterion, window: Window) -> float | None:
    match criterion.metric:
        case "error_rate":
            return window.errors_per_s
        case "requests_rate":
            return window.requests_per_s
        case "response_time":
            return window.latency.quantile(criterion.used_quantile)
        case _:
            return window.ratio


def _samples(criterion: Criterion, window: Window) -> int:
    return window.latency.count if criterion.metric == RESPONSE_TIME else window.requests


def _too_few(criterion: Criterion, window: Window) -> str:
    seen, needed = _samples(criterion, window), max(1, criterion.min_samples)
    return f"{_many(seen)} of at least {_many(needed)} requests seen" if seen < needed else ""


# --- against a threshold ---------------------------------------------------------------------------------------------


def _share(criterion: Criterion, window: Window, value: float | None) -> _Found:
    """Failed requests as a share of all: a binomial test."""
    few = _too_few(criterion, window)
    if few or value is None:
        return _insufficient(criterion, window, value, few)
    return _by_share(criterion, window, value, window.errors, window.requests, criterion.threshold or 0.0)


def _quantile(criterion: Criterion, window: Window, value: float | None) -> _Found:
    """A quantile of the latencies: a binomial test of how many were slower than the threshold."""
    few = _too_few(criterion, window)
    if few or value is None:
        return _insufficient(criterion, window, value, few)
    slow = window.latency.at_least(criterion.threshold or 0.0)
    return _by_share(criterion, window, value, slow, window.latency.count, 1 - criterion.used_quantile)


def _by_share(criterion: Criterion, window: Window, value: float, bad: int, total: int, allowed: float) -> _Found:
    """A breach when so many bad ones are no chance even at half the share that is allowed."""
    if criterion.is_for_low:
        by_chance = 1 - binomial_at_least(bad + 1, total, min(1.0, allowed / _WELL_WITHIN))
        by_bad_luck = 1 - binomial_at_least(bad, total, allowed)
    else:
        by_chance = binomial_at_least(bad, total, allowed * _WELL_WITHIN)
        by_bad_luck = binomial_at_least(bad + 1, total, allowed)
    return _tested(criterion, window, value, by_chance, by_bad_luck)


def _rate(criterion: Criterion, window: Window, value: float | None) -> _Found:
    """Failed requests, or requests, a second: a Poisson test."""
    is_errors = criterion.metric == ERROR_RATE
    count = window.errors if is_errors else window.requests
    span_s = window.covered_s
    is_short = span_s < _least_span_s(criterion)
    few = _too_few(criterion, window) if is_errors else ""
    if is_short and not criterion.is_for_low:
        span_s = criterion.window_s  # enough for the whole window is enough, whatever comes in the rest of it
        is_short = not criterion.is_beyond(count / span_s)
    if few or is_short:
        why = few or f"it takes {_seconds(_least_span_s(criterion))} to know a rate"
        return _insufficient(criterion, window, value, why)
    return _by_rate(criterion, window, count, span_s)


def _least_span_s(criterion: Criterion) -> float:
    return criterion.window_s * 0.8 if criterion.is_for_low else min(criterion.window_s * 0.8, _quick_s(criterion))


def _quick_s(criterion: Criterion) -> float:
    return max(1.0, criterion.window_s / 10)


def _by_rate(criterion: Criterion, window: Window, count: int, span_s: float) -> _Found:
    mean = max(0.0, criterion.threshold or 0.0) * span_s
    if criterion.is_for_low:
        by_chance = 1 - poisson_at_least(count + 1, mean / _WELL_WITHIN)
        by_bad_luck = 1 - poisson_at_least(count, mean)
    else:
        by_chance = poisson_at_least(count, mean * _WELL_WITHIN)
        by_bad_luck = poisson_at_least(count + 1, mean)
    return _tested(criterion, window, count / span_s, by_chance, by_bad_luck)


def _tested(criterion: Criterion, window: Window, value: float, by_chance: float, by_bad_luck: float) -> _Found:
    """Breach, pass, or beyond the threshold by what may be chance."""
    counted, samples = _counted(criterion, window), _samples(criterion, window)
    if not criterion.is_beyond(value):
        return _Found(Outcome.PASS, value, samples, counted, confidence=min(1.0, by_bad_luck))
    limit = (1 - criterion.confidence) / _LOOKS_PER_WINDOW
    if by_chance > limit:
        why = f"may be chance, p {_p(by_chance)}, needed {_p(limit)}"
        return _insufficient(criterion, window, value, why, p=by_chance)
    return _Found(Outcome.BREACH, value, samples, counted, confidence=1 - by_chance, p=by_chance)


_FROM_TRAFFIC: dict[str, Callable[[Criterion, Window, float | None], _Found]] = {
    ERROR_RATE: _rate,
    REQUESTS_RATE: _rate,
    ERROR_RATIO: _share,
    RESPONSE_TIME: _quantile,
}


# --- against a baseline ----------------------------------------------------------------------------------------------


def _compared(criterion: Criterion, new: Window, value: float | None, facts: Facts) -> _Found:
    windows = facts.other if criterion.baseline == "other" else facts.before
    whom = f"on {facts.color.other}" if criterion.baseline == "other" else "before the switch"
    if windows is None:
        return _insufficient(criterion, new, value, f"nothing is known of {whom}")
    old = windows(criterion.window_s)
    few = _too_few(criterion, new) or (_too_few(criterion, old) and f"{whom}: {_too_few(criterion, old)}")
    if few or value is None:
        return _insufficient(criterion, new, value, few)
    difference = _slower(criterion, new, old) if criterion.metric == RESPONSE_TIME else _failing(criterion, new, old)
    against = f"{_shown(criterion, _value(criterion, old))} {whom}{_of(criterion, old)}"
    if difference.matters and not difference.is_overwhelming and _is_early(criterion, new):
        why = f"it takes {_seconds(criterion.window_s * _TYPICAL)} to compare with before"
        return _insufficient(criterion, new, value, why, p=difference.p, against=f"{against}, {difference.effect}")
    return _different(criterion, new, value, difference, against)


def _is_early(criterion: Criterion, new: Window) -> bool:
    """Whether a moment is compared with a longer time of before, when there may have been less load."""
    return criterion.baseline == "before" and new.seconds < criterion.window_s * _TYPICAL


@dataclass(frozen=True, slots=True)
class _Difference:
    """How much worse the new side is: whether that matters, the effect size in words, and the probability of chance.

    An overwhelming one is beyond what load alone does.
    """

    matters: bool
    is_overwhelming: bool
    effect: str
    p: float


_NO_DIFFERENCE = _Difference(False, False, "", 1.0)


def _slower(criterion: Criterion, new: Window, old: Window) -> _Difference:
    test = mann_whitney(new.latency, old.latency)
    after, before = _value(criterion, new), _value(criterion, old)
    if test is None or after is None or before is None:
        return _NO_DIFFERENCE
    times, effect = after / before, test.rank_biserial
    matters = effect >= criterion.least_effect and times >= criterion.factor
    words = f"rank-biserial {_measured(effect, criterion.least_effect)}, times {_measured(times, criterion.factor)}"
    is_overwhelming = effect >= _OVERWHELMING_EFFECT[RESPONSE_TIME] and times >= _OVERWHELMING_TIMES
    return _Difference(matters, is_overwhelming, words, test.p)


def _failing(criterion: Criterion, new: Window, old: Window) -> _Difference:
    test = two_proportions(new.errors, new.requests, old.errors, old.requests)
    if test is None:
        return _NO_DIFFERENCE
    words = f"difference {_measured(test.difference, criterion.least_effect)}"
    is_overwhelming = test.difference >= _OVERWHELMING_EFFECT[ERROR_RATIO]
    return _Difference(test.difference >= criterion.least_effect, is_overwhelming, words, test.p)


def _measured(value: float, least: float) -> str:
    return f"{value:.3g} {'>=' if value >= least else '<'} {least:g}"


def _different(criterion: Criterion, new: Window, value: float, found: _Difference, against: str) -> _Found:
    counted, samples, against = _counted(criterion, new), _samples(criterion, new), f"{against}, {found.effect}"
    if not (found.matters and criterion.is_beyond(value)):
        return _Found(Outcome.PASS, value, samples, counted, confidence=criterion.confidence, against=against)
    limit = (1 - criterion.confidence) / _looks(criterion)
    if found.p > limit:
        why = f"may be chance, p {_p(found.p)}, needed {_p(limit)}"
        return _insufficient(criterion, new, value, why, p=found.p, against=against)
    return _Found(
        Outcome.BREACH,
        value,
        samples,
        counted,
        confidence=1 - found.p,
        p=found.p,
        against=f"{against}, p {_p(found.p)}",
    )


def _looks(criterion: Criterion) -> float:
    """How many independent looks an hour of looking is worth; the confidence holds for the whole hour."""
    return max(1.0, _LOOKS_PER_WINDOW * _HOUR_S / criterion.window_s)


# --- not from traffic ------------------------------------------------------------------------------------------------


def _health(criterion: Criterion, facts: Facts) -> _Found:
    checks = facts.checks(facts.span_s(criterion.window_s))
    counted = f"{_many(checks.failed)} of {_many(checks.total)} checks failed"
    if not checks.total:
        return _Found(Outcome.INSUFFICIENT, None, 0, "0 checks", "no check has ended")
    return _plain(criterion, float(checks.failed), checks.total, counted)


def _reading(criterion: Criterion, facts: Facts) -> _Found:
    name = criterion.source or criterion.metric
    reading = facts.readings.get(name)
    if reading is None:
        return _Found(Outcome.INSUFFICIENT, None, 0, "0 readings", f"nothing reads {name}")
    age_s = max(0.0, facts.now - reading.at)
    if reading.error is not None:
        return _Found(Outcome.INSUFFICIENT, reading.value, 0, "0 readings", f"{name} is down: {reading.error}")
    if reading.value is None or not math.isfinite(reading.value):
        return _Found(Outcome.INSUFFICIENT, None, 0, "0 readings", f"{name} gave no number")
    if facts.now - reading.at > criterion.window_s:
        return _Found(Outcome.INSUFFICIENT, reading.value, 0, "0 readings", f"{name} is {_seconds(age_s)} old")
    if facts.since is not None and reading.at < facts.since:
        return _Found(Outcome.INSUFFICIENT, reading.value, 0, "0 readings", f"{name} was read before the switch")
    return _plain(criterion, reading.value, 1, f"1 reading, {_seconds(age_s)} old")


def _plain(criterion: Criterion, value: float, samples: int, counted: str) -> _Found:
    outcome = Outcome.BREACH if criterion.is_beyond(value) else Outcome.PASS
    return _Found(outcome, value, samples, counted, confidence=1.0)


# --- how long it must hold -------------------------------------------------------------------------------------------


def _held(before: Held | None, criterion: Criterion, outcome: Outcome, now: float) -> Held | None:
    """A pass ends it; insufficient stops the clock, neither resets nor counts.

    Two breaches further apart than the window (a second at least) don't vouch for the time in between.
    """
    if outcome is Outcome.PASS or (outcome is Outcome.INSUFFICIENT and before is None):
        return None
    if before is None:
        return Held(0.0, now, True)
    step_s = now - before.seen_at
    counts = before.counting and outcome is Outcome.BREACH and 0 < step_s <= max(1.0, criterion.window_s)
    return Held(before.held_s + (step_s if counts else 0.0), now, outcome is Outcome.BREACH)


def _enduring(criterion: Criterion, found: _Found, held: Held | None) -> _Found:
    if found.outcome is not Outcome.BREACH or held is None or held.held_s >= criterion.for_s:
        return found
    why = f"for {_seconds(held.held_s)} of {format_duration(criterion.for_s)} so far"
    return _Found(
        Outcome.INSUFFICIENT, found.value, found.samples, found.counted, why, p=found.p, against=found.against
    )


# --- in words --------------------------------------------------------------------------------------------------------


def _verdict(criterion: Criterion, found: _Found, facts: Facts, held: Held | None) -> Verdict:
    return Verdict(
        criterion,
        found.outcome,
        found.value,
        criterion.threshold,
        found.samples,
        _sentence(criterion, found, facts),
        found.confidence if found.outcome is not Outcome.INSUFFICIENT else 0.0,
        held.held_s if held is not None else 0.0,
        found.p,
    )


def _sentence(criterion: Criterion, found: _Found, facts: Facts) -> str:
    """Such as `error_ratio of green 0.12 >= 0.05 over 10s (290 of 2,413 requests failed)`."""
    return (
        f"{_subject(criterion)} of {facts.color} {_comparison(criterion, found)} over {_period(criterion, facts)} "
        f"({found.counted})" + (f": {found.why}" if found.outcome is Outcome.INSUFFICIENT else "")
    )


def _subject(criterion: Criterion) -> str:
    metric = criterion.metric
    if metric == RESPONSE_TIME:
        metric = f"{metric} p{criterion.used_quantile * 100:.4g}"
    return metric if criterion.name == criterion.metric else f"{criterion.name}: {metric}"


def _comparison(criterion: Criterion, found: _Found) -> str:
    value = _shown(criterion, found.value)
    if criterion.baseline is not None:
        worse = {Outcome.BREACH: "worse than", Outcome.PASS: "not worse than"}.get(found.outcome, "against")
        limit = "" if criterion.threshold is None else f" ({criterion.operator} {_limit(criterion)} needed)"
        return f"{value}{limit} {worse} {found.against or _WHOM[criterion.baseline]}"
    if found.outcome is Outcome.INSUFFICIENT:
        return f"{value} is insufficient to tell whether {criterion.operator} {_limit(criterion)}"
    symbol = criterion.operator if found.outcome is Outcome.BREACH else _OPPOSITE[criterion.operator]
    limit = _limit(criterion)
    if value == limit and found.value != criterion.threshold:
        value = _shown(criterion, found.value, 8)
    return f"{value} {symbol} {limit}"


_WHOM = {"other": "the other color", "before": "before the switch"}
_UNITS = {RESPONSE_TIME: "ms", ERROR_RATE: "/s", REQUESTS_RATE: "/s"}


def _limit(criterion: Criterion) -> str:
    return _shown(criterion, criterion.threshold, 8)


def _shown(criterion: Criterion, value: float | None, digits: int = 3) -> str:
    if value is None:
        return "unknown"
    whole = abs(value) >= 10 ** (digits - 1) and math.isfinite(value)
    return (f"{value:.0f}" if whole and digits == 3 else f"{value:.{digits}g}") + _UNITS.get(criterion.metric, "")


def _period(criterion: Criterion, facts: Facts) -> str:
    whole, span_s = format_duration(criterion.window_s), facts.span_s(criterion.window_s)
    return whole if span_s >= criterion.window_s else f"{_seconds(span_s)} of {whole}"


def _counted(criterion: Criterion, window: Window) -> str:
    if criterion.metric in (ERROR_RATIO, ERROR_RATE):
        return f"{_many(window.errors)} of {_many(window.requests)} requests failed"
    return f"{_many(_samples(criterion, window))} requests"


def _of(criterion: Criterion, window: Window) -> str:
    return f" ({_counted(criterion, window)})"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.1f}s"


def _many(count: int) -> str:
    return f"{count:,}"


def _p(probability: float) -> str:
    return f"{probability:.1g}"


__all__ = [
    "DATABASE_CONNECTIONS",
    "ERROR_RATE",
    "ERROR_RATIO",
    "HEALTH_CHECK",
    "REQUESTS_RATE",
    "RESPONSE_TIME",
    "Baseline",
    "Checks",
    "Criterion",
    "Facts",
    "Held",
    "JudgeState",
    "MetricReading",
    "Outcome",
    "Severity",
    "Verdict",
    "judge",
]
