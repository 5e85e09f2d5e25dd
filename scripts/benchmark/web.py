"""Two small HTTP clients: one look at a port, and a careful client of the agent's unix socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple


class Seen(NamedTuple):
    """An answer: its status, and the header X-Color, empty when there is none."""

    status: int
    color: str


def get(address: str, path: str = "/") -> Seen:
    """One request on a connection of its own. Raises: OSError, http.client.HTTPException."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=5)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return Seen(answer.status, answer.getheader("X-Color", ""))


class Timed(NamedTuple):
    """A request's answer; `sent_ns` is the monotonic clock right before its first byte was written."""

    status: int
    document: Any
    sent_ns: int
    took_ms: float


class UnixClient:
    """Requests to a unix socket on one connection that is kept open and looked at before it is used again.

    The request is put together before the clock starts, and the answer is decoded after it stopped, so the time is
    the server's and the kernel's. A request is never sent twice.
    """

    def __init__(self, path: Path, timeout_s: float = 30.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._sock: socket.socket | None = None

    def request(self, method: str, path: str, body: Any = None) -> Timed:
        """Raises: OSError when the connection fails or the answer is not HTTP with a length."""
        message = _message(method, path, body)
        sock = self._connected()
        sent_ns = time.monotonic_ns()
        sock.sendall(message)
        head, content = _read(sock)
        took_ms = (time.monotonic_ns() - sent_ns) / 1e6
        if b"connection: close" in head.lower():
            self.close()
        return Timed(int(head.split(None, 2)[1]), _decoded(content), sent_ns, took_ms)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _connected(self) -> socket.socket:
        """The connection; a new one when the server has closed it while it was idle."""
        if self._sock is not None and select.select([self._sock], [], [], 0)[0]:
            self.close()
        if self._sock is None:
            self._sock = socket.socket(socket.AF_UNIX)
            self._sock.settimeout(self._timeout_s)
            self._sock.connect(str(self._path))
        return self._sock


def _message(method: str, path: str, body: Any) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def _read(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(sock)
    head, _, content = data.partition(b"\r\n\r\n")
    length = _length(head)
    while len(content) < length:
        content += _received(sock)
    return head, content


def _received(sock: socket.socket) -> bytes:
    chunk = sock.recv(65536)
    if not chunk:
        raise ConnectionError("the connection was closed before the answer was complete")
    return chunk


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ConnectionError(f"an answer without Content-Length: {head[:100]!r}")


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
