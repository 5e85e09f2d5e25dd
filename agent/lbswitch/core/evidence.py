"""What real traffic experienced, per pool, in constant memory.

Three rings per pool: 0.1 s x 30, 1 s x 120 and 10 s x 360. A window is cut from the finest ring that reaches far
enough back. Besides, it is known when somebody was reading: silence that was watched is no traffic, silence that
nobody watched is ignorance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lbswitch.core.histogram import Histogram
from lbswitch.core.model import PoolKey

_US = 1_000_000
_LEVELS_US = ((100_000, 30), (_US, 120), (10 * _US, 360))
LONGEST_S = 3600.0
"""The longest window."""
GAP_S = 2.0
"""A reader that is silent for longer than this missed something."""
_SUMS = 16
_JITTER_US = _US  # clocks of several cores, and corrections by ntpd


class Failure(StrEnum):
    """How a request failed; one request counts once."""

    STATUS = "status"
    """Answered with 5xx."""
    CONNECT = "connect"
    """No connection to the server."""
    TIMEOUT = "timeout"
    """No answer in time."""
    CLOSED = "closed"
    """No complete answer."""
    REPLAY = "replay"
    """Another server had to repeat it; the client did not notice."""


@dataclass(slots=True)
class Batch:
    """What a reader counted since it last handed over, of one pool.

    `streak` are the failures in a row at its end, `unbroken` says that no request in it succeeded; times are seconds
    since the epoch.
    """

    requests: int = 0
    failures: Counter[Failure] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    streak: int = 0
    unbroken: bool = True
    first_failure_at: float | None = None
    last_failure_at: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen of one pool during the last `seconds`.

    `seconds` is up to one step of the ring shorter than what was asked for. For `covered_s` of them somebody was
    reading; `unwatched_s` ago somebody read last (None: never).
    """

    seconds: float
    requests: int = 0
    failures: Mapping[Failure, int] = field(default_factory=dict)
    statuses: Mapping[int, int] = field(default_factory=dict)
    latency: Histogram = field(default_factory=Histogram)
    covered_s: float = 0.0
    unwatched_s: float | None = None

    @property
    def errors(self) -> int:
        """How many requests failed."""
        return sum(self.failures.values())

    @property
    def ratio(self) -> float | None:
        """Failed requests as a share of all; None without requests."""
        return self.errors / self.requests if self.requests else None

    @property
    def requests_per_s(self) -> float:
        """Requests a second of the time that somebody was reading."""
        return self._per_s(self.requests)

    @property
    def errors_per_s(self) -> float:
        """Failed requests a second of the time that somebody was reading."""
        return self._per_s(self.errors)

    def _per_s(self, count: int) -> float:
        seconds = self.covered_s or self.seconds
        return count / seconds if seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The numbers as status and incident records show them; latencies in ms, None without requests."""
        return {
            "seconds": round(self.seconds, 3),
            "covered_s": round(self.covered_s, 3),
            "requests": self.requests,
            "errors": self.errors,
            "failures": {str(failure): count for failure, count in sorted(self.failures.items())},
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "error_ratio": self.ratio,
            "requests_per_s": round(self.requests_per_s, 3),
            "errors_per_s": round(self.errors_per_s, 3),
            "latency_ms": {f"p{round(q * 100)}": self.latency.quantile(q) for q in (0.5, 0.95, 0.99)},
        }


class _Tally:
    """What was counted in one step of a ring, or in several."""

    __slots__ = ("failures", "latency", "number", "requests", "statuses")

    def __init__(self, number: int) -> None:
        self.number = number
        self.requests = 0
        self.failures: Counter[Failure] = Counter()
        self.statuses: Counter[int] = Counter()
        self.latency = Histogram()

    def add(self, other: Batch | _Tally) -> None:
        self.requests += other.requests
        for failure, count in other.failures.items():
            self.failures[failure] += count
        for status, count in other.statuses.items():
            self.statuses[status if 100 <= status <= 599 else 0] += count  # garbage takes no memory
        self.latency.merge(other.latency)


class _Ring:
    """The newest `size` steps; an older one is overwritten by what takes its place.

    `rewritten` counts how often something changed in a step before the newest.
    """

    __slots__ = ("_cells", "newest", "rewritten")

    def __init__(self, size: int) -> None:
        self._cells: list[_Tally | None] = [None] * size
        self.newest = -1
        self.rewritten = 0

    def at(self, number: int) -> _Tally:
        self.rewritten += number < self.newest
        self.newest = max(self.newest, number)
        place = number % len(self._cells)
        cell = self._cells[place]
        if cell is None or cell.number != number:
            cell = self._cells[place] = _Tally(number)
        return cell

    def between(self, first: int, last: int) -> Iterator[_Tally]:
        return (cell for cell in self._cells if cell is not None and first <= cell.number <= last)

    def drop_after(self, last: int) -> None:
        self.newest, self.rewritten = min(self.newest, last), self.rewritten + 1
        self._cells = [None if cell is not None and cell.number > last else cell for cell in self._cells]


class _Watch:
    """For how long somebody was reading, in microseconds by step of each ring."""

    __slots__ = ("_covered", "last_us")

    def __init__(self) -> None:
        self._covered = tuple([(-1, 0)] * size for _, size in _LEVELS_US)
        self.last_us: int | None = None

    def cover(self, start_us: int, end_us: int) -> None:
        for level, (step_us, size) in enumerate(_LEVELS_US):
            cells = self._covered[level]
            for number in range(start_us // step_us, (end_us - 1) // step_us + 1):
                low, high = max(start_us, number * step_us), min(end_us, (number + 1) * step_us)
                known, covered = cells[number % size]
                cells[number % size] = (number, high - low + (covered if known == number else 0))

    def between(self, level: int, first: int, last: int) -> int:
        return sum(covered for number, covered in self._covered[level] if first <= number <= last)

    def drop_after(self, now_us: int) -> None:
        for (step_us, _), cells in zip(_LEVELS_US, self._covered, strict=True):
            for place, (number, _) in enumerate(cells):
                if number > now_us // step_us:
                    cells[place] = (-1, 0)


class _Pool:
    __slots__ = ("_sums", "rings", "streak")

    def __init__(self) -> None:
        self.rings = tuple(_Ring(size) for _, size in _LEVELS_US)
        self.streak = 0
        self._sums: dict[tuple[int, int, int, int], _Tally] = {}

    def total(self, level: int, first: int, last: int) -> _Tally:
        """The sum of these steps, a new one."""
        ring, total = self.rings[level], _Tally(0)
        closed = min(last, ring.newest) - 1
        total.add(self._closed(level, first, closed))
        for tally in ring.between(max(first, closed + 1), last):
            total.add(tally)
        return total

    def _closed(self, level: int, first: int, last: int) -> _Tally:
        """The sum of steps that don't grow any more; criteria ask for the same ones several times a second."""
        ring = self.rings[level]
        key = (level, first, last, ring.rewritten)
        found = self._sums.get(key)
        if found is None:
            if len(self._sums) >= _SUMS:
                self._sums.clear()
            found = self._sums[key] = _Tally(0)
            for tally in ring.between(first, last):
                found.add(tally)
        return found


class Evidence:
    """What is known about all pools. Call `watched` with every reading, then `add` for each of its batches.

    The clock is the one that `watched` is told. When it is set back, what seems to come from the future is dropped;
    batches from before a ring's reach are not counted in it, and those from the future count as new.
    """

    def __init__(self) -> None:
        self._pools: dict[PoolKey, _Pool] = {}
        self._watch = _Watch()

    def add(self, pool: PoolKey, at: float, batch: Batch) -> None:
        """Count a batch that ended `at` (seconds since the epoch). Raises: ValueError when that is no time."""
        at_us = _us(at)
        known = self._pools.setdefault(pool, _Pool())
        known.streak = batch.streak + (known.streak if batch.unbroken else 0)
        now_us = at_us if self._watch.last_us is None else self._watch.last_us
        at_us = min(at_us, now_us + _JITTER_US)
        for ring, (step_us, size) in zip(known.rings, _LEVELS_US, strict=True):
            if at_us // step_us > now_us // step_us - size:
                ring.at(at_us // step_us).add(batch)

    def watched(self, at: float) -> None:
        """A reader has read everything up to `at` (seconds since the epoch). Raises: ValueError when that is no time.

        What lies between two calls counts as watched when they are at most GAP_S apart.
        """
        at_us, last_us = _us(at), self._watch.last_us
        if last_us is not None and last_us - _JITTER_US <= at_us <= last_us:
            return
        if last_us is not None and at_us < last_us:
            self._set_back(at_us)
        elif last_us is not None and at_us - last_us <= GAP_S * _US:
            self._watch.cover(last_us, at_us)
        self._watch.last_us = at_us

    def _set_back(self, now_us: int) -> None:
        self._watch.drop_after(now_us)
        for pool in self._pools.values():
            for ring, (step_us, _) in zip(pool.rings, _LEVELS_US, strict=True):
                ring.drop_after(now_us // step_us)

    def window(self, pool: PoolKey, now: float, seconds: float, since: float | None = None) -> Window:
        """What was seen of the pool from `seconds` (an hour at most) before `now` until then, nothing before `since`.

        Raises: ValueError for a time that is none or a length that is not above 0.
        """
        if not seconds > 0:
            raise ValueError(f"a window of {seconds} s shows nothing")
        now_us = _us(now)
        start_us = now_us - _us(min(seconds, LONGEST_S))
        if since is not None:
            start_us = max(start_us, min(_us(since), now_us))
        level = _level(now_us - start_us)
        step_us = _LEVELS_US[level][0]
        first, last = -(-start_us // step_us), now_us // step_us
        known = self._pools.get(pool)
        total = _Tally(0) if known is None else known.total(level, first, last)
        return self._made(total, now_us, first * step_us, self._watch.between(level, first, last))

    def _made(self, total: _Tally, now_us: int, start_us: int, covered_us: int) -> Window:
        last_us = self._watch.last_us
        seconds = max(0, now_us - start_us) / _US
        return Window(
            seconds,
            total.requests,
            total.failures,
            total.statuses,
            total.latency,
            min(seconds, covered_us / _US),
            None if last_us is None else max(0, now_us - last_us) / _US,
        )

    def streak(self, pool: PoolKey) -> int:
        """How many requests in a row failed last."""
        known = self._pools.get(pool)
        return 0 if known is None else known.streak

    def forget(self, services: Collection[str]) -> None:
        """Keep only what concerns these services."""
        self._pools = {key: pool for key, pool in self._pools.items() if key.service in services}


def _us(seconds: float) -> int:
    try:
        return round(seconds * _US)
    except OverflowError as error:
        raise ValueError(f"{seconds} is no time") from error


def _level(span_us: int) -> int:
    return next((level for level, (step, size) in enumerate(_LEVELS_US) if span_us <= step * size), len(_LEVELS_US) - 1)
