"""What a change of the configuration would take away from clients, as sentences; empty when it takes nothing away.

A pool that has servers and would have none, or would be gone while its service stays. A service with clients that
would be removed, or whose listener would move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from lbswitch.core.config import Config
from lbswitch.core.model import Color
from lbswitch.core.names import guest_pool_name, pool_name
from lbswitch.core.values import Endpoint, parse_endpoint


@dataclass(frozen=True, slots=True)
class Clients:
    """Connections that clients had open at a listener when it was looked at `ago_s` seconds ago; None: nobody knows."""

    count: int | None
    ago_s: float = 0.0

    def __str__(self) -> str:
        if self.count is None:
            return "has clients that can't be counted from here"
        what = "1 client connection" if self.count == 1 else f"{self.count} client connections"
        return f"has {what} now" if self.ago_s < 1 else f"had {what} {self.ago_s:.0f} s ago"


def lost_pools(before: Mapping[str, int], after: Mapping[str, int], config: Config) -> list[str]:
    """Pools that would be emptied: the servers that each has before and after, and what is to be served after."""
    return [
        f"pool {name} has {_servers(count)} and would {'have none' if name in after else 'be gone'}"
        for name, count in sorted(before.items())
        if count > 0 and not after.get(name) and (name in after or name in _pools_of(config))
    ]


def _servers(count: int) -> str:
    return "1 server" if count == 1 else f"{count} servers"


def _pools_of(config: Config) -> set[str]:
    return {
        name(service, color) for service in config.services for color in Color for name in (pool_name, guest_pool_name)
    }


def lost_listeners(before: Config, after: Config, clients: Callable[[str], Clients | None]) -> list[str]:
    """Services that would be removed, or moved to another address, while clients use them.

    `clients` tells who uses a service, or None when nobody does; it is asked only about those that would go.
    """
    return [
        f"{name} would {fate}, and its listener {before.services[name].bind} {using}{_heir(before, after, name)}"
        for name, fate in _fates(before, after)
        if (using := clients(name)) is not None
    ]


def _fates(before: Config, after: Config) -> Iterator[tuple[str, str]]:
    for name, service in before.services.items():
        old = parse_endpoint(service.bind)
        if name not in after.services:
            yield name, "be removed"
        elif before.balancer.managed and not _serves(new := parse_endpoint(after.services[name].bind), old):
            yield name, f"move to {new}"


def _heir(before: Config, after: Config, name: str) -> str:
    """Who would listen there instead."""
    old = parse_endpoint(before.services[name].bind)
    for other, service in after.services.items():
        if _serves(parse_endpoint(service.bind), old):
            color = "" if other in before.services else f", beginning on {service.initial}"
            return f" ({other} would take it over{color})"
    return ""


def _serves(new: Endpoint, old: Endpoint) -> bool:
    """Whether clients of the old address reach the new one."""
    if new == old:
        return True
    if old.is_unix or new.is_unix or new.port != old.port:
        return False
    return new.is_any and new.is_ipv6 == old.is_ipv6
