r"""Real traffic as nginx tells it: an access log in lbswitch's own format (templates/nginx/log.conf.j2).

    POOL SERVERS STATUSES STATUS METHOD .. HEADER_TIMES .. TIME TIMES BYTES_SENT REQUEST_ID PATH

Fields are separated by a tab, and where `..` stands by two. What is before the first `..` is the same in most lines,
and is understood once; of most lines only the time until the server's answer began is looked at besides. SERVERS,
STATUSES and the other plurals are lists when nginx tried several servers: `127.0.0.1:9102, 127.0.0.1:9101`.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lbswitch.core import traffic_files
from lbswitch.core.config import Config
from lbswitch.core.evidence import Failure
from lbswitch.core.model import Color, PoolKey
from lbswitch.core.names import guest_pool_name, pool_name
from lbswitch.core.values import parse_endpoint
from lbswitch.ports import Answered, Reading
from lbswitch.traffic.counting import Buckets, Ledger, Outcome, is_idempotent, shown
from lbswitch.traffic.lease import Lease
from lbswitch.traffic.tail import Tail

_SPLIT = re.compile(rb", | : ")
_MOST_SHAPES = 20_000
_BEHIND_S = 2.0
_RESOLUTION_MS = 0.5  # nginx tells whole ms; 0 is less than one
_CLIENT_LEFT = 499
_BAD_GATEWAY, _GATEWAY_TIMEOUT = 502, 504


def log_path(config: Config) -> Path:
    """The log: in the prefix of a managed nginx, where its configuration names it without a directory."""
    state_dir = Path(config.agent.state_dir)
    if config.balancer.managed:
        return state_dir / traffic_files.MANAGED_PREFIX / traffic_files.MANAGED_LOG
    return state_dir / traffic_files.GUEST_LOG


class NginxTraffic:
    """Satisfies `lbswitch.ports.Reader`."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since the epoch. Nothing is read or written yet."""
        state_dir = Path(config.agent.state_dir)
        self._clock = clock
        self._log = log_path(config)
        self._directory = state_dir / traffic_files.DIRECTORY
        self._tail = Tail(self._log, self._directory / "position")
        self._lease = Lease(state_dir / traffic_files.LEASE)
        self._is_guest = not config.balancer.managed
        self._output = config.balancer.output_dir
        self._lines = Lines(Pools.of(config))
        self._trouble: str | None = None
        self._lock = threading.Lock()  # a reading may be under way when its caller gives up and closes
        self._is_started = self._is_open = False
        self._is_silent = True

    @property
    def problem(self) -> str | None:
        """What keeps it from reading. That nothing was ever logged is one with an owner's nginx alone."""
        if self._trouble is None and self._is_guest and self._is_silent:
            return (
                "nginx has told of no request yet: there was none, or its owner does not include "
                f"{self._output}/current/traffic.conf in the server blocks (docs/evidence.md)"
            )
        return self._trouble

    def start(self) -> None:
        """Have nginx log from now on."""
        with self._lock:
            self._is_started = True
            self._attempt(self._open)

    def read(self) -> Reading:
        """What was logged since the last call; nothing after `close`."""
        with self._lock:
            now = self._clock()
            data = (self._attempt(lambda: self._look(now)) if self._is_started else None) or b""
            self._is_silent = self._is_silent and not data
            return self._lines.count(data, now)

    def _look(self, now: float) -> bytes:
        if not self._is_open:
            self._open()
        self._lease.renew(now)
        data = self._tail.read(now)
        self._lines.lost += self._tail.lost
        self._tail.lost = 0
        self._tail.tidy(now)
        return data

    def _open(self) -> None:
        now = self._clock()
        for each in (self._directory, self._log.parent):
            each.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._directory.chmod(0o755)  # the workers look for the lease, whatever the umask is
        self._tail.open(now)
        self._is_open = True
        self._lease.renew(now)

    def _attempt(self, do: Callable[[], bytes | None]) -> bytes | None:
        try:
            data = do()
        except OSError as error:
            self._trouble = (
                f"what nginx logs of real traffic can't be read: {error.strerror or error}: "
                f"{error.filename or self._log}; let the agent's user write there, or remove what somebody else made"
            )
            return None
        self._trouble = None
        return data

    def update(self, config: Config) -> None:
        """Other services or servers. The state directory is the same."""
        self._lines.pools = Pools.of(config)

    def close(self) -> None:
        """Have nginx log no more."""
        with self._lock:
            self._lease.end()
            self._tail.close()
            self._is_started = self._is_open = False


@dataclass(frozen=True)
class Pools:
    """Which names and addresses in the log are whose."""

    names: Mapping[bytes, PoolKey]
    servers: Mapping[tuple[str, bytes], Color]

    @classmethod
    def of(cls, config: Config) -> Pools:
        """Those of a configuration. Addresses that both colors list tell nothing, and are left out."""
        name_of = pool_name if config.balancer.managed else guest_pool_name
        names = {
            name_of(service, color).encode(): PoolKey(service, color) for service in config.services for color in Color
        }
        found: dict[tuple[str, bytes], set[Color]] = {}
        for name, service in config.services.items():
            for color in Color:
                for address in service.pool(color).servers:
                    found.setdefault((name, str(parse_endpoint(address)).encode()), set()).add(color)
        return cls(names, {key: next(iter(colors)) for key, colors in found.items() if len(colors) == 1})

    def pool(self, name: bytes) -> PoolKey | None:
        """Of `shop_green`, or of `shop_green_shielded`, which has the other color's servers besides."""
        return self.names.get(name) or self.names.get(name.rpartition(b"_")[0])


class _Shape:
    """What all lines that begin alike have in common.

    For each outcome `tries` has which of the servers that were tried it is about; `is_plain` when there is nothing
    more to look at in the line.
    """

    __slots__ = ("is_listed", "is_plain", "method", "outcomes", "tries")

    def __init__(self, outcomes: tuple[Outcome, ...], tries: tuple[int, ...], method: bytes) -> None:
        self.outcomes = outcomes
        self.tries = tries
        self.method = method
        self.is_listed = not is_idempotent(method.decode(errors="replace"))
        self.is_plain = not self.is_listed and all(one.failure is None and not one.is_neutral for one in outcomes)


_FOREIGN = _Shape((), (), b"GET")
_GARBAGE = _Shape((), (), b"GET")


class Lines:
    """Counts lines. `pools` may be replaced from any thread."""

    def __init__(self, pools: Pools) -> None:
        """`pools` say what is whose."""
        self.pools = pools
        self.lost = 0
        self._shapes: dict[bytes, _Shape] = {}
        self._shapes_of = pools
        self._learned: dict[tuple[str, bytes], Color] = {}
        self._times = Buckets(1000, _RESOLUTION_MS)
        self._known_times: dict[bytes, tuple[int | None, ...]] = {}

    def count(self, data: bytes, now: float) -> Reading:
        """What these complete lines say; `now` is when they were read, in seconds since the epoch."""
        self._begin()
        ledger = Ledger()
        order: list[_Shape] = []
        times: list[bytes] = []
        special: list[tuple[_Shape, bytes, bytes]] = []
        rest = b""
        shapes = self._shapes
        lines = data.split(b"\n")
        for line in lines:
            try:
                start, time_text, rest = line.split(b"\t\t", 2)
            except ValueError:
                ledger.lost += bool(line)
                continue
            shape = shapes.get(start) or self._learn(start)
            order.append(shape)
            times.append(time_text)
            if not shape.is_plain:
                special.append((shape, time_text, rest))
        for (shape, time_text), number in Counter(zip(order, times, strict=True)).items():
            self._add(ledger, shape, time_text, number)
        for shape, time_text, tail in special:
            self._look_at(ledger, shape, time_text, tail, now)
        ledger.lost += self.lost
        self.lost = 0
        return ledger.close(_up_to(rest, now), (shape.outcomes for shape in reversed(order)))

    def _begin(self) -> None:
        if self._shapes_of is not self.pools or len(self._shapes) > _MOST_SHAPES:
            self._shapes_of = self.pools
            self._shapes = {}
            self._learned = {}
        if len(self._known_times) > _MOST_SHAPES:
            self._known_times = {}

    def _add(self, ledger: Ledger, shape: _Shape, time_text: bytes, number: int) -> None:
        """Many lines that begin alike and took as long."""
        buckets = self._buckets(time_text)
        if shape is _GARBAGE or not buckets:
            ledger.lost += number
            return
        for outcome, place in zip(shape.outcomes, shape.tries, strict=True):
            ledger.count(outcome, buckets[place] if place < len(buckets) else None, number)

    def _buckets(self, time_text: bytes) -> tuple[int | None, ...]:
        """Of each server that was tried; empty when it is garbage."""
        known = self._known_times.get(time_text)
        if known is None:
            parts = _SPLIT.split(time_text)
            is_garbage = any(part != b"-" and self._times.bucket(part) is None for part in parts)
            known = self._known_times[time_text] = () if is_garbage else tuple(map(self._times.bucket, parts))
        return known

    # -- lines that are looked at one by one -----------------------------------------------------------------------

    def _look_at(self, ledger: Ledger, shape: _Shape, time_text: bytes, rest: bytes, now: float) -> None:
        """Say how it failed, and list it."""
        try:
            at_text, took, sent, request_id, path = rest.split(b"\t", 4)
            at = min(float(at_text), now)
        except ValueError:
            return
        headers = _SPLIT.split(time_text)
        for outcome, place in zip(shape.outcomes, shape.tries, strict=True):
            failure = outcome.failure
            answered, lasted = _part(headers, place), _part(_SPLIT.split(took), place)
            if failure is not None and failure is not Failure.REPLAY:
                failure = _kind(outcome.status, answered, _part(_SPLIT.split(sent), place))
            if failure is not None:
                ledger.fail(outcome.pool, failure, at)
            bucket = self._times.bucket(lasted)
            if answered == b"-" and bucket is not None and (failure is Failure.TIMEOUT or outcome.is_neutral):
                ledger.late(outcome.pool, bucket)
            if failure is None and not shape.is_listed:
                continue
            if not ledger.has_room:
                ledger.leave_out()
                continue
            ledger.list(
                Answered(
                    at,
                    outcome.pool.service,
                    outcome.pool.color,
                    shown(shape.method, "method"),
                    shown(path, "path"),
                    outcome.status,
                    self._times.ms(answered if answered != b"-" else lasted),
                    "" if request_id == b"-" else shown(request_id, "id"),
                    failure,
                )
            )

    # -- how lines begin -------------------------------------------------------------------------------------------

    def _learn(self, start: bytes) -> _Shape:
        shape = self._shapes[start] = self._made(start)
        return shape

    def _made(self, start: bytes) -> _Shape:
        fields = start.split(b"\t")
        if len(fields) != 5 or not fields[3].isdigit():
            return _GARBAGE
        name, servers, statuses, status, method = fields
        pool = self._shapes_of.pool(name)
        if pool is None or servers == b"-":  # not ours, or answered by nginx alone
            return _FOREIGN
        tried, answers = _SPLIT.split(servers), _SPLIT.split(statuses)
        if len(tried) != len(answers):
            return _GARBAGE
        colors = [self._color(pool, one, is_pure=name in self._shapes_of.names) for one in tried]
        last = {color: place for place, color in enumerate(colors)}
        outcomes = tuple(
            self._outcome(PoolKey(pool.service, color), answers[place], int(status), colors, place)
            for color, place in last.items()
        )
        return _Shape(outcomes, tuple(last.values()), method)

    def _color(self, pool: PoolKey, server: bytes, *, is_pure: bool) -> Color:
        """Whose server that is. nginx tells addresses, so those of names are learned where no others can be."""
        key = (pool.service, server)
        if is_pure:
            self._learned[key] = pool.color
            return pool.color
        return self._shapes_of.servers.get(key) or self._learned.get(key) or pool.color

    def _outcome(self, pool: PoolKey, answer: bytes, status: int, colors: list[Color], place: int) -> Outcome:
        said = int(answer) if answer.isdigit() else status
        if place < len(colors) - 1:
            return Outcome(pool, said, Failure.REPLAY)
        if status == _CLIENT_LEFT or (not answer.isdigit() and said < 500):
            return Outcome(pool, status, is_neutral=True)
        if said >= 500:
            return Outcome(pool, said, Failure.STATUS)
        return Outcome(pool, said, Failure.REPLAY if colors.count(pool.color) > 1 else None)


def _part(parts: list[bytes], place: int) -> bytes:
    return parts[place] if place < len(parts) else b"-"


def _kind(status: int, answered: bytes, sent: bytes) -> Failure:
    """How a request failed. nginx gives its own 502 and 504 to servers that did not answer."""
    if answered != b"-":
        return Failure.STATUS
    if status == _GATEWAY_TIMEOUT:
        return Failure.TIMEOUT
    if status == _BAD_GATEWAY:
        return Failure.CONNECT if sent in (b"0", b"-") else Failure.CLOSED
    return Failure.STATUS


def _up_to(rest: bytes, now: float) -> float:
    """Up to when everything was read: until now, unless the newest line is old, and there is a backlog."""
    try:
        newest = float(rest.partition(b"\t")[0])
    except ValueError:
        return now
    return newest if 0 <= now - newest < 3600 and now - newest > _BEHIND_S else now
