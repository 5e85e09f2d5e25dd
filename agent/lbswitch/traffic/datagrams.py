"""A unix datagram socket whose queue is emptied at all times.

The kernel queues few datagrams (`net.unix.max_dgram_qlen`, often 10) and a sender that does not wait loses what does
not fit, so emptying it every now and then is not enough. Threads sit in recvmmsg(2), which goes on taking datagrams
as they come without holding Python's lock, until its time is over or its buffer is full. There are two of them: while
one hands over what it took, the other is in the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

LONGEST = 4096
"""Bytes of one datagram that are kept."""
_AT_ONCE = 256  # datagrams that one call takes
_MOST_WAITING = 100_000  # datagrams that are kept while nobody takes them
_TAKING_S = 0.01
_THREADS = 2
_LEAVING_S = 2.0


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """`struct msghdr`."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """`struct mmsghdr`."""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Buffer:
    """Room for what one call takes."""

    def __init__(self) -> None:
        self._room = ctypes.create_string_buffer(_AT_ONCE * LONGEST)
        start = ctypes.addressof(self._room)
        self._vectors = (_Vector * _AT_ONCE)(*(_Vector(start + i * LONGEST, LONGEST) for i in range(_AT_ONCE)))
        self._messages = (_Message * _AT_ONCE)()
        for message, vector in zip(self._messages, self._vectors, strict=True):
            message.header.vectors = ctypes.pointer(vector)
            message.header.vector_count = 1
        self._view = memoryview(self._room).cast("B")
        self._step = ctypes.sizeof(_Message) // 4
        self._lengths = memoryview(self._messages).cast("B").cast("I")[_Message.length.offset // 4 :: self._step]
        self._recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg

    def fill(self, descriptor: int) -> list[bytes]:
        """What comes within the time of one call, at least one datagram if there is one."""
        patience = _Timespec(0, int(_TAKING_S * 1e9))
        count = self._recvmmsg(descriptor, self._messages, _AT_ONCE, 0, ctypes.byref(patience))
        view, lengths = self._view, self._lengths
        return [bytes(view[i * LONGEST : i * LONGEST + lengths[i]]) for i in range(max(0, count))]


class Datagrams:
    """Takes what is sent to a path from `open` to `close`."""

    def __init__(self, path: Path) -> None:
        """Nothing is bound yet."""
        self.path = path
        self.has_received = False
        self._socket: socket.socket | None = None
        self._stop: tuple[int, int] | None = None
        self._threads: list[threading.Thread] = []
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        self._inode = 0

    def open(self, owner: tuple[int, int], mode: int) -> None:
        """Bind, in the place of a socket that is there already; `owner` is who may send, by user and group.

        Raises: OSError.
        """
        receiving = _bound(self.path, owner, mode)
        self._inode = self.path.stat().st_ino
        self._socket = receiving
        self._stop = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._threads = [
            threading.Thread(target=self._receive, args=(receiving, self._stop[0]), name="traffic", daemon=True)
            for _ in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_open(self) -> bool:
        """Whether it is bound, and its path still leads to a socket."""
        return self._socket is not None and self.path.is_socket()

    def _receive(self, receiving: socket.socket, stop: int) -> None:
        buffer, poll = _Buffer(), select.poll()
        poll.register(receiving, select.POLLIN)
        poll.register(stop, select.POLLIN)
        while True:
            if any(descriptor == stop for descriptor, _ in poll.poll()):
                return
            taken = buffer.fill(receiving.fileno())
            if taken:
                self._keep(taken)

    def _keep(self, taken: list[bytes]) -> None:
        with self._lock:
            self.has_received = True
            if len(self._waiting) + len(taken) > _MOST_WAITING:
                return  # nobody takes them: the agent hangs
            self._waiting += taken

    def take(self) -> Sequence[bytes]:
        """What came since the last call, nearly in the order in which it came."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def close(self) -> None:
        """Stop, and remove the socket: senders then send to nobody. Never raises."""
        if self._socket is None or self._stop is None:
            return
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        os.write(self._stop[1], b"x")
        for thread in self._threads:
            thread.join(_LEAVING_S)
        self._socket.close()
        for descriptor in self._stop:
            os.close(descriptor)
        self._socket = self._stop = None


def _bound(path: Path, owner: tuple[int, int], mode: int) -> socket.socket:
    """A socket that blocks for as long as one call takes, at most. Raises: OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    new = path.with_name(f".{path.name}.new")
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(_TAKING_S * 1e6)))
        new.unlink(missing_ok=True)
        made.bind(str(new))
        os.chown(new, *owner)
        new.chmod(mode)
        new.rename(path)
    except OSError:
        made.close()
        raise
    return made
