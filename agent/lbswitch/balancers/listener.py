"""Ask a service's own listener what it serves.

Every rendered service answers `GET /.lbswitch/state` to this machine alone (to connections whose source
address is the address they connected to). The body is `SERVICE GENERATION SHARE_GREEN`, read per request from the
same pointer or map that chooses the pool; the header `lbswitch-color` is the color that was chosen for this
very request and `lbswitch-revision` names the configuration that the answering worker runs.

The listener of somebody else's balancer may carry many services: there the path is `/.lbswitch/state/SERVICE`, and a
name may have to be said in the Host header, and in the TLS handshake, to arrive at the right one.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from functools import cache

from lbswitch.core.model import Color, Observation
from lbswitch.core.values import Endpoint
from lbswitch.errors import NotSeen

STATE_PATH = "/.lbswitch/state"
_TIMEOUT_S = 1.0
_HINT = "another program listens there, or the pointer in state_dir is gone"


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that is already connected."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self.sock = connected


@cache
def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # this machine asks itself; names on the certificate are the clients' matter
    return context


def guest_path(service: str, prefix: str | None = None) -> str:
    """Where a listener that is somebody else's answers for this service."""
    return f"{(prefix or '').rstrip('/')}{STATE_PATH}/{service}"


def _server_name(host: str | None) -> str | None:
    """What a Host header says, without a port; an address is not said in a TLS handshake (RFC 6066)."""
    if host is None or host.startswith("["):
        return None
    name = host.partition(":")[0]
    return None if name.replace(".", "").isdigit() else name


def _connect(endpoint: Endpoint, *, tls: bool, host: str | None = None) -> socket.socket:
    if endpoint.is_unix:
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.settimeout(_TIMEOUT_S)
        try:
            plain.connect(endpoint.path)
        except BaseException:
            plain.close()
            raise
    else:
        plain = socket.create_connection((endpoint.host, endpoint.port), timeout=_TIMEOUT_S)
    if not tls:
        return plain
    try:
        return _tls_context().wrap_socket(plain, server_hostname=_server_name(host))
    except BaseException:
        plain.close()
        raise


def accepts(service: str, bind: Endpoint) -> None:
    """Connect to the listener of `service` and say nothing. Raises: NotSeen."""
    try:
        _connect(bind.local, tls=False).close()
    except OSError as error:
        raise NotSeen(f"{service}: {bind.local} does not accept connections: {error}") from error


def observe(
    service: str,
    bind: Endpoint,
    *,
    tls: bool = False,
    path: str = STATE_PATH,
    host: str | None = None,
    hint: str = _HINT,
) -> Observation:
    """One answer of the listener of `service`, on a fresh connection. Raises: NotSeen.

    `host` is said in the Host header and in the TLS handshake; `hint` is what another answer probably means.
    """
    endpoint = bind.local
    headers = {"Connection": "close"} if host is None else {"Host": host, "Connection": "close"}
    try:
        with _connect(endpoint, tls=tls, host=host) as connected:
            connection = _Connection(connected)
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read(4096).decode("ascii", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise NotSeen(f"{service}: {endpoint} does not answer: {error or type(error).__name__}") from error
    if response.status != 200:
        raise NotSeen(f"{service}: {endpoint} answers HTTP {response.status} to {path}: {hint}")
    return _parse(service, endpoint, body, response, hint)


def _parse(service: str, endpoint: Endpoint, body: str, response: http.client.HTTPResponse, hint: str) -> Observation:
    try:
        name, generation, share_green = body.split()
        observed = Observation(
            color=Color(response.getheader("lbswitch-color", "")),
            generation=int(generation),
            revision=response.getheader("lbswitch-revision", ""),
            share_green=int(share_green),
        )
    except ValueError:
        raise NotSeen(f"{service}: {endpoint} gave no readable state ({body[:80]!r}): {hint}") from None
    if name != service:
        raise NotSeen(f"{service}: {endpoint} is the listener of {name}")
    return observed
