"""Ports of a test's own: locked across the processes of a parallel run, below the ephemeral range."""

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

_FIRST, _LAST = 20000, 32000  # Linux hands out 32768-60999 by itself
_held: list[IO[str]] = []


def free_port() -> int:
    """A TCP port that nobody uses and no other test process will be given while this one lives."""
    directory = Path(tempfile.gettempdir()) / f"lbswitch-test-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    for port in random.sample(range(_FIRST, _LAST), _LAST - _FIRST):
        lock = (directory / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        return port
    raise RuntimeError("no free port")
