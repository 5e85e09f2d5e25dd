"""What HAProxy tells of real traffic: one datagram a request, sent to a socket beside its maps.

Nobody waits for anybody: without an agent, or with one that is too slow, HAProxy drops the line. Every line carries a
number, so that the next one tells how many were dropped.

Termination states are those of section 8.5 of HAProxy's configuration manual.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from lbswitch.core.config import Config, Mode
from lbswitch.core.evidence import Failure
from lbswitch.core.haproxy_log import MARK, SOCKET
from lbswitch.core.histogram import Histogram
from lbswitch.core.model import Color, PoolKey
from lbswitch.core.names import guest_pool_name, pool_name, shielded_name
from lbswitch.ports import Answered, Reading
from lbswitch.traffic.counting import Ledger, Outcome, is_idempotent, shown
from lbswitch.traffic.datagrams import Datagrams
from lbswitch.traffic.haproxy_socket import Place, place

Row = list[bytes]

_MARK, _SOURCE, _NUMBER, _AT, _TIMERS, _KEY, _METHOD, _PATH, _REST = range(1, 10)
_FIELDS = 10
_AGAIN_S = 1.0
_LEAST_MS = 0.5  # HAProxy counts whole ms
_MOST_KNOWN = 50_000
_MOST_SOURCES = 4096
_NO_SERVER = "<NOSRV>"
_TCP = b"TCP"
_QUIET, _SILENT = "quiet", "silent"
_NOBODYS = "CcPRIKUL"  # ended by clients, HAProxy itself, or an administrator
_SWITCHED = 101
_CLIENT_LEFT = 499  # as nginx has it

_NO_CONNECTION = {"C": Failure.CONNECT, "Q": Failure.CONNECT}
_BY_STATE: Mapping[str, Mapping[str, Failure]] = {
    "S": {**_NO_CONNECTION, "H": Failure.CLOSED, "D": Failure.CLOSED, "L": Failure.CLOSED},
    "s": {**_NO_CONNECTION, "H": Failure.TIMEOUT, "R": Failure.TIMEOUT, "D": Failure.CLOSED, "L": Failure.CLOSED},
    "P": {"H": Failure.CLOSED},  # an answer that is none
    "D": {**_NO_CONNECTION, "H": Failure.CLOSED, "D": Failure.CLOSED},
}
"""By who ended it, and in which phase. Who is not here is not the server: clients, HAProxy itself, administrators."""


class _Kind(NamedTuple):
    """What all lines with the same key have in common; nothing of ours when there are no `outcomes`.

    `timed` is the one that the latency is about: under the shield the color that was waited for first.
    """

    outcomes: tuple[Outcome, ...]
    timed: Outcome | None = None
    is_failure: bool = False


_FOREIGN = _Kind(())


class _Ended(NamedTuple):
    """The fields that say how a request ended."""

    backend: PoolKey
    server: str
    status: int
    state: str
    retries: int

    @property
    def pool(self) -> PoolKey:
        """Who ended it: under the shield, servers have the names of their colors."""
        other = self.backend.color.other
        return PoolKey(self.backend.service, other) if self.server.startswith(other) else self.backend


class HAProxyTraffic:
    """Implements `lbswitch.ports.Reader`."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since the epoch. Nothing is bound yet."""
        self._clock = clock
        self._lock = threading.Lock()
        self._datagrams: Datagrams | None = None
        self._is_started = False
        self._tried_at = 0.0
        self._failed: str | None = None
        self._set(config)
        self._lines = Lines(config)

    def _set(self, config: Config) -> None:
        self._config = config
        self._path = socket_path(config)

    @property
    def problem(self) -> str | None:
        """Why nothing can be read, with what to do."""
        datagrams = self._datagrams
        if self._failed is not None or datagrams is None:
            return self._failed
        if datagrams.has_received:
            return None
        if not datagrams.is_open:
            return f"{datagrams.path} was removed, so HAProxy's lines reach nobody: restart the agent"
        return self._place().problem

    def _place(self) -> Place:
        return place(self._config, self._path)

    def start(self) -> None:
        """Bind the socket. Never raises; see `problem`."""
        self._is_started, self._tried_at = True, self._clock()
        found = self._place()
        datagrams = Datagrams(found.path)
        try:
            if self._config.balancer.managed:
                found.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            datagrams.open(found.owner, found.mode)
        except OSError as error:
            self._failed = f"{found.path} can't be bound, so HAProxy's lines reach nobody: {error.strerror or error}"
            return
        self._failed, self._datagrams = None, datagrams

    def read(self) -> Reading:
        """Count what came since the last call."""
        with self._lock:
            at = self._clock()
            return self._lines.reading(self._taken(at), at)

    def _taken(self, now: float) -> Sequence[bytes]:
        if self._datagrams is None and self._is_started and not 0 <= now - self._tried_at < _AGAIN_S:
            self.start()  # the directory may be there now
        return () if self._datagrams is None else self._datagrams.take()

    def update(self, config: Config) -> None:
        """Other services; bind elsewhere if the directory is another one."""
        with self._lock:
            before = self._path
            self._set(config)
            self._lines.update(config)
            if self._is_started and (before != self._path or self._datagrams is None):
                self.close()
                self.start()

    def close(self) -> None:
        """Remove the socket: HAProxy's lines then go nowhere."""
        self._is_started = False
        if self._datagrams is not None:
            self._datagrams.close()
            self._datagrams = None


def socket_path(config: Config) -> Path:
    """Where this host has the socket, but for a HAProxy that locks itself into a directory."""
    if config.balancer.managed:
        return Path(config.agent.state_dir) / "haproxy" / SOCKET
    return Path(config.balancer.output_dir or "/") / SOCKET


class Lines:
    """Counts lines: from bytes to a reading."""

    def __init__(self, config: Config) -> None:
        """Nothing was counted yet."""
        self._sources: dict[bytes, _Source] = {}
        self._gaping: set[_Source] = set()
        self._buckets: dict[bytes, int | None] = {}
        self.update(config)

    def update(self, config: Config) -> None:
        """Other services."""
        self._pools = _pools(config)
        self._has_tcp = any(service.mode is Mode.TCP for service in config.services.values())
        self._kinds: dict[bytes, _Kind] = {}

    def reading(self, lines: Sequence[bytes], at: float) -> Reading:
        """What these lines say; one that was cut off or garbled is lost."""
        split = [line.split(b"\t", _FIELDS - 1) for line in lines]
        rows = [
            row
            for row in split
            if len(row) == _FIELDS and row[_MARK] == MARK and row[_NUMBER].isdigit() and row[_AT].isdigit()
        ]
        ledger = Ledger()
        ledger.lost = self._missing(rows)
        if len(rows) < len(split):
            ledger.lost += len(split) - len(rows) - sum(map(_is_notice, split))
        rows.sort(key=itemgetter(_AT))
        if self._has_tcp:
            _look_at_connections(rows)
        for (key, timers), times in Counter(map(itemgetter(_KEY, _TIMERS), rows)).items():
            kind = self._kind(key)
            for outcome in kind.outcomes:
                ledger.count(outcome, self._bucket(timers) if outcome is kind.timed else None, times)
        self._look_closer(ledger, rows, at)
        return ledger.close(at, (self._kind(row[_KEY]).outcomes for row in reversed(rows)))

    def _missing(self, rows: Sequence[Row]) -> int:
        """How many lines were dropped, by their numbers."""
        numbers: defaultdict[bytes, list[int]] = defaultdict(list)
        for row in rows:
            numbers[row[_SOURCE]].append(int(row[_NUMBER]))
        if len(self._sources) + len(numbers) > _MOST_SOURCES:
            self._sources.clear()
        for source, found in numbers.items():
            known = self._sources.get(source)
            if known is None:
                known = self._sources[source] = _Source(min(found))
            known.count(max(found), len(found))
            self._gaping.add(known)
        lost = sum(known.lost() for known in self._gaping)
        self._gaping = {known for known in self._gaping if known.is_gaping}
        return lost

    # -- lines that are looked at one by one -------------------------------------------------------------------

    def _look_closer(self, ledger: Ledger, rows: Sequence[Row], at: float) -> None:
        """Say how and when each failed, and list them and those that are not idempotent."""
        failing = {key for key in set(map(itemgetter(_KEY), rows)) if self._kind(key).is_failure}
        listed = {method for method in set(map(itemgetter(_METHOD), rows)) if _is_listed(method)}
        if failing or listed:
            for row in rows:
                is_listed = row[_METHOD] in listed
                if is_listed or row[_KEY] in failing:
                    self._look_at(ledger, row, at, is_listed=is_listed)

    def _look_at(self, ledger: Ledger, row: Row, now: float, *, is_listed: bool) -> None:
        kind = self._kind(row[_KEY])
        at = min(int(row[_AT]) / 1000, now)
        for outcome in kind.outcomes:
            if outcome.failure is not None:
                ledger.fail(outcome.pool, outcome.failure, at)
            elif not is_listed:
                continue
            if not ledger.has_room:
                ledger.leave_out()
                continue
            ledger.list(_answered(row, at, outcome, is_timed=outcome is kind.timed))

    # -- how a request ended -----------------------------------------------------------------------------------

    def _kind(self, key: bytes) -> _Kind:
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _MOST_KNOWN:
                self._kinds.clear()
            kind = self._kinds[key] = self._learned(key)
        return kind

    def _learned(self, key: bytes) -> _Kind:
        try:
            backend, server, status, state, retries = key.decode(errors="replace").split(" ")
            ended = _Ended(self._pools[backend], server, int(status), state, int(retries.lstrip("+")))
        except (KeyError, ValueError):
            return _FOREIGN
        outcomes = tuple(_outcomes(ended))
        if not outcomes:
            return _FOREIGN
        is_timed = outcomes[-1].failure not in (Failure.CONNECT, Failure.CLOSED)
        return _Kind(outcomes, outcomes[0] if is_timed else None, any(one.failure is not None for one in outcomes))

    def _bucket(self, timers: bytes) -> int | None:
        known = self._buckets
        if timers not in known:
            if len(known) >= _MOST_KNOWN:
                known.clear()
            value = milliseconds(timers)
            known[timers] = None if value is None else Histogram.index(max(value, _LEAST_MS))
        return known[timers]


class _Source:
    """The lines of one frontend of one process.

    Threads send in another order than they number, so that a gap counts when it is still there a reading later.
    """

    __slots__ = ("_first", "_gap", "_newest", "_received", "_told")

    def __init__(self, first: int) -> None:
        self._first = first
        self._newest = first - 1
        self._received = self._gap = self._told = 0

    def count(self, newest: int, received: int) -> None:
        """So many lines came, and the highest number among them."""
        self._newest = max(self._newest, newest)
        self._received += received

    def lost(self) -> int:
        """How many are missing that were not told of."""
        gap = self._newest - self._first + 1 - self._received
        lasting, self._gap = min(gap, self._gap), gap
        lost = max(0, lasting - self._told)
        self._told += lost
        return lost

    @property
    def is_gaping(self) -> bool:
        """Whether something may have to be told of that was not yet."""
        return self._gap > self._told


def _answered(row: Row, at: float, outcome: Outcome, *, is_timed: bool) -> Answered:
    path, request_id = row[_PATH], row[_REST].partition(b"\t")[0]
    return Answered(
        at,
        outcome.pool.service,
        outcome.pool.color,
        shown(row[_METHOD], "method"),
        "" if row[_METHOD] == _TCP else shown(path, "path"),
        outcome.status,
        milliseconds(row[_TIMERS]) if is_timed else None,
        "" if request_id == b"-" else shown(request_id, "id"),
        outcome.failure,
    )


def _is_listed(method: bytes) -> bool:
    return method != _TCP and not is_idempotent(method.decode(errors="replace"))


def milliseconds(timers: bytes) -> float | None:
    """Until the answer began, from when the request was complete; without an answer until it ended. None: garbage."""
    try:
        queued, connected, answered, all_of_it = map(int, timers.split(b"/"))
    except ValueError:
        return None
    if min(queued, connected, answered) >= 0:
        return float(queued + connected + answered)
    return float(all_of_it) if all_of_it >= 0 else None


def _outcomes(ended: _Ended) -> Iterator[Outcome]:
    """What this means for whom: for the color that was asked first, and under the shield for the one that was next."""
    failure = _failure(ended)
    if failure is None and (ended.server == _NO_SERVER or ended.state == _QUIET):
        return  # HAProxy answered by itself, or the client went before it came to a server
    if ended.pool != ended.backend:
        yield Outcome(ended.backend, 0, Failure.REPLAY)
    if failure is None and (ended.status < 0 or ended.state[:1] in _NOBODYS):
        yield Outcome(ended.pool, ended.status if ended.status > 0 else _CLIENT_LEFT, is_neutral=True)
    elif failure is None and ended.retries > 0 and ended.pool == ended.backend:
        yield Outcome(ended.pool, ended.status, Failure.REPLAY)
    else:
        yield Outcome(ended.pool, max(0, ended.status), failure)


def _failure(ended: _Ended) -> Failure | None:
    if ended.status == _SWITCHED:  # a WebSocket: its end says nothing
        return None
    if ended.state == _SILENT:
        return Failure.TIMEOUT
    failure = _BY_STATE.get(ended.state[:1], {}).get(ended.state[1:2])
    if failure is None and ended.status >= 500 and ended.server != _NO_SERVER:
        failure = Failure.TIMEOUT if ended.status == 504 else Failure.STATUS
    return failure


def _look_at_connections(rows: Sequence[Row]) -> None:
    """Of `mode: tcp`, whether a server that let its time pass had been asked for something, and had said anything."""
    for row in rows:
        if row[_METHOD] == _TCP and b" sD " in row[_KEY]:
            sent, _, answered = row[_PATH].partition(b"/")
            state = "--" if answered != b"0" else _QUIET if sent == b"0" else _SILENT
            row[_KEY] = row[_KEY].replace(b" sD ", f" {state} ".encode())


def _is_notice(row: Row) -> bool:
    """Whether that is none of our lines: HAProxy tells of servers on the same way."""
    return len(row) < _FIELDS and MARK not in row[:2]


def _pools(config: Config) -> dict[str, PoolKey]:
    """Backends by name."""
    name_of = pool_name if config.balancer.managed else guest_pool_name
    pools: dict[str, PoolKey] = {}
    for service in config.services:
        for color in Color:
            name = name_of(service, color)
            pools[shielded_name(name)] = pools[name] = PoolKey(service, color)
    return pools
