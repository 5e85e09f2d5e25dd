"""Under which addresses the kernel's tables know the servers of pools."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time

from lbswitch.balancers.socket_tables import remote_keys
from lbswitch.core.values import Endpoint

_ASK_AGAIN_S = 60.0
_LOOK_UP_S = 1.0


class ServerAddresses:
    """Host names are looked up once a minute, within a second; may be used from any thread.

    Whatever a name meant since this was made counts: nginx looks names up when it reads its configuration, and keeps
    connections for longer.
    """

    def __init__(self) -> None:
        """Nothing is looked up yet."""
        self._known: dict[str, frozenset[str]] = {}
        self._asked: dict[str, float] = {}

    def keys(self, endpoint: Endpoint) -> frozenset[bytes] | None:
        """As `socket_tables.remote_keys`; None when the name was never found."""
        hosts = frozenset([endpoint.host]) if _is_address(endpoint.host) else self._looked_up(endpoint.host)
        found = frozenset(key for host in hosts for key in remote_keys(host, endpoint.port))
        return found or None

    def _looked_up(self, host: str) -> frozenset[str]:
        now = time.monotonic()
        if now - self._asked.get(host, -_ASK_AGAIN_S) >= _ASK_AGAIN_S:
            self._asked[host] = now
            # A dead DNS server may take many seconds, and a lookup can't be cancelled.
            thread = threading.Thread(target=self._look_up, args=(host,), name=f"resolve {host}", daemon=True)
            thread.start()
            thread.join(_LOOK_UP_S)
        return self._known.get(host, frozenset())

    def _look_up(self, host: str) -> None:
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found = (str(entry[4][0]) for entry in entries)
        self._known[host] = self._known.get(host, frozenset()).union(one for one in found if "%" not in one)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
