"""What happened when, and what a bad color answered: the record of an incident.

It grows while a service bakes, within bounds, and is written when a rollback is over. Requests are those that the
reader lists: all that failed, and all that are not idempotent, without query strings and client addresses.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from lbswitch.core.criteria import Verdict
from lbswitch.core.evidence import Batch, Window
from lbswitch.ports import Answered

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Idempotent by RFC 9110, section 9.2.2: repeating them changes nothing more."""
_LISTED = 10_000
_KINDS = 1_000
_SECONDS = 900


class Story:
    """Of one watched color. Times are seconds since the epoch."""

    def __init__(self, since: float) -> None:
        """It got its traffic at `since`."""
        self.since = since
        self.first_bad_at: float | None = None
        self.last_bad_at: float | None = None
        self.decided_at: float | None = None
        self.committed_at: float | None = None
        self.requests = self.errors = self.unlisted = 0
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
            self.first_bad_at = batch.first_failure_at
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
                if len(self._listed) == _LISTED:
                    self.unlisted += 1
                self._listed.append(request)

    def begin_anew(self) -> None:
        """The color was fine for a while: earlier failures are not the beginning of what comes."""
        self.first_bad_at = None

    def record(
        self, verdicts: Sequence[Verdict], before: Window | None, after: Window | None, decision: dict[str, Any]
    ) -> dict[str, Any]:
        """The whole record, for store and API."""
        return {
            "decision": decision,
            "timeline": {
                "traffic_at": self.since,
                "first_bad_at": self.first_bad_at,
                "decided_at": self.decided_at,
                "committed_at": self.committed_at,
                "last_bad_at": self.last_bad_at,
                "recovery_ms": _apart_ms(self.first_bad_at, self.committed_at),
                "bad_for_ms": _apart_ms(self.first_bad_at, self.last_bad_at),
            },
            "criteria": [verdict.to_json() for verdict in verdicts],
            "before": None if before is None else before.to_json(),
            "after": None if after is None else after.to_json(),
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
            "not_idempotent": [_row(request) for request in self._listed],
            "seconds": [[second, *counts] for second, counts in sorted(self._seconds.items())],
        }


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
