"""Long answers and WebSockets through a service, read all at once by one thread that notes how each of them ended."""

import base64
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.wait import wait_until


class Stream:
    """`GET /stream` of the example application; `whole` says whether its end came as announced."""

    def __init__(self, port: int, chunks: int, pause_ms: int = 100) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        request = f"GET /stream?n={chunks}&ms={pause_ms} HTTP/1.1\r\nHost: app\r\n\r\n"
        self.connection.sendall(request.encode())
        self.content = b""
        self.ended_at: float | None = None

    @property
    def color(self) -> str | None:
        """Who answers; None before the first line of the content."""
        head, separator, body = self.content.partition(b"\r\n\r\n")
        if not separator or body.count(b"\r\n") < 2:
            return None
        return "blue" if b"x-app: blue" in head.lower() else "green"

    @property
    def whole(self) -> bool:
        """Whether all of it came."""
        return self.content.endswith(b"\r\n0\r\n\r\n")

    @property
    def broken(self) -> bool:
        """Whether it ended before its end."""
        return self.ended_at is not None and not self.whole

    def read(self) -> bool:
        """Take in what there is; False at the end."""
        try:
            data = self.connection.recv(65536)
        except OSError:
            data = b""
        self.content += data
        if not data or self.whole:
            self.ended_at = time.monotonic()
        return self.ended_at is None


class Streams:
    """Reads them in a thread of its own, so that each end is noted when it comes."""

    def __init__(self) -> None:
        self.all: list[Stream] = []
        self._selector = selectors.DefaultSelector()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def open(self, port: int, count: int, color: str, chunks: int = 600) -> list[Stream]:
        """So many, which are answered by that color by now."""
        opened = [Stream(port, chunks) for _ in range(count)]
        self.all += opened
        for stream in opened:
            self._selector.register(stream.connection, selectors.EVENT_READ, stream)
        wait_until(lambda: all(stream.color == color for stream in opened), f"{count} streams are open to {color}")
        return opened

    def _run(self) -> None:
        while not self._stopped.is_set():
            for key, _ in self._selector.select(0.02):
                stream: Stream = key.data
                if not stream.read():
                    self._selector.unregister(stream.connection)

    @contextmanager
    def running(self) -> Iterator["Streams"]:
        """Until the end of the block, which closes what is still open."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            self._thread.join()
            self._selector.close()
            for stream in self.all:
                stream.connection.close()


def close(streams: list[Stream]) -> None:
    """The clients go away."""
    for stream in streams:
        stream.connection.shutdown(socket.SHUT_RDWR)


class WebSocket:
    """A client of the example application's `/ws` (RFC 6455), as a context manager."""

    def __init__(self, port: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        key = base64.b64encode(os.urandom(16)).decode()
        self._connection.sendall(
            f"GET /ws HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            part = self._connection.recv(4096)
            assert part, answer
            answer += part
        assert answer.startswith(b"HTTP/1.1 101 "), answer

    def echo(self, text: str) -> str:
        """What comes back: the color and the text."""
        data, mask = text.encode(), os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
        self._connection.sendall(bytes([0x81, 0x80 | len(data)]) + mask + masked)
        head = self._exactly(2)
        return self._exactly(head[1] & 0x7F).decode()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._connection.recv(size - len(data))
            assert part, "the WebSocket was closed"
            data += part
        return data

    def __enter__(self) -> "WebSocket":
        return self

    def __exit__(self, *_: Any) -> None:
        self._connection.close()
