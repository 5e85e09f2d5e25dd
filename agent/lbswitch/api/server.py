"""Serve the API on the unix socket, and on a loopback TCP address when one is configured."""

from __future__ import annotations

import asyncio
import contextlib
import pwd
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lbswitch.core.values import Endpoint
from lbswitch.errors import NotAllowed, StateError

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))
_SOCKET_MODE = 0o660


class PeerProtocol(HttpToolsProtocol):
    """Names the peer of a unix socket by the user that the kernel says it is."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Replace the missing client address of a unix socket."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            _pid, uid, _gid = _CREDENTIALS.unpack(
                peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            self.client = (_user_name(uid), 0)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def unix_listener(path: Path) -> socket.socket:
    """A listening unix socket of mode 0660, whatever the umask; a stale one is replaced.

    Raises: StateError (another agent answers there, or the directory can't be written), NotAllowed.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _refuse_other_files(path)
        _refuse_if_answered(path)
        staged = path.with_name(f".{path.name}.new")
        staged.unlink(missing_ok=True)
        listener.bind(str(staged))
        staged.chmod(_SOCKET_MODE)
        listener.listen(128)
        staged.rename(path)
    except OSError as error:
        listener.close()
        raise StateError(
            f"{path}: {error.strerror or error}: the agent can't listen there; set agent.socket to a path it may write"
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _refuse_other_files(path: Path) -> None:
    """Only a socket may be replaced. Raises: StateError."""
    if path.is_symlink() or (path.exists() and not path.is_socket()):
        raise StateError(f"{path}: is there and is no socket; it was left alone: set agent.socket to a path of its own")


def _refuse_if_answered(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except PermissionError as error:
            raise NotAllowed(f"{path}: exists and belongs to somebody else") from error
    raise StateError(f"{path}: another agent answers on this socket; stop it, or set agent.socket")


def tcp_listener(endpoint: Endpoint) -> socket.socket:
    """A listening TCP socket. Raises: StateError when the address is taken."""
    family = socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((endpoint.host, endpoint.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise StateError(f"agent.listen {endpoint}: {error.strerror or error}") from error
    return listener


class ApiServer:
    """Uvicorn inside an event loop that is not its own: `serve` until `stop`."""

    def __init__(self, app: FastAPI, listeners: list[socket.socket]) -> None:
        """`listeners` are bound and listen already; they are closed at the end."""
        self._listeners = listeners
        config = uvicorn.Config(
            app,
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=3,
            timeout_keep_alive=30,
        )
        self._server = _Server(config)

    async def serve(self) -> None:
        """Answer requests until `stop`."""
        await self._server.serve(sockets=self._listeners)

    def stop(self) -> None:
        """Finish what is being answered, for three seconds at the most."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the agent's."""
        yield


def remove_socket(path: Path) -> None:
    """Remove the socket file at the end; a missing one is fine, and what is no socket is not ours."""
    with contextlib.suppress(OSError):
        if path.is_socket():
            path.unlink()
