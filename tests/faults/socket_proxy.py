"""Stands between the agent and HAProxy's master socket, and fails half-way on order."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from pathlib import Path

_PATIENCE_S = 10.0


class SocketProxy:
    """In the place of the socket `path` from `open` to `close`; one thread for each exchange.

    The file `mode` says what happens to exchanges: nothing (they pass), or `MODE AFTER ONCE`, where `AFTER` exchanges
    still pass and, with `ONCE` 1, all but one after them, too. `close` ends the connection before HAProxy has the
    command, `lose` after it has carried it out, so that only the answer is lost, and `hang` answers nothing.
    """

    def __init__(self, path: Path, mode: Path) -> None:
        self._path, self._mode = path, mode
        self._real = path.with_name(f"{path.name}.real")
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._seen = self._inode = 0
        self.hits = 0
        mode.write_text("")

    def open(self) -> None:
        self._path.rename(self._real)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._inode = self._path.stat().st_ino
        self._listener.listen(64)
        self._listener.settimeout(0.1)
        self._threads = [threading.Thread(target=self._accept, args=(self._listener,))]
        self._threads[0].start()

    def close(self) -> None:
        """The real socket is back; a master that made a new one meanwhile keeps that."""
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=30)
        assert self._listener is not None
        self._listener.close()
        if self._path.exists() and self._path.stat().st_ino != self._inode:
            self._real.unlink(missing_ok=True)  # HAProxy has bound its path anew in a reload
        else:
            self._real.rename(self._path)

    def _accept(self, listener: socket.socket) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = listener.accept()
                thread = threading.Thread(target=self._exchange, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _fault(self) -> str:
        """What becomes of this exchange."""
        with self._lock:
            words = self._mode.read_text().split()
            if not words:
                self._seen = 0
                return ""
            mode, after, once = words[0], int(words[1]), words[2] == "1"
            self._seen += 1
            if self._seen <= after or (once and self._seen > after + 1):
                return ""
            self.hits += 1
            return mode

    def _exchange(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(_PATIENCE_S)
            fault = self._fault()
            if fault == "close":
                return
            command = _all(client)
            if fault == "hang":
                while not self._ended.wait(0.05) and not _is_closed(client):
                    pass
                return
            with socket.socket(socket.AF_UNIX) as real:
                real.settimeout(_PATIENCE_S)
                real.connect(str(self._real))
                real.sendall(command)
                real.shutdown(socket.SHUT_WR)
                self._pass_on(real, client, is_lost=fault == "lose")

    def _pass_on(self, real: socket.socket, client: socket.socket, *, is_lost: bool) -> None:
        """As it comes: the master may keep a connection open when a worker has gone, and the client then leaves."""
        while not self._ended.is_set():
            if not select.select([real], [], [], 0.05)[0]:
                if _is_closed(client):
                    return
                continue
            data = real.recv(65536)
            if not data:
                return
            if not is_lost:
                client.sendall(data)


def _all(connection: socket.socket) -> bytes:
    """What the other side says until it has no more to say."""
    found = bytearray()
    while data := connection.recv(65536):
        found += data
    return bytes(found)


def _is_closed(client: socket.socket) -> bool:
    """Whether nobody would read an answer: the whole connection is gone, not just its other half."""
    poll = select.poll()
    poll.register(client, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))
