"""Servers that misbehave on purpose, a thread for each connection."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

Serve = Callable[["Client"], None]


class Client:
    """One connection from a client: what the server reads from it and does to it."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def read_request(self) -> bytes:
        """The head of the next request; raises EOFError when there is none."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            piece = self.socket.recv(4096)
            if not piece:
                raise EOFError
            data += piece
        return data

    def read_frame(self) -> tuple[int, bytes]:
        """Opcode and payload of a client's WebSocket frame."""
        head = self._read(6)
        payload = self._read(head[1] & 127)
        return head[0] & 15, bytes(byte ^ head[2 + i % 4] for i, byte in enumerate(payload))

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def send_frame(self, opcode: int, payload: bytes) -> None:
        self.send(bytes([0x80 | opcode, len(payload)]) + payload)

    def send_with_end(self, data: bytes) -> None:
        """The end of the connection goes in the same segment."""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        self.socket.sendall(data)
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def wait_for_end(self) -> None:
        """Until the client closes."""
        while self.socket.recv(4096):
            pass

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data


@contextlib.contextmanager
def serving(serve: Serve) -> Iterator[int]:
    """The port of a server that hands each connection to `serve` and closes it afterwards."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            connection.settimeout(20)
            serve(Client(connection))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=one, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()
