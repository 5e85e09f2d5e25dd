"""Ports of a test's own: held against the other processes of a parallel run, below the ephemeral range."""

import random
import socket

_FIRST, _LAST = 20000, 32000  # Linux hands out 32768-60999 by itself
_held: list[socket.socket] = []


def free_port() -> int:
    """A TCP port that nobody uses and no other test process will be given while this one lives."""
    for port in random.sample(range(_FIRST, _LAST), _LAST - _FIRST):
        # A name in the abstract namespace (unix(7)) is a lock that ends with its process and leaves no file.
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0lbswitch-test-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        return port
    raise RuntimeError("no free port")
