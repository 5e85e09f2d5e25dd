"""Clients whose connections last: a response that goes on, a WebSocket, one that is idle between requests."""

import base64
import http.client
import os
import socket
from typing import Self

_TIMEOUT_S = 10


class _Client:
    """A connection to a port of this host; closed at the end of the block."""

    def __init__(self, port: int, host: str = "shop.example") -> None:
        self.host = host
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream(_Client):
    """A response of the example application without an end, of which one line at a time is read."""

    def __init__(self, port: int, host: str = "shop.example") -> None:
        super().__init__(port, host)
        self.socket.sendall(f"GET /stream?n=1000000&ms=20 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        self.answer = http.client.HTTPResponse(self.socket)
        self.answer.begin()
        assert self.answer.status == 200
        self.color = self._line().split()[0].decode()

    def _line(self) -> bytes:
        try:
            return self.answer.readline()
        except (http.client.IncompleteRead, ConnectionError):
            return b""

    def goes_on(self) -> bool:
        """Whether another line comes."""
        return self._line().startswith(self.color.encode())

    def has_ended(self) -> bool:
        """Whether what is on its way comes to an end within the timeout."""
        while self._line():
            pass
        return True

    def close(self) -> None:
        self.answer.close()
        super().close()


class WebSocket(_Client):
    """One kind of frame: short text, which the example application echoes."""

    def __init__(self, port: int, host: str = "shop.example") -> None:
        super().__init__(port, host)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        assert b" 101 " in head.splitlines()[0]

    def goes_on(self) -> bool:
        """Whether it echoes."""
        self.socket.sendall(bytes([0x81, 0x80 | 4]) + b"\0\0\0\0" + b"ping")
        _, length = self.socket.recv(2, socket.MSG_WAITALL)
        return self.socket.recv(length, socket.MSG_WAITALL).endswith(b":ping")

    def has_ended(self) -> bool:
        """Whether it comes to an end within the timeout."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


class Idle(_Client):
    """A connection that is kept open between requests."""

    def __init__(self, port: int, host: str = "shop.example") -> None:
        super().__init__(port, host)
        assert self.color()

    def color(self) -> str:
        """Which application answers on this very connection."""
        self.socket.sendall(f"GET / HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(self.socket)
        answer.begin()
        return answer.read().decode().split()[0]
