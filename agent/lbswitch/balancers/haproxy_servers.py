"""Leaves single servers out of their pools in the running workers (`set server ... state`), without a reload."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from lbswitch.balancers import shielding
from lbswitch.balancers.haproxy_rendering import server_name, shielded_servers
from lbswitch.balancers.haproxy_runtime import Runtime
from lbswitch.core.config import Config
from lbswitch.core.model import Color, ServerKey
from lbswitch.core.names import pool_name, shielded_name
from lbswitch.core.values import parse_endpoint

_FORCED_MAINTENANCE = 0x01  # SRV_ADMF_FMAINT in srv_admin_state, management guide 9.3, `show servers state`
_COMMANDS_A_LINE = 100  # a line of commands has to fit into tune.bufsize


@dataclass(frozen=True, slots=True)
class _Server:
    """What a worker says of a server. Its address counts when it is a number: host names and sockets have none."""

    pool: str
    name: str
    address: str
    is_out: bool


class Servers:
    """The servers of all pools, as configured."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        name: Callable[[str, Color], str] = pool_name,
        is_ours: Callable[[str], bool] = lambda _backend: True,
    ) -> None:
        """Nothing is asked yet. `name` is the backend of a color; servers of others than `is_ours` are not touched."""
        self._runtime = runtime
        self._is_ours = is_ours
        self._keys = {
            (name(service, color), server_name(i)): ServerKey(service, color, address)
            for service, settings in config.services.items()
            for color in Color
            for i, address in enumerate(settings.pool(color).servers)
        }
        for service in shielding.shielded(config):
            self._keys |= dict(_shielded_keys(config, service, name))

    @property
    def keys(self) -> Mapping[tuple[str, str], ServerKey]:
        """The servers by the names of their backend and their own, as HAProxy has them."""
        return self._keys

    def eject(self, worker: int, ejected: frozenset[ServerKey]) -> None:
        """Leave exactly these out in this worker; a pool that would be left empty keeps all. Raises: Unanswered."""
        spared = self.left_out(ejected)
        commands = [
            f"set server {server.pool}/{server.name} state {'ready' if server.is_out else 'maint'}"
            for server in _servers(self._runtime.ask(worker, "show servers state"))
            if self._is_ours(server.pool) and server.is_out != (self._key(server) in spared)
        ]
        for start in range(0, len(commands), _COMMANDS_A_LINE):
            self._runtime.tell(worker, commands[start : start + _COMMANDS_A_LINE])

    def _key(self, server: _Server) -> ServerKey | None:
        """None for a server that a draining worker knows from an older configuration."""
        key = self._keys.get((server.pool, server.name))
        if key is None or not server.address:
            return key
        endpoint = parse_endpoint(key.address)
        is_number = endpoint.is_ipv6 or endpoint.host.replace(".", "").isdigit()
        return key if not is_number or f"{endpoint.host} {endpoint.port}" == server.address else None

    def left_out(self, ejected: frozenset[ServerKey]) -> frozenset[ServerKey]:
        """Those of `ejected` that are really left out: a pool that would be left empty keeps all."""
        left: dict[tuple[str, Color], int] = {}
        for key in self._keys.values():
            pool = (key.service, key.color)
            left[pool] = left.get(pool, 0) + (key not in ejected)
        return frozenset(key for key in ejected if left.get((key.service, key.color), 0) > 0)


def _shielded_keys(
    config: Config, service: str, name: Callable[[str, Color], str]
) -> Iterator[tuple[tuple[str, str], ServerKey]]:
    """The servers of both colors in the backend of each that has the other standing by."""
    settings = config.services[service]
    for shielded in Color:
        backend = shielded_name(name(service, shielded))
        for color in Color:
            addresses = settings.pool(color).servers
            for i, server in enumerate(shielded_servers(settings, shielded, color)):
                yield (backend, server.name), ServerKey(service, color, addresses[i % len(addresses)])


def _servers(text: str) -> Iterator[_Server]:
    """Read `show servers state`: a version, a line of column names after `#`, and a line for each server."""
    columns: Mapping[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if line.startswith("# "):
            columns = {name: i for i, name in enumerate(words[1:])}
        elif columns and len(words) >= len(columns) - 1:
            address, port = words[columns["srv_addr"]], words[columns["srv_port"]]
            is_out = bool(int(words[columns["srv_admin_state"]]) & _FORCED_MAINTENANCE)
            known = f"{address} {port}" if address != "-" else ""
            yield _Server(words[columns["be_name"]], words[columns["srv_name"]], known, is_out)
