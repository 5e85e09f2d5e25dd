"""What happened when, and what a bad color answered: the record of an incident.

It grows while a service bakes, within bounds, is written right after a rollback, and once more when the last bad
answers are in. Requests are those that the reader lists: all that failed, and all that are not idempotent, without
query strings and client addresses.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from lbswitch.core.criteria import Outcome, Verdict
from lbswitch.core.evidence import Batch, Window
from lbswitch.core.model import Color
from lbswitch.ports import Answered

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Idempotent by RFC 9110, section 9.2.2: repeating them changes nothing more."""
_LISTED = 10_000
_KINDS = 1_000
_SECONDS = 900


class Colors(NamedTuple):
    """What the old color was like before the switch, the new one with its traffic, and the old one since it is back."""

    before: Window | None
    during: Window | None
    after: Window | None


class Story:
    """Of one watched color. Times are seconds since the epoch."""

    def __init__(self, since: float, color: Color) -> None:
        """This color got its traffic at `since`."""
        self.since = since
        self.color = color
        self.first_bad_at: float | None = None
        self.seen_at: float | None = None
        self.last_bad_at: float | None = None
        self.decided_at: float | None = None
        self.committed_at: float | None = None
        self.requests = self.errors = self.unlisted = self.not_idempotent = 0
        self.statuses: Counter[int] = Counter()
        self._kinds: Counter[tuple[str, str, int]] = Counter()
        self._listed: deque[Answered] = deque(maxlen=_LISTED)
        self._seconds: dict[int, list[int]] = {}

    def batch(self, at: float, batch: Batch) -> None:
        """What the color answered up to `at`."""
        failures = sum(batch.failures.values())
        self.requests += batch.requests
        self.errors += failures
        self.statuses.update(batch.statuses)
        if batch.first_failure_at is not None and self.first_bad_at is None:
            self.first_bad_at, self.seen_at = batch.first_failure_at, at
        if batch.last_failure_at is not None:
            self.last_bad_at = batch.last_failure_at
        second = self._seconds.setdefault(int(at), [0, 0])
        second[0] += batch.requests
        second[1] += failures
        while len(self._seconds) > _SECONDS:
            del self._seconds[next(iter(self._seconds))]

    def answered(self, requests: Sequence[Answered], unlisted: int) -> None:
        """Requests that are listed one by one; `unlisted` more could not be."""
        self.unlisted += unlisted
        for request in requests:
            kind = (request.method, request.path, request.status)
            if kind in self._kinds or len(self._kinds) < _KINDS:
                self._kinds[kind] += 1
            if request.method not in SAFE_METHODS:
                self.not_idempotent += 1
                if len(self._listed) == _LISTED:
                    self.unlisted += 1
                self._listed.append(request)

    def begin_anew(self) -> None:
        """The color was fine for a while: earlier failures are not the beginning of what comes."""
        self.first_bad_at = self.seen_at = None

    @property
    def recovery_ms(self) -> float | None:
        """From the first bad answer to the end of the rollback; None when there was neither."""
        return _apart_ms(self.first_bad_at, self.committed_at)

    def record(
        self, verdicts: Sequence[Verdict], colors: Colors, decision: dict[str, Any], *, complete: bool
    ) -> dict[str, Any]:
        """The whole record, for store and API; not `complete` while answers may still come in."""
        return {
            "color": str(self.color),
            "complete": complete,
            "decision": decision,
            "timeline": {
                "traffic_at": self.since,
                "first_bad_at": self.first_bad_at,
                "seen_at": self.seen_at,
                "decided_at": self.decided_at,
                "committed_at": self.committed_at,
                "last_bad_at": self.last_bad_at,
                "recovery_ms": self.recovery_ms,
                "bad_for_ms": _apart_ms(self.first_bad_at, self.last_bad_at),
            },
            "criteria": [verdict.to_json() for verdict in verdicts],
            **{
                name: None if window is None else window.to_json()
                for name, window in zip(colors._fields, colors, strict=True)
            },
            "answered": {
                "requests": self.requests,
                "errors": self.errors,
                "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
                "listed": [
                    {"method": method, "path": path, "status": status, "count": count}
                    for (method, path, status), count in self._kinds.most_common(100)
                ],
                "unlisted": self.unlisted,
            },
            "not_idempotent_requests": self.not_idempotent,
            "not_idempotent": [_row(request) for request in self._listed],
            "seconds": [[second, *counts] for second, counts in sorted(self._seconds.items())],
        }


def cause(burst: str | None, verdicts: Sequence[Verdict]) -> str:
    """What a decision came from, for metrics: `burst`, the name of a criterion, or `insufficient` evidence."""
    if burst is not None:
        return "burst"
    breached = (each for each in verdicts if each.criterion.trigger and each.outcome is Outcome.BREACH)
    return next((each.criterion.name for each in breached), "insufficient")


def _row(request: Answered) -> dict[str, Any]:
    return {
        "at": request.at,
        "method": request.method,
        "path": request.path,
        "status": request.status,
        "request_id": request.request_id,
        "failure": None if request.failure is None else str(request.failure),
    }


def _apart_ms(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else round((end - begin) * 1000, 1)
