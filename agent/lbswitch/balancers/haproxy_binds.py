"""Try the addresses that HAProxy is about to listen on, to name the one that is taken and who has it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lbswitch.core.values import Endpoint

_UNIX_MAX = 107  # sun_path is 108 bytes with its NUL (unix(7))
_SUFFIX = len(".4194304.tmp")  # HAProxy binds under a temporary name with its pid, then renames
LONGEST_SOCKET_PATH = _UNIX_MAX - _SUFFIX


@dataclass(frozen=True, slots=True)
class Taken:
    """Why nobody can listen there. `pids` are the processes that do, as far as this user may know."""

    service: str
    endpoint: Endpoint
    error: OSError
    pids: tuple[int, ...]

    @property
    def is_held(self) -> bool:
        """Whether somebody listens there already."""
        return self.error.errno == errno.EADDRINUSE

    def __str__(self) -> str:
        where = f"{self.service}: {self.endpoint}"
        if self.is_held:
            holders = ", ".join(f"{_name(pid)} (pid {pid})" for pid in self.pids)
            return f"{where} is taken by {holders or 'another process'}"
        if self.error.errno in (errno.EACCES, errno.EPERM):
            return f"{where} may not be used by user {os.geteuid()}: {self.error.strerror}"
        if self.error.errno == errno.EADDRNOTAVAIL:
            return f"{where} is not an address of this machine"
        return f"{where} can't be used: {self.error.strerror or self.error}"


def taken(binds: Mapping[str, Endpoint]) -> Iterator[Taken]:
    """The binds, by service, that nobody could listen on now."""
    failed: dict[str, OSError] = {}
    for service, endpoint in binds.items():
        try:
            _try(endpoint)
        except OSError as error:
            failed[service] = error
    holders = _listeners() if any(why.errno == errno.EADDRINUSE for why in failed.values()) else {}
    for service, why in failed.items():
        pids = holders.get(binds[service].port, set()) if why.errno == errno.EADDRINUSE else ()
        yield Taken(service, binds[service], why, tuple(sorted(pids)))


def _try(endpoint: Endpoint) -> None:
    if endpoint.is_unix:
        _try_unix(Path(endpoint.path))
        return
    family, address = _resolve(endpoint)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)


def _resolve(endpoint: Endpoint) -> tuple[int, tuple[str, int]]:
    host = "0.0.0.0" if endpoint.host == "*" else endpoint.host  # noqa: S104 - the bind that was asked for
    found = socket.getaddrinfo(host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return found[0], (str(found[4][0]), int(found[4][1]))


def _try_unix(path: Path) -> None:
    """A socket file that nobody listens on any more is fine: HAProxy renames its own over it, as over any file."""
    if path.exists() and not path.is_socket():
        raise FileExistsError(errno.EEXIST, "is a file that is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            if not os.access(path.parent, os.W_OK):
                raise PermissionError(errno.EACCES, f"{path.parent} does not exist or can't be written") from None
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _listeners() -> Mapping[int, set[int]]:
    """The processes that listen on each TCP port; those that this user may not see are missing."""
    import psutil

    found: dict[int, set[int]] = {}
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.pid:
                found.setdefault(connection.laddr.port, set()).add(connection.pid)
    except (psutil.Error, OSError):
        return {}
    return found


def _name(pid: int) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "a process"


def too_long(paths: Iterable[Path]) -> Path | None:
    """A socket path that HAProxy could not bind, because of its length; None when all fit."""
    return next((path for path in paths if len(os.fsencode(path)) > LONGEST_SOCKET_PATH), None)
