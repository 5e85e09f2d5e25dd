"""Ends the connections that a worker has to some servers, as if the servers had gone away."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterable

from lbswitch.balancers.borrowed_socket import borrowed
from lbswitch.balancers.nginx_servers import Ends
from lbswitch.balancers.socket_tables import open_sockets, remote_keys

_GONE = (errno.EBADF, errno.ENOTSOCK, errno.ENOTCONN, errno.ESRCH)


def close(pid: int, inodes: Collection[int], ends: Ends, most: int) -> int:
    """At most so many of this process's connections that are among `inodes` and lead there; gives how many.

    Raises: OSError (not permitted).
    """
    if most <= 0:
        return 0
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        candidates = [descriptor for inode, descriptor in open_sockets(pid).items() if inode in inodes]
        return _shut_down(process, candidates, ends, most)
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return 0
    finally:
        os.close(process)


def _shut_down(process: int, candidates: Iterable[int], ends: Ends, most: int) -> int:
    """Raises: OSError."""
    closed = 0
    for descriptor in candidates:
        closed += _is_shut_down(process, descriptor, ends)
        if closed == most:
            break
    return closed


def _is_shut_down(process: int, descriptor: int, ends: Ends) -> bool:
    """Looks again where it leads: the descriptor may be another connection's by now. Raises: OSError."""
    try:
        with borrowed(process, descriptor) as found:
            if not _leads_to(found, ends):
                return False
            found.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return False
    return True


def _leads_to(found: socket.socket, ends: Ends) -> bool:
    """Raises: OSError."""
    far = found.getpeername()
    if found.family == socket.AF_UNIX:
        return os.fsdecode(far) in ends.paths
    host, port = far[:2]
    return not ends.remotes.isdisjoint(remote_keys(host.partition("%")[0], port))
