"""Ports of a test's own: held against the other processes of a parallel run, below the ephemeral range."""

import random
import socket
from collections import deque

_FIRST, _LAST = 20000, 32000  # Linux hands out 32768-60999 by itself
_BLOCK = 250
_OF_A_PROCESS = 2 * _BLOCK  # then those that were given first come again, if nobody uses them
_locks: list[socket.socket] = []
_ours: deque[int] = deque()


def free_port() -> int:
    """A TCP port that nobody uses, that no other test process will be given while this one lives, and that this one
    was not given for hundreds of ports.

    A lock for each port would cost a file descriptor for each, and a long run has more ports than select(2) bears.
    """
    for _ in range(_OF_A_PROCESS):
        while len(_ours) < _OF_A_PROCESS and _take_block():
            pass
        port = _ours.popleft()
        _ours.append(port)
        if _is_free(port):
            return port
    raise RuntimeError("no free port")


def _take_block() -> bool:
    """One more block of ports, in any order, if there is one left."""
    for first in random.sample(range(_FIRST, _LAST, _BLOCK), (_LAST - _FIRST) // _BLOCK):
        # A name in the abstract namespace (unix(7)) is a lock that ends with its process and leaves no file.
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0lbswitch-test-ports-{first}")
        except OSError:
            lock.close()
            continue
        _locks.append(lock)
        _ours.extend(random.sample(range(first, first + _BLOCK), _BLOCK))
        return True
    if not _ours:
        raise RuntimeError("no free port: other test processes have them all")
    return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
