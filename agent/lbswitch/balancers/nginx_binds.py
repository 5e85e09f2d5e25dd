"""Whether the addresses that services listen on are free, and who holds those that are not."""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lbswitch.core.values import Endpoint

_CONNECT_S = 1.0


@dataclass(frozen=True, slots=True)
class Unavailable:
    """An address that a service can't listen on now. `pids` hold it, as far as this user may know."""

    service: str
    endpoint: Endpoint
    why: str
    pids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.service}: {self.endpoint} {self.why}"


def unavailable(binds: Mapping[str, Endpoint]) -> list[Unavailable]:
    """Try to bind every address of these services and let go again."""
    tried = ((service, endpoint, _try(endpoint)) for service, endpoint in binds.items())
    found = [(service, endpoint, error) for service, endpoint, error in tried if error is not None]
    holders = _holders() if any(error.errno == errno.EADDRINUSE for _, _, error in found) else []
    return [_explain(service, endpoint, error, holders) for service, endpoint, error in found]


def remove_stale_socket(endpoint: Endpoint) -> None:
    """Remove a unix socket on which nobody listens; nginx refuses to bind where a file is."""
    if endpoint.is_unix and _unix_problem(endpoint.path) is None:
        Path(endpoint.path).unlink(missing_ok=True)


def _try(endpoint: Endpoint) -> OSError | None:
    if endpoint.is_unix:
        return _unix_problem(endpoint.path)
    try:
        for family, address in _addresses(endpoint):
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        return error
    return None


def _addresses(endpoint: Endpoint) -> Iterator[tuple[socket.AddressFamily, tuple[str, int]]]:
    host = "0.0.0.0" if endpoint.host == "*" else endpoint.host  # noqa: S104 - as configured
    found = socket.getaddrinfo(host, endpoint.port, type=socket.SOCK_STREAM)
    for family, _, _, _, address in found:
        yield family, (str(address[0]), int(address[1]))


def _unix_problem(path: str) -> OSError | None:
    try:
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            return FileExistsError(errno.EEXIST, "is a file that is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_S)
            probe.connect(path)
    except FileNotFoundError:
        parent = Path(path).parent
        return None if parent.is_dir() else FileNotFoundError(errno.ENOENT, f"can't be made: there is no {parent}")
    except ConnectionRefusedError:
        return None
    except OSError as error:
        return error
    return OSError(errno.EADDRINUSE, "is taken")


def _holders() -> list[tuple[str, int, int]]:
    """Address (or path), port and pid of everything that listens; pids of other users' processes are not shown."""
    import psutil

    listening = []
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("all"):
            if connection.pid is None or not connection.laddr:
                continue
            if isinstance(connection.laddr, str):
                listening.append((connection.laddr, 0, connection.pid))
            elif connection.status == psutil.CONN_LISTEN:
                listening.append((connection.laddr.ip, connection.laddr.port, connection.pid))
    return listening


def _explain(service: str, endpoint: Endpoint, error: OSError, holders: list[tuple[str, int, int]]) -> Unavailable:
    if error.errno == errno.EACCES and not endpoint.is_unix:
        return Unavailable(service, endpoint, "may only be bound by root (a port below 1024): run the agent as root")
    if error.errno == errno.EADDRNOTAVAIL:
        return Unavailable(service, endpoint, "is not an address of this machine")
    if error.errno != errno.EADDRINUSE:
        return Unavailable(service, endpoint, str(error.strerror or error))
    pids = tuple(sorted({pid for address, port, pid in holders if _holds(address, port, endpoint)}))
    return Unavailable(service, endpoint, f"is taken by {_names(pids)}", pids)


def _holds(address: str, port: int, endpoint: Endpoint) -> bool:
    if endpoint.is_unix:
        return address == endpoint.path
    return port == endpoint.port and (endpoint.is_any or address in (endpoint.host, "0.0.0.0", "::"))  # noqa: S104


def _names(pids: tuple[int, ...]) -> str:
    import psutil

    named = []
    for pid in pids:
        with suppress(psutil.Error):
            named.append(f"pid {pid} ({psutil.Process(pid).name()})")
    return ", ".join(named) or "another process"
