"""The watch after a switch as a pure function: no I/O, no clock.

`decide(bake, sight, now) -> (bake, actions)`. The color that gained traffic is judged by its criteria and by bursts of
failures until the time is over. A breach leads to what `on_breach` says, but traffic never goes back to a color that
is unhealthy, not known or quarantined, and never against a freeze. A canary goes on to its next step only when every
criterion that decides has passed; it waits where there is too little to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from lbswitch.core.criteria import Outcome, Verdict
from lbswitch.core.decide import PoolFacts, PoolState
from lbswitch.core.durations import format_duration
from lbswitch.core.model import Color, Route
from lbswitch.core.rollback import RollbackDecision, Severity

_BURST_CONFIDENCE = 0.99
_NUMBERS = "0123456789.,"


class OnBreach(StrEnum):
    """What a breach leads to."""

    ROLLBACK = "rollback"
    FREEZE = "freeze"
    ALERT = "alert"


class OnInsufficient(StrEnum):
    """What a watch leads to that ends without enough evidence."""

    ALERT = "alert"
    ROLLBACK = "rollback"
    FREEZE = "freeze"


class BakeState(StrEnum):
    """How far a watch is."""

    BAKING = "baking"
    PASSED = "passed"
    INSUFFICIENT = "insufficient"
    BREACHED = "breached"
    ROLLED_BACK = "rolled-back"
    SUPERSEDED = "superseded"

    @property
    def is_over(self) -> bool:
        """Whether nothing more is decided."""
        return self is not BakeState.BAKING


@dataclass(frozen=True, slots=True)
class Bake:
    """One watch. Times are seconds since the epoch.

    `color` gained the traffic in `operation`, since `since`; the watch ends at `until`. `steps` are percentages that
    the canary still has to take, each after `every_s`; `stepped_at` is when it took the last one, after which
    it is watched for `duration_s`. `breaches` are the
    sentences of breaches so far, `holding` why nothing is done about one, `told` what was alerted.
    """

    service: str
    operation: int
    color: Color
    generation: int
    since: float
    until: float
    on_breach: OnBreach = OnBreach.ROLLBACK
    on_insufficient: OnInsufficient = OnInsufficient.ALERT
    steps: tuple[int, ...] = ()
    every_s: float = 60.0
    stepped_at: float = 0.0
    duration_s: float = 300.0
    state: BakeState = BakeState.BAKING
    has_evidence: bool = False
    breaches: tuple[str, ...] = ()
    holding: str | None = None
    told: tuple[str, ...] = ()
    ended_at: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As the store keeps it and the API shows it."""
        return {
            "operation": self.operation,
            "color": str(self.color),
            "generation": self.generation,
            "since": self.since,
            "until": self.until,
            "on_breach": str(self.on_breach),
            "on_insufficient": str(self.on_insufficient),
            "steps": list(self.steps),
            "every_s": self.every_s,
            "stepped_at": self.stepped_at,
            "duration_s": self.duration_s,
            "state": str(self.state),
            "has_evidence": self.has_evidence,
            "breaches": list(self.breaches),
            "holding": self.holding,
            "told": list(self.told),
            "ended_at": self.ended_at,
        }

    @classmethod
    def from_json(cls, service: str, document: Mapping[str, Any]) -> Self:
        """What `to_json` wrote."""
        return cls(
            service=service,
            **{
                **document,
                "color": Color(document["color"]),
                "on_breach": OnBreach(document["on_breach"]),
                "on_insufficient": OnInsufficient(document["on_insufficient"]),
                "state": BakeState(document["state"]),
                "steps": tuple(document["steps"]),
                "breaches": tuple(document["breaches"]),
                "told": tuple(document["told"]),
            },
        )


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a watched service at this moment.

    `rescue` are the facts of the color that traffic would go back to, `quarantined` why that one may not get any.
    """

    route: Route
    generation: int
    rescue: PoolFacts
    decision: RollbackDecision
    verdicts: tuple[Verdict, ...] = ()
    burst: str | None = None
    frozen: str | None = None
    quarantined: str | None = None
    limit: str | None = None


@dataclass(frozen=True, slots=True)
class RollBack:
    """Give the traffic back to what served before, and tell who asks why."""

    reason: str
    severity: Severity
    confidence: float


@dataclass(frozen=True, slots=True)
class Advance:
    """The canary's next step: so many percent for the color under watch."""

    weight: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """Latch the service until a person releases it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Something that people should know of; `what` names it, such as `breach`."""

    what: str
    message: str
    level: str = "error"


Action = RollBack | Advance | Freeze | Tell


@dataclass(slots=True)
class _Course:
    """What has been decided so far in one call."""

    bake: Bake
    now: float
    actions: list[Action] = field(default_factory=list)

    def tell(self, what: str, message: str, level: str = "error") -> None:
        """Say it once in a watch."""
        key = f"{what}: {_kind(message)}"
        if key not in self.bake.told:
            self.bake = replace(self.bake, told=(*self.bake.told, key)[-50:])
            self.actions.append(Tell(what, message, level))

    def end(self, state: BakeState, message: str, level: str) -> None:
        """It is over."""
        self.bake = replace(self.bake, state=state, ended_at=self.now, holding=None)
        self.actions.append(Tell(f"bake-{state}", message, level))


def decide(bake: Bake, sight: Sight, now: float) -> tuple[Bake, tuple[Action, ...]]:
    """What to do about one watched service now."""
    if bake.state.is_over:
        return bake, ()
    course = _Course(bake, now)
    if sight.generation != bake.generation:
        course.end(BakeState.SUPERSEDED, f"the watch on {bake.color} ended: something else is served now", "info")
        return course.bake, tuple(course.actions)
    _look(course, sight)
    if not course.bake.state.is_over:
        _go_on(course, sight)
    return course.bake, tuple(course.actions)


def _look(course: _Course, sight: Sight) -> None:
    """Judge, and do what a breach leads to."""
    bake = course.bake
    if any(verdict.outcome is not Outcome.INSUFFICIENT for verdict in sight.verdicts if verdict.criterion.trigger):
        bake = course.bake = replace(bake, has_evidence=True)
    for sentence in sight.decision.alerts:
        course.tell("criterion", sentence, "warning")
    decision = _decision(sight)
    if not decision.should_rollback:
        if bake.holding is not None:
            course.tell("recovered", f"over: {bake.holding}", "info")
            course.bake = replace(course.bake, holding=None)
        return
    if not bake.breaches or _kind(bake.breaches[-1]) != _kind(decision.reason):
        course.bake = replace(bake, breaches=(*bake.breaches, decision.reason)[-20:])
    _answer(course, sight, decision, bake.on_breach)


def _decision(sight: Sight) -> RollbackDecision:
    """A burst decides by itself."""
    if sight.burst is None:
        return sight.decision
    return RollbackDecision(True, sight.burst, Severity.CRITICAL, _BURST_CONFIDENCE)


def _answer(course: _Course, sight: Sight, decision: RollbackDecision, answer: OnBreach) -> None:
    bake = course.bake
    if answer == OnBreach.ALERT:
        course.tell("breach", f"{decision.reason}; no rollback was asked for")
    elif answer == OnBreach.FREEZE:
        course.actions.append(Freeze(decision.reason))
        course.end(BakeState.BREACHED, f"frozen on {bake.color}: {decision.reason}", "error")
    elif (obstacle := _obstacle(bake, sight)) is not None:
        if obstacle == sight.limit:
            course.actions.append(Freeze(f"{obstacle}: {decision.reason}"))
        if _kind(bake.holding) != _kind(obstacle):
            course.bake = replace(bake, holding=obstacle)
            course.tell("holding", f"{bake.color} keeps the traffic, {obstacle}: {decision.reason}")
    else:
        course.bake = replace(bake, state=BakeState.ROLLED_BACK, ended_at=course.now, holding=None)
        course.actions.append(RollBack(decision.reason, decision.severity, decision.confidence))


def _obstacle(bake: Bake, sight: Sight) -> str | None:
    """Why traffic may not go back."""
    rescue = bake.color.other
    if sight.frozen is not None:
        return f"frozen: {sight.frozen}"
    if sight.rescue.state is PoolState.UNKNOWN:
        return f"{rescue} is not known yet: {sight.rescue.summary}"
    if sight.rescue.state is not PoolState.HEALTHY:
        return f"{rescue} is unhealthy, too: {sight.rescue.summary}"
    if sight.quarantined is not None:
        return f"{rescue} is quarantined: {sight.quarantined}"
    return sight.limit


def _go_on(course: _Course, sight: Sight) -> None:
    """The canary's next step, or the end."""
    bake = course.bake
    if bake.steps:
        _step(course, sight)
    elif course.now >= bake.until:
        _end(course, sight)


def _step(course: _Course, sight: Sight) -> None:
    bake = course.bake
    if course.now - bake.stepped_at < bake.every_s or _decision(sight).should_rollback:
        return
    deciding = [verdict for verdict in sight.verdicts if verdict.criterion.trigger]
    waiting = [verdict.sentence for verdict in deciding if verdict.outcome is Outcome.INSUFFICIENT]
    if waiting:
        course.tell("waiting", f"the canary stays at {sight.route.share(bake.color)}%: {'; '.join(waiting)}", "warning")
    elif all(verdict.outcome is Outcome.PASS for verdict in deciding):
        course.bake = replace(bake, steps=bake.steps[1:], stepped_at=course.now)
        course.actions.append(Advance(bake.steps[0]))


def _end(course: _Course, sight: Sight) -> None:
    bake = course.bake
    took = format_duration(float(round(course.now - bake.since)))
    if bake.breaches:
        course.end(BakeState.BREACHED, f"{bake.color} breached within {took}: {'; '.join(bake.breaches)}", "error")
    elif bake.has_evidence:
        course.end(BakeState.PASSED, f"{bake.color} passed its watch of {took}", "info")
    else:
        why = "; ".join(verdict.sentence for verdict in sight.verdicts) or "there are no criteria"
        message = f"{bake.color} was watched for {took} without enough evidence: {why}"
        _lacking(course, sight, message)


def _lacking(course: _Course, sight: Sight, message: str) -> None:
    """What `on_insufficient` says."""
    match course.bake.on_insufficient:
        case OnInsufficient.ALERT:
            course.end(BakeState.INSUFFICIENT, message, "warning")
        case OnInsufficient.FREEZE:
            course.actions.append(Freeze(message))
            course.end(BakeState.INSUFFICIENT, f"frozen on {course.bake.color}: {message}", "error")
        case OnInsufficient.ROLLBACK:
            _answer(course, sight, RollbackDecision(True, message, Severity.LOW, 0.0), OnBreach.ROLLBACK)
            if course.bake.state.is_over:
                course.bake = replace(course.bake, breaches=(message,))
            else:
                course.end(BakeState.INSUFFICIENT, message, "error")


def _kind(reason: str | None) -> str | None:
    """A reason without its numbers, by which a repetition is known."""
    return None if reason is None else "".join(letter for letter in reason if letter not in _NUMBERS)
