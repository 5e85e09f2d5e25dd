"""How many connections are open at a listener of this machine, as the kernel says (sock_diag(7), or proc(5))."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lbswitch.balancers import socket_diag
from lbswitch.core.values import Endpoint

_ESTABLISHED = {"tcp": "01", "unix": "03"}
_TABLES = ("tcp", "tcp6")


def connections(listeners: Mapping[str, Endpoint]) -> Mapping[str, int | None]:
    """Established connections whose near end is each listener's port or path, anybody's; from one reading for all.

    None where the table can't be read.
    """
    tcp = {name: endpoint for name, endpoint in listeners.items() if not endpoint.is_unix}
    unix = {name: endpoint for name, endpoint in listeners.items() if endpoint.is_unix}
    return {
        **_counted({name: endpoint.port for name, endpoint in tcp.items()}, _ports),
        **_counted({name: endpoint.path for name, endpoint in unix.items()}, _unix),
    }


def _counted(wanted: Mapping[str, int | str], table: Callable[[], Iterator[int | str]]) -> Mapping[str, int | None]:
    try:
        found = Counter(table()) if wanted else Counter()
    except OSError:
        return dict.fromkeys(wanted)
    return {name: found[key] for name, key in wanted.items()}


def _ports() -> Iterator[int]:
    """The local ports of established connections. Raises: OSError."""
    try:
        yield from list(socket_diag.local_ports())
    except OSError:  # not everybody may ask
        yield from _listed_ports()


def _listed_ports() -> Iterator[int]:
    """Of lines as `sl local_address rem_address st ...`, in hexadecimal. Raises: OSError."""
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
