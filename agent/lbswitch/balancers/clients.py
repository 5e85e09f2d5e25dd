"""How many connections are open at a listener of this machine, as the kernel's tables say (proc(5), /proc/net/tcp)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lbswitch.core.values import Endpoint

_ESTABLISHED = {"tcp": "01", "unix": "03"}
_TABLES = ("tcp", "tcp6")


def connections(endpoint: Endpoint) -> int | None:
    """Established connections whose near end is this listener's port, anybody's; None when the tables can't be read."""
    try:
        if endpoint.is_unix:
            return sum(1 for path in _unix() if path == endpoint.path)
        return sum(1 for port in _ports() if port == endpoint.port)
    except OSError:
        return None


def _ports() -> Iterator[int]:
    """The local ports of established connections: `sl local_address rem_address st ...`, in hexadecimal."""
    for table in _TABLES:
        path = Path("/proc/net") / table
        if not path.exists():  # a kernel without IPv6
            continue
        for line in path.read_text().splitlines()[1:]:
            words = line.split(maxsplit=4)
            if words[3] == _ESTABLISHED["tcp"]:
                yield int(words[1].rpartition(":")[2], 16)


def _unix() -> Iterator[str]:
    """The paths of connected sockets: `Num RefCount Protocol Flags Type St Inode Path`."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[5] == _ESTABLISHED["unix"]:
            yield words[7]
