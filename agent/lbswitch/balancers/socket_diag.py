"""Established TCP connections of this network, as the kernel tells them by netlink (sock_diag(7)).

Cheaper than /proc/net/tcp, which writes out every socket, also those that wait to be forgotten: with 12,000 of these
0.7 ms and not 13.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST, NLM_F_ROOT, NLM_F_MATCH
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_ESTABLISHED = 1 << 1  # TCP_ESTABLISHED
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct("=BBBBI48x")  # inet_diag_req_v2
_START = struct.Struct("=IH")  # its length and type
_LOCAL_PORT = 20  # in nlmsghdr and inet_diag_msg
_PORT, _ADDRESS, _UID = 22, 40, 80  # of the far end, and who has the connection
_OWNER = struct.Struct("=II")  # idiag_uid, idiag_inode
_NUMBER = struct.Struct("=i")
_BUFFER = 1 << 18
_ANSWER_S = 5.0


class TcpSocket(NamedTuple):
    """An established connection: its far end (`remote_key`), inode and user."""

    remote: bytes
    inode: int
    uid: int


def remote_key(address: bytes, port: bytes) -> bytes:
    """A far end: an IPv4 or IPv6 address and a port, each as it is on the wire."""
    return port + address


def established(remotes: Collection[bytes] | None = None) -> list[TcpSocket]:
    """Those to these far ends, or all. Raises: OSError (the kernel or the service file does not let us ask)."""
    return [*_found(socket.AF_INET, 4, remotes), *_found(socket.AF_INET6, 16, remotes)]


def local_ports() -> Iterator[int]:
    """The near end's port of each. Raises: OSError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for data, at in _dump(family):
            yield int.from_bytes(data[at + _LOCAL_PORT : at + _PORT], "big")


def _found(family: int, size: int, remotes: Collection[bytes] | None) -> Iterator[TcpSocket]:
    """Raises: OSError."""
    for data, at in _dump(family):
        far = data[at + _PORT : at + _PORT + 2] + data[at + _ADDRESS : at + _ADDRESS + size]
        if remotes is None or far in remotes:
            uid, inode = _OWNER.unpack_from(data, at + _UID)
            yield TcpSocket(far, inode, uid)


def _dump(family: int) -> Iterator[tuple[bytes, int]]:
    """What the kernel answers, and where in it each connection begins. Raises: OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as netlink:
        netlink.settimeout(_ANSWER_S)
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ESTABLISHED)
        netlink.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
        while True:
            data, at = netlink.recv(_BUFFER), 0
            while at < len(data):
                length, kind = _START.unpack_from(data, at)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError(-_NUMBER.unpack_from(data, at + _HEADER.size)[0], "sock_diag")
                yield data, at
                at += (length + 3) & ~3
