"""The kernel's tables of sockets, as a process's network has them (proc(5), /proc/PID/net), each read once.

Measured with 10,000 sockets: 10 ms to read the table of TCP and 3 ms to look through it. psutil needs 100 ms for one
process of them; a question by netlink (sock_diag(7)) needs 3 ms, but knows no other network than one's own.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

_TCP_ESTABLISHED = b"01"
_UNIX_CONNECTED = b"03"
_SOCKET = "socket:["


class TcpSocket(NamedTuple):
    """An established connection: its far end (`remote_key`), inode and user."""

    remote: bytes
    inode: int
    uid: int


class SocketTables:
    """What there is at the moment of the first look; nothing is read before it is needed."""

    def __init__(self, pid: int | None = None) -> None:
        """Of the network that this process is in; of our own by default."""
        self._directory = Path("/proc") / ("self" if pid is None else str(pid)) / "net"

    def tcp_to(self, remotes: Collection[bytes]) -> list[TcpSocket]:
        """Established connections to these far ends. Raises: OSError."""
        found = []
        for line in self._tcp:
            words = line.split(None, 4)
            if words[2] in remotes and words[3] == _TCP_ESTABLISHED:
                more = words[4].split(None, 6)
                found.append(TcpSocket(words[2], int(more[5]), int(more[3])))
        return found

    def accepted_at(self, path: str) -> list[int]:
        """Inodes of the connections that the server at this unix socket has accepted. Raises: OSError."""
        return [inode for name, inode in self._connected() if name == path]

    def nameless(self) -> frozenset[int]:
        """Inodes of connected unix sockets without a path, as clients have them. Raises: OSError."""
        return frozenset(inode for name, inode in self._connected() if not name)

    def established(self) -> frozenset[int]:
        """Inodes of established connections: TCP, and what unix listeners accepted. Raises: OSError.

        Without the nameless ends of unix connections: most of these are socket pairs within a program.
        """
        tcp = (line.split(None, 10) for line in self._tcp)
        inodes = {int(words[9]) for words in tcp if words[3] == _TCP_ESTABLISHED}
        return frozenset(inodes.union(inode for name, inode in self._connected() if name))

    def _connected(self) -> Iterator[tuple[str, int]]:
        """Path and inode: `Num RefCount Protocol Flags Type St Inode Path`."""
        for line in self._unix:
            words = line.split(maxsplit=7)
            if words[5] == _UNIX_CONNECTED:
                yield os.fsdecode(words[7]) if len(words) > 7 else "", int(words[6])

    @cached_property
    def _tcp(self) -> list[bytes]:
        """Lines of both tables: `sl local_address rem_address st queues timer retransmits uid timeout inode ...`."""
        return [*self._lines("tcp"), *self._lines("tcp6", may_lack=True)]

    @cached_property
    def _unix(self) -> list[bytes]:
        return self._lines("unix")

    def _lines(self, table: str, *, may_lack: bool = False) -> list[bytes]:
        try:
            return (self._directory / table).read_bytes().splitlines()[1:]
        except FileNotFoundError:
            if may_lack and self._directory.exists():  # a kernel without IPv6
                return []
            raise


def remote_keys(host: str, port: int) -> frozenset[bytes]:
    """An IP address and port as the tables write them; an IPv4 address in its IPv6 form, too. Raises: OSError."""
    if ":" in host:
        return frozenset([_hex(socket.inet_pton(socket.AF_INET6, host), port)])
    address = socket.inet_pton(socket.AF_INET, host)
    return frozenset([_hex(address, port), _hex(bytes(10) + b"\xff\xff" + address, port)])


def _hex(address: bytes, port: int) -> bytes:
    """Four bytes at a time, as numbers in this machine's byte order."""
    words = (int.from_bytes(address[at : at + 4], sys.byteorder) for at in range(0, len(address), 4))
    return (b"".join(b"%08X" % word for word in words)) + b":%04X" % port


def open_sockets(pid: int) -> dict[int, int]:
    """The sockets that a process has open: their descriptors by inode. Raises: OSError (gone, or not permitted)."""
    found = {}
    directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in os.listdir(directory):  # noqa: PTH208 - pathlib lists no descriptors
            try:
                link = os.readlink(name, dir_fd=directory)
            except FileNotFoundError:  # closed meanwhile
                continue
            if link.startswith(_SOCKET):
                found[int(link[len(_SOCKET) : -1])] = int(name)
    finally:
        os.close(directory)
    return found
