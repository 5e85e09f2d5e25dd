"""What the readers of all balancers share: a reading in the making, latencies as text, text that is fit to be shown."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from lbswitch.core.evidence import Batch, Failure
from lbswitch.core.histogram import Histogram
from lbswitch.core.model import PoolKey
from lbswitch.ports import Answered, Reading

MOST_LISTED = 2000
"""How many single requests a reading names."""
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110, 9.2.2
_LONGEST = {"path": 500, "id": 200, "method": 40}
_MOST_KNOWN = 50_000  # texts of latencies
_ESCAPED = re.compile(rb"\\x([0-9A-Fa-f]{2})")
_HIDDEN = 0x80  # bytes below are as they were sent, but for control characters, `"` and `\`
_PLAIN = {0x22, 0x5C}


class Outcome(NamedTuple):
    """How one request ended for one pool. Neither `failure` nor `is_neutral`: well.

    Neutral is what says nothing about the servers, such as a client that went away. Where it says that another server
    had to repeat the request, `failure` is REPLAY.
    """

    pool: PoolKey
    status: int
    failure: Failure | None = None
    is_neutral: bool = False


def is_idempotent(method: str) -> bool:
    """Whether a request may be sent twice without harm, as RFC 9110 defines its method."""
    return method in _IDEMPOTENT


class Ledger:
    """One reading in the making. Count everything, tell of each failure, then `close`."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._batches: defaultdict[PoolKey, Batch] = defaultdict(Batch)
        self._well: set[PoolKey] = set()
        self._listed: list[Answered] = []
        self._unlisted = 0
        self.lost = 0

    def count(self, outcome: Outcome, bucket: int | None, times: int = 1) -> None:
        """So many requests that ended alike; `bucket` is their latency's, if known. Failures are told by `fail`."""
        batch = self._batches[outcome.pool]
        batch.requests += times
        batch.statuses[outcome.status] += times
        if bucket is not None:
            batch.latency.add_bucket(bucket, times)
        if outcome.failure is None and not outcome.is_neutral:
            self._well.add(outcome.pool)

    def fail(self, pool: PoolKey, failure: Failure, at: float) -> None:
        """One of those that were counted failed; `at` is seconds since the epoch."""
        batch = self._batches[pool]
        batch.failures[failure] += 1
        batch.first_failure_at = at if batch.first_failure_at is None else min(batch.first_failure_at, at)
        batch.last_failure_at = at if batch.last_failure_at is None else max(batch.last_failure_at, at)

    def late(self, pool: PoolKey, bucket: int) -> None:
        """The latency of one of those that were counted without."""
        self._batches[pool].latency.add_bucket(bucket, 1)

    @property
    def has_room(self) -> bool:
        """Whether another request will be listed; else it need not be made."""
        return len(self._listed) < MOST_LISTED

    def list(self, request: Answered) -> None:
        """Name one request."""
        self._listed.append(request)

    def leave_out(self) -> None:
        """There was no room for one."""
        self._unlisted += 1

    def close(self, at: float, newest_first: Iterable[Iterable[Outcome]]) -> Reading:
        """The reading. `newest_first` are the outcomes of all requests in reverse order, of which few are looked at."""
        for pool, batch in self._batches.items():
            batch.unbroken = pool not in self._well
            batch.streak = sum(batch.failures.values()) if batch.unbroken else 0
        self._count_streaks(newest_first)
        return Reading(at, dict(self._batches), tuple(self._listed), self.lost, self._unlisted)

    def _count_streaks(self, newest_first: Iterable[Iterable[Outcome]]) -> None:
        open_pools = {pool for pool in self._well if self._batches[pool].failures}
        for outcomes in newest_first if open_pools else ():
            for outcome in outcomes:
                if outcome.pool not in open_pools:
                    continue
                if outcome.failure is not None:
                    self._batches[outcome.pool].streak += 1
                elif not outcome.is_neutral:
                    open_pools.discard(outcome.pool)
            if not open_pools:
                return


class Buckets:
    """The histogram bucket of a latency that a balancer wrote as text; each text is looked at once."""

    def __init__(self, per_unit_ms: float, least_ms: float) -> None:
        """`per_unit_ms` is how many ms 1 means. What is below the balancer's resolution counts as `least_ms`."""
        self._per_unit_ms = per_unit_ms
        self._least_ms = least_ms
        self._known: dict[bytes, int | None] = {}

    def bucket(self, text: bytes) -> int | None:
        """None when it is no number of 0 or more."""
        if text not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            value = self.ms(text)
            self._known[text] = None if value is None else Histogram.index(max(value, self._least_ms))
        return self._known[text]

    def ms(self, text: bytes) -> float | None:
        """The latency in ms; None when it is no number of 0 or more."""
        if not text[:1].isdigit():
            return None
        try:
            return float(text) * self._per_unit_ms
        except ValueError:
            return None


def shown(text: bytes, what: str) -> str:
    r"""A `path`, `id` or `method` as a client sent it, fit for a terminal and cut to a bearable length.

    Bytes that the balancer wrote as `\xC3` are read again as UTF-8; what can't be printed stays escaped.
    """
    longest = _LONGEST[what]
    raw = _ESCAPED.sub(_unescaped, text[: 12 * longest])  # a character may be four bytes of four characters each
    words = raw.decode(errors="backslashreplace")
    if not words.isprintable():
        words = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in words)
    return words[:longest]


def _unescaped(match: re.Match[bytes]) -> bytes:
    byte = int(match[1], 16)
    return bytes([byte]) if byte >= _HIDDEN or byte in _PLAIN else match[0]
