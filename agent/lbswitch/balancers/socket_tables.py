"""Which connections the kernel knows in the network of a process (sock_diag(7), or proc(5), /proc/PID/net)."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from lbswitch.balancers import socket_diag
from lbswitch.balancers.socket_diag import TcpSocket, remote_key

_TCP_ESTABLISHED = b"01"
_UNIX_CONNECTED = b"03"
_SOCKET = "socket:["


class SocketTables:
    """Nothing is read before it is asked for; unix sockets are read once."""

    def __init__(self, pid: int | None = None) -> None:
        """Of the network that this process is in; of our own by default."""
        self._directory = Path("/proc") / ("self" if pid is None else str(pid)) / "net"
        self._is_own = pid is None or _shares_our_network(pid)

    def tcp_to(self, remotes: Collection[bytes]) -> list[TcpSocket]:
        """Established connections to these far ends. Raises: OSError."""
        return self._tcp(remotes) if remotes else []

    def accepted_at(self, path: str) -> list[int]:
        """Inodes of the connections that the server at this unix socket has accepted. Raises: OSError."""
        return [inode for name, inode in self._unix if name == path]

    def nameless(self) -> frozenset[int]:
        """Inodes of connected unix sockets without a path, as clients have them. Raises: OSError."""
        return frozenset(inode for name, inode in self._unix if not name)

    def established(self) -> frozenset[int]:
        """Inodes of established connections: TCP, and what unix listeners accepted. Raises: OSError.

        Without the nameless ends of unix connections: most of these are socket pairs within a program.
        """
        accepted = (inode for name, inode in self._unix if name)
        return frozenset({found.inode for found in self._tcp(None)}.union(accepted))

    def _tcp(self, remotes: Collection[bytes] | None) -> list[TcpSocket]:
        """Netlink knows no other network than one's own; nor may everybody ask it. Raises: OSError."""
        if self._is_own:
            with suppress(OSError):
                return socket_diag.established(remotes)
        listed = (*self._listed("tcp"), *self._listed("tcp6", may_lack=True))
        return [found for found in listed if remotes is None or found.remote in remotes]

    def _listed(self, table: str, *, may_lack: bool = False) -> Iterator[TcpSocket]:
        """Of `sl local_address rem_address st queues timer retransmits uid timeout inode ...`."""
        for line in self._lines(table, may_lack=may_lack):
            words = line.split(None, 4)
            if words[3] == _TCP_ESTABLISHED:
                uid, _, inode, *_ = words[4].split(None, 6)[3:]
                yield TcpSocket(_parsed(words[2]), int(inode), int(uid))

    @cached_property
    def _unix(self) -> list[tuple[str, int]]:
        """Path and inode of what is connected: `Num RefCount Protocol Flags Type St Inode Path`."""
        rows = (line.split(maxsplit=7) for line in self._lines("unix"))
        return [
            (os.fsdecode(words[7]) if len(words) > 7 else "", int(words[6]))
            for words in rows
            if words[5] == _UNIX_CONNECTED
        ]

    def _lines(self, table: str, *, may_lack: bool = False) -> list[bytes]:
        try:
            return (self._directory / table).read_bytes().splitlines()[1:]
        except FileNotFoundError:
            if may_lack and self._directory.exists():  # a kernel without IPv6
                return []
            raise


def remote_keys(host: str, port: int) -> frozenset[bytes]:
    """An IP address and port as far ends are known by; an IPv4 address in its IPv6 form, too. Raises: OSError."""
    number = port.to_bytes(2, "big")
    if ":" in host:
        return frozenset([remote_key(socket.inet_pton(socket.AF_INET6, host), number)])
    address = socket.inet_pton(socket.AF_INET, host)
    return frozenset([remote_key(address, number), remote_key(bytes(10) + b"\xff\xff" + address, number)])


def _parsed(text: bytes) -> bytes:
    """A far end as the tables write it: `0100007F:1F90`, an address four bytes at a time in this machine's order."""
    words = bytes.fromhex(text[:-5].decode())
    address = b"".join(
        int.from_bytes(words[at : at + 4], "big").to_bytes(4, sys.byteorder) for at in range(0, len(words), 4)
    )
    return remote_key(address, bytes.fromhex(text[-4:].decode()))


def _shares_our_network(pid: int) -> bool:
    """Whether it certainly does: of another user's process nobody may ask."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return False


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
