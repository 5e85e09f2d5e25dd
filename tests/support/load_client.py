#!/usr/bin/env python3
"""The process behind `tests.support.load`; as a program it sends for some seconds and prints its report as JSON.

    python -m tests.support.load_client --port 8080 --rate 500 --duration 5

One thread, one selector, plain sockets: 1,000 requests a second cost a fraction of a core.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import os
import selectors
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.load_report import Failure, Report, Tally, milliseconds

_RING = 200  # failures kept in full
_PHASES = 10_000
_HEAD_MAX = 65_536
_BODY_MAX = 8 << 20
_IN_FLIGHT_MAX = 800  # below the usual limit of 1,024 open files
_DRAIN_S = 0.05  # how often the drain looks whether a request has timed out
_REFUSED = {errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset", errno.ETIMEDOUT: "timeout", errno.EPIPE: "reset"}


class _Garbled(Exception):
    """Not an HTTP response."""


class _Response:
    """One response, fed piece by piece."""

    def __init__(self) -> None:
        self.status = 0
        self.app = self.version = ""
        self.keeps = True
        self.is_complete = False
        self.buffer = bytearray()
        self._length: int | None = None  # None: until the connection ends
        self._is_chunked = False

    def feed(self, data: bytes) -> None:
        """Take what arrived. Raises: _Garbled."""
        self.buffer += data
        if not self.status:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self.buffer) > _HEAD_MAX:
                    raise _Garbled
                return
            head = bytes(self.buffer[:end])
            del self.buffer[: end + 4]
            self._read_head(head)
        if self._is_chunked:
            self._read_chunks()
        elif self._length is not None:
            self.is_complete = len(self.buffer) >= self._length
        if len(self.buffer) > _BODY_MAX:
            raise _Garbled

    def end(self) -> None:
        """The connection ended: a body without a length is complete with it."""
        if self.status and self._length is None and not self._is_chunked:
            self.is_complete = True

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        parts = first.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise _Garbled
        self.status = int(parts[1])
        self.keeps = parts[0] != b"HTTP/1.0"
        for line in lines:
            name, _, value = line.partition(b":")
            self._read_field(name.lower(), value.strip())
        if self.status in (204, 304) or 100 <= self.status < 200:
            self._length = 0

    def _read_field(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            if not value.isdigit():
                raise _Garbled
            self._length = int(value)
        elif name == b"transfer-encoding":
            self._is_chunked = value.lower() == b"chunked"
        elif name == b"connection":
            self.keeps = value.lower() != b"close"
        elif name == b"x-app":
            self.app = value.decode("latin-1")[:64]
        elif name == b"x-version":
            self.version = value.decode("latin-1")[:64]

    def _read_chunks(self) -> None:
        while (end := self.buffer.find(b"\r\n")) >= 0:
            try:
                size = int(self.buffer[:end].split(b";")[0], 16)
            except ValueError:
                raise _Garbled from None
            if len(self.buffer) < end + 2 + size + 2:
                return
            del self.buffer[: end + 2 + size + 2]
            if size == 0:
                self.is_complete = True
                return


@dataclass(eq=False, slots=True)
class _Connection:
    """A socket and the request that is on it; `response` is None while idle."""

    sock: socket.socket
    is_fresh: bool
    keeps: bool
    is_connected: bool = False
    sent: float = 0.0
    left: bytes = b""
    response: _Response | None = None

    def is_closed_by_peer(self) -> bool:
        """Whether the end, or anything else nobody asked for, has arrived."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send where; `new_connections` is the share (0..1) of requests that get a connection of their own."""

    host: str
    port: int
    rate: float = 300.0
    connections: int = 8
    new_connections: float = 0.5
    path: str = "/"
    timeout_s: float = 2.0
    duration_s: float = 120.0

    def request(self, *, keeps: bool) -> bytes:
        """The request line and header."""
        connection = "keep-alive" if keeps else "close"
        return f"GET {self.path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: {connection}\r\n\r\n".encode()


@dataclass(slots=True)
class _Pacer:
    """How many requests of one kind are due; past one second's worth they are given up."""

    rate: float
    send: Callable[[], bool]
    advanced_at: float
    due: float = 0.0
    skipped: int = 0

    def advance(self, now: float) -> None:
        """Add what became due since the last time."""
        self.due += (now - self.advanced_at) * self.rate
        self.advanced_at = now
        surplus = math.floor(self.due - max(self.rate, 1.0))
        if surplus > 0:
            self.skipped += surplus
            self.due -= surplus


class _Client:
    """Sends, and counts."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._request = {keeps: plan.request(keeps=keeps) for keeps in (True, False)}
        found = socket.getaddrinfo(plan.host, plan.port, type=socket.SOCK_STREAM)[0]
        self._family, self._address = found[0], found[4]
        self._selector = selectors.DefaultSelector()
        self._idle: deque[_Connection] = deque()
        self._kept = 0  # keep-alive connections, idle or not
        self._in_flight: dict[_Connection, None] = {}  # oldest first
        self._failures: deque[Failure] = deque(maxlen=_RING)
        self._said = b""  # what the parent has written, up to an unfinished line
        self._reopened = self._opened = 0
        self._started = time.monotonic()
        rates = (plan.rate * (1 - plan.new_connections), plan.rate * plan.new_connections)
        self._pacers = [
            _Pacer(rate, send, self._started)
            for rate, send in zip(rates, (self._send_kept, self._send_fresh), strict=True)
        ]
        self._tallies = [Tally("start", self._started)]

    # The outside

    def mark(self, name: str) -> float:
        """Begin a phase and return when."""
        if len(self._tallies) >= _PHASES:
            raise RuntimeError(f"more than {_PHASES} marks")
        now = time.monotonic()
        oldest = next(iter(self._in_flight), None)
        self._tallies.append(Tally(name, now, len(self._in_flight), now - oldest.sent if oldest else 0.0))
        return now

    def report(self) -> Report:
        """Everything so far."""
        now = time.monotonic()
        ends = [tally.started for tally in self._tallies[1:]] + [now]
        phases = tuple(tally.report(end) for tally, end in zip(self._tallies, ends, strict=True))
        lost: Counter[str] = Counter()
        for tally in self._tallies:
            lost += tally.lost
        return Report(
            sent=sum(phase.sent for phase in phases),
            answered=sum(phase.answered for phase in phases),
            lost=sum(phase.lost for phase in phases),
            in_flight=len(self._in_flight),
            skipped=sum(pacer.skipped for pacer in self._pacers),
            reopened=self._reopened,
            opened=self._opened,
            lost_by_kind=dict(lost),
            duration_s=round(now - self._started, 3),
            cpu_s=round(time.process_time(), 3),
            phases=phases,
            failures=tuple(self._failures),
        )

    def run(self, control: int | None) -> None:
        """Send until told to stop, the parent is gone, or the duration is over; then let every request end.

        `control` is the descriptor on which the parent writes its commands.
        """
        if control is not None:
            self._selector.register(control, selectors.EVENT_READ, None)
        deadline = self._started + self.plan.duration_s
        while time.monotonic() < deadline:
            self._pace()
            if not self._turn(0.001, control):
                break
        if control is not None:
            self._selector.unregister(control)
        while self._in_flight:  # at most the timeout of a request
            self._turn(_DRAIN_S, None)

    def close(self) -> None:
        """Close every connection."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Connection):
                self._drop(key.data)
        self._selector.close()

    def _turn(self, wait_s: float, control: int | None) -> bool:
        """Handle what happened; False when told to stop."""
        goes_on = True
        for key, events in self._selector.select(wait_s):
            if key.data is not None:
                self._happened(key.data, events)
            elif control is not None:
                goes_on = self._obey(control)
        self._expire()
        return goes_on

    def _obey(self, control: int) -> bool:
        """Answer the commands that arrived, each with a line of JSON; False for stop, or when the parent is gone."""
        data = os.read(control, 65536)
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            command, _, argument = line.decode().partition(" ")
            if command == "mark":
                print(json.dumps({"mark": argument, "at_s": self.mark(argument)}), flush=True)
            elif command == "report":
                print(json.dumps(self.report().to_json()), flush=True)
            else:
                return False
        return bool(data)

    # Sending

    def _pace(self) -> None:
        """Send what is due by now; kept connections that are all busy do not hold up the new ones."""
        now = time.monotonic()
        for pacer in self._pacers:
            pacer.advance(now)
            while pacer.due >= 1 and pacer.send():
                pacer.due -= 1

    def _send_fresh(self) -> bool:
        """Send on a connection of its own; False when too many are open."""
        if len(self._in_flight) >= _IN_FLIGHT_MAX:
            return False
        self._open(keeps=False)
        return True

    def _send_kept(self) -> bool:
        """Send on a kept connection; False when all are busy."""
        if self._kept < self.plan.connections:
            self._kept += 1
            self._open(keeps=True)
            return True
        if not self._idle:
            return False
        connection = self._idle.popleft()
        if connection.is_closed_by_peer():
            self._reopened += 1
            self._drop(connection)
            self._kept += 1
            self._open(keeps=True)
            return True
        connection.is_fresh = False
        self._begin(connection)
        self._write(connection)
        return True

    def _open(self, *, keeps: bool) -> None:
        """A new connection with a request on it."""
        self._opened += 1
        connection = _Connection(socket.socket(self._family, socket.SOCK_STREAM), is_fresh=True, keeps=keeps)
        connection.sock.setblocking(False)
        self._begin(connection)
        code = connection.sock.connect_ex(self._address)
        if code not in (0, errno.EINPROGRESS):
            self._lose(connection, _REFUSED.get(code, "unreachable"))
            return
        self._selector.register(connection.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
        if code == 0:
            connection.is_connected = True
            self._write(connection)

    def _begin(self, connection: _Connection) -> None:
        connection.left = self._request[connection.keeps]
        connection.response = _Response()
        connection.sent = time.monotonic()
        self._in_flight[connection] = None
        self._tallies[-1].sent += 1

    def _write(self, connection: _Connection) -> None:
        try:
            connection.left = connection.left[connection.sock.send(connection.left) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(connection, _REFUSED.get(error.errno or 0, "unreachable"))
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.left else 0)
        if self._selector.get_key(connection.sock).events != wanted:
            self._selector.modify(connection.sock, wanted, connection)

    # Receiving

    def _happened(self, connection: _Connection, events: int) -> None:
        if connection.response is None:
            self._closed_while_idle(connection)
            return
        if not connection.is_connected and not self._connect(connection):
            return
        if events & selectors.EVENT_WRITE and connection.left:
            self._write(connection)
        if events & selectors.EVENT_READ and connection in self._in_flight:
            self._read(connection)

    def _closed_while_idle(self, connection: _Connection) -> None:
        self._idle.remove(connection)
        self._reopened += 1
        self._drop(connection)

    def _connect(self, connection: _Connection) -> bool:
        code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._lose(connection, _REFUSED.get(code, "unreachable"))
            return False
        connection.is_connected = True
        return True

    def _read(self, connection: _Connection) -> None:
        response = connection.response
        assert response is not None
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(connection, _REFUSED.get(error.errno or 0, "unreachable"))
            return
        try:
            if data:
                response.feed(data)
            else:
                response.end()
        except _Garbled:
            self._lose(connection, "garbled")
            return
        if response.is_complete:
            self._answered(connection, response, is_open=bool(data))
        elif not data:
            self._lose(connection, "truncated" if response.status or response.buffer else "closed")

    def _answered(self, connection: _Connection, response: _Response, *, is_open: bool) -> None:
        if response.status >= 400:
            self._lose(connection, f"http_{response.status}", app=response.app)
            return
        self._tallies[-1].answer(response.app, response.version, connection.sent, time.monotonic())
        del self._in_flight[connection]
        if connection.keeps and response.keeps and is_open:
            connection.response = None
            self._idle.append(connection)
        else:
            self._drop(connection)

    def _lose(self, connection: _Connection, kind: str, app: str = "") -> None:
        now, tally = time.monotonic(), self._tallies[-1]
        del self._in_flight[connection]
        tally.lose(kind, connection.sent, now)
        sent_ms, ended_ms = milliseconds(connection.sent - tally.started), milliseconds(now - tally.started)
        self._failures.append(Failure(tally.name, kind, sent_ms, ended_ms, connection.is_fresh, app))
        self._drop(connection)

    def _expire(self) -> None:
        oldest_allowed = time.monotonic() - self.plan.timeout_s
        while self._in_flight:
            connection = next(iter(self._in_flight))
            if connection.sent > oldest_allowed:
                return
            self._lose(connection, "timeout")

    def _drop(self, connection: _Connection) -> None:
        if connection.keeps:
            self._kept -= 1
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection.sock)
        connection.sock.close()


def main() -> None:
    plan, is_controlled = _parse()
    client = _Client(plan)
    try:
        if is_controlled:
            print("{}", flush=True)
        client.run(sys.stdin.fileno() if is_controlled else None)
        print(json.dumps(client.report().to_json()), flush=True)
    finally:
        client.close()


def _parse() -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--connections", type=int, default=8, help="kept alive")
    parser.add_argument("--new-connections", type=float, default=0.5, help="share of requests on their own connection")
    parser.add_argument("--path", default="/")
    parser.add_argument("--timeout", type=float, default=2.0, dest="timeout_s", help="seconds")
    parser.add_argument("--duration", type=float, default=10.0, dest="duration_s", help="seconds")
    parser.add_argument("--control", action="store_true", help="read mark NAME, report and stop from stdin")
    parser.add_argument("--plan", type=json.loads, help="all of it as JSON")
    options = vars(parser.parse_args())
    is_controlled, plan = options.pop("control"), options.pop("plan")
    return Plan(**(plan or options)), is_controlled


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
