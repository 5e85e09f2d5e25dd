"""What a load client counted: phases, answers and failures; every time in ms after the mark it belongs to."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Self

_APPS = 64  # answering applications told apart in a phase
_BUCKETS_PER_DOUBLING = 8  # latency histogram: buckets 9% wide, from 1 us


@dataclass(frozen=True, slots=True)
class Answers:
    """What one version of one application answered in a phase; times in ms after the phase's mark.

    `first_ms`/`last_ms` are when answers were complete, `first_sent_ms`/`last_sent_ms` when those requests had been
    sent (negative: before the mark). An `app` of "" gave no X-App header.
    """

    app: str
    version: str
    count: int
    first_ms: float
    last_ms: float
    first_sent_ms: float
    last_sent_ms: float


@dataclass(frozen=True, slots=True)
class Failure:
    """One lost request; times in ms after the mark of the phase in which it ended."""

    phase: str
    kind: str
    sent_ms: float
    ended_ms: float
    fresh: bool
    app: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """From one mark to the next. `started_s` is `time.monotonic()` at the mark, other times are ms after it.

    `in_flight_before` requests were sent before the mark and ended after it, the oldest `oldest_in_flight_ms` before.
    """

    name: str
    started_s: float
    duration_ms: float
    in_flight_before: int
    oldest_in_flight_ms: float
    sent: int
    answered: int
    lost: int
    lost_by_kind: dict[str, int]
    first_loss_ms: float | None
    last_loss_ms: float | None
    slowest_loss_ms: float | None
    answers: tuple[Answers, ...]
    p50_ms: float | None
    p99_ms: float | None
    slowest_ms: float | None

    def by(self, app: str) -> Answers | None:
        """What `app` answered, all its versions together, or None."""
        mine = [answers for answers in self.answers if answers.app == app]
        if not mine:
            return None
        return Answers(
            app,
            ",".join(answers.version for answers in mine),
            sum(answers.count for answers in mine),
            min(answers.first_ms for answers in mine),
            max(answers.last_ms for answers in mine),
            min(answers.first_sent_ms for answers in mine),
            max(answers.last_sent_ms for answers in mine),
        )

    def answered_by(self, app: str) -> int:
        """How many requests `app` answered."""
        answers = self.by(app)
        return answers.count if answers else 0


@dataclass(frozen=True, slots=True)
class Report:
    """Everything so far: `sent == answered + lost + in_flight`; `failures` are the last of them, oldest first."""

    sent: int
    answered: int
    lost: int
    in_flight: int
    skipped: int
    reopened: int
    opened: int
    lost_by_kind: dict[str, int]
    duration_s: float
    cpu_s: float
    phases: tuple[Phase, ...]
    failures: tuple[Failure, ...]

    def phase(self, name: str) -> Phase:
        """The last phase of that name. Raises: LookupError."""
        for phase in reversed(self.phases):
            if phase.name == name:
                return phase
        raise LookupError(f"no phase {name!r}, only {[phase.name for phase in self.phases]}")

    def answered_by(self, app: str) -> int:
        """How many requests `app` answered in all phases."""
        return sum(phase.answered_by(app) for phase in self.phases)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The report that `to_json` wrote."""
        phases = [
            Phase(**{**phase, "answers": tuple(Answers(**answers) for answers in phase["answers"])})
            for phase in document["phases"]
        ]
        failures = [Failure(**failure) for failure in document["failures"]]
        return cls(**{**document, "phases": tuple(phases), "failures": tuple(failures)})

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.lost_by_kind.items()))
        lines = [f"{self.sent} sent, {self.answered} answered, {self.lost} lost ({kinds or 'none'})"]
        lines += [f"  {phase.name}: {phase.sent} sent, {phase.lost} lost {phase.lost_by_kind}" for phase in self.phases]
        lines += [f"  {failure}" for failure in self.failures[-10:]]
        return "\n".join(lines)


@dataclass(slots=True)
class _Span:
    """First and last times of one application's answers, seconds of the monotonic clock."""

    count: int = 0
    first: float = math.inf
    last: float = -math.inf
    first_sent: float = math.inf
    last_sent: float = -math.inf

    def add(self, sent: float, ended: float) -> None:
        self.count += 1
        self.first = min(self.first, ended)
        self.last = max(self.last, ended)
        self.first_sent = min(self.first_sent, sent)
        self.last_sent = max(self.last_sent, sent)


@dataclass(slots=True)
class Tally:
    """The counters of one phase."""

    name: str
    started: float
    in_flight_before: int = 0
    oldest_in_flight: float = 0.0  # its age, seconds
    sent: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    losses: _Span = field(default_factory=_Span)
    answers: dict[tuple[str, str], _Span] = field(default_factory=dict)
    latencies: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_loss: float = 0.0

    def answer(self, app: str, version: str, sent: float, ended: float) -> None:
        key = (app, version)
        if key not in self.answers and len(self.answers) >= _APPS:
            key = ("other", "")
        self.answers.setdefault(key, _Span()).add(sent, ended)
        took = ended - sent
        self.slowest = max(self.slowest, took)
        self.latencies[round(math.log2(max(took * 1e6, 1.0)) * _BUCKETS_PER_DOUBLING)] += 1

    def lose(self, kind: str, sent: float, ended: float) -> None:
        self.lost[kind] += 1
        self.losses.add(sent, ended)
        self.slowest_loss = max(self.slowest_loss, ended - sent)

    def report(self, until: float) -> Phase:
        answered = sum(span.count for span in self.answers.values())
        lost = self.losses.count
        return Phase(
            name=self.name,
            started_s=self.started,
            duration_ms=milliseconds(until - self.started),
            in_flight_before=self.in_flight_before,
            oldest_in_flight_ms=milliseconds(self.oldest_in_flight),
            sent=self.sent,
            answered=answered,
            lost=lost,
            lost_by_kind=dict(self.lost),
            first_loss_ms=self._after(self.losses.first) if lost else None,
            last_loss_ms=self._after(self.losses.last) if lost else None,
            slowest_loss_ms=milliseconds(self.slowest_loss) if lost else None,
            answers=tuple(self._answers(*item) for item in sorted(self.answers.items())),
            p50_ms=self._quantile(0.5, answered),
            p99_ms=self._quantile(0.99, answered),
            slowest_ms=milliseconds(self.slowest) if answered else None,
        )

    def _answers(self, key: tuple[str, str], span: _Span) -> Answers:
        times = (span.first, span.last, span.first_sent, span.last_sent)
        return Answers(*key, span.count, *(self._after(moment) for moment in times))

    def _after(self, moment: float) -> float:
        return milliseconds(moment - self.started)

    def _quantile(self, share: float, total: int) -> float | None:
        """Upper end of the bucket in which the quantile lies (nearest rank)."""
        left = math.ceil(share * total)
        for bucket, count in sorted(self.latencies.items()):
            left -= count
            if left <= 0:
                return milliseconds(2 ** ((bucket + 0.5) / _BUCKETS_PER_DOUBLING) / 1e6)
        return None


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
