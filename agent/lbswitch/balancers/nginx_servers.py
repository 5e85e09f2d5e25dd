"""The servers of pools as the kernel's tables of sockets know them."""

from __future__ import annotations

from dataclasses import dataclass

from lbswitch.balancers.server_addresses import ServerAddresses
from lbswitch.core.config import Config
from lbswitch.core.model import Color, PoolKey
from lbswitch.core.values import parse_endpoint
from lbswitch.errors import BalancerError


@dataclass(frozen=True, slots=True)
class Ends:
    """Far ends of connections: `socket_tables.remote_keys`, and paths of unix sockets."""

    remotes: frozenset[bytes]
    paths: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.remotes or self.paths)

    def __sub__(self, other: Ends) -> Ends:
        return Ends(self.remotes - other.remotes, self.paths - other.paths)


class NginxServers:
    """Host names are looked up, so an answer may take a second; may be used from any thread."""

    def __init__(self, config: Config) -> None:
        """Nothing is looked up yet."""
        self._services = config.services
        self._addresses = ServerAddresses()

    def of(self, pool: PoolKey) -> Ends | None:
        """None when the name of one of them can't be looked up."""
        endpoints = [parse_endpoint(text) for text in self._services[pool.service].pool(pool.color).servers]
        keys = [self._addresses.keys(endpoint) for endpoint in endpoints if not endpoint.is_unix]
        if None in keys:
            return None
        paths = frozenset(endpoint.path for endpoint in endpoints if endpoint.is_unix)
        return Ends(frozenset(key for found in keys for key in found or ()), paths)

    def only_of(self, pool: PoolKey) -> Ends:
        """Those that no other pool lists. Raises: BalancerError when there are none, or none can be looked up."""
        own = self.of(pool)
        if own is None:
            raise BalancerError(f"the name of one of {pool.service}'s {pool.color} servers can't be looked up")
        for other in (PoolKey(service, color) for service in self._services for color in Color):
            servers = self.of(other) if other != pool else None
            own = own if servers is None else own - servers
        if not own:
            raise BalancerError(
                f"other pools list {pool.service}'s {pool.color} servers, too, and nginx does not tell whose their "
                "connections are"
            )
        return own
