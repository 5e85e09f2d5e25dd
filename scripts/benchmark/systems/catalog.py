"""Every system that is compared, in the order of the tables."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from scripts.benchmark.systems.agents import HaproxyMap, HaproxyReload, NewNginxReload, NginxPointer, NginxReload
from scripts.benchmark.systems.caddy import Caddy
from scripts.benchmark.systems.envoy import Envoy
from scripts.benchmark.systems.haproxy import HaproxyReloadByHand, HaproxyRuntimeByHand
from scripts.benchmark.systems.nginx import NewNginxByHand, NginxByHand
from scripts.benchmark.systems.system import System
from scripts.benchmark.systems.traefik import Traefik

S = TypeVar("S", bound=System)

SYSTEMS: tuple[type[System], ...] = (
    NginxPointer,
    HaproxyMap,
    HaproxyRuntimeByHand,
    Envoy,
    Caddy,
    Traefik,
    HaproxyReloadByHand,
    NginxByHand,
    NewNginxByHand,
    HaproxyReload,
    NginxReload,
    NewNginxReload,
)
BY_RELOAD: tuple[type[System], ...] = (
    HaproxyReload,
    HaproxyReloadByHand,
    NginxReload,
    NginxByHand,
    NewNginxReload,
    NewNginxByHand,
)


def of_balancers(systems: Collection[type[S]], balancers: Collection[str]) -> list[type[S]]:
    """Those on these balancers; peers come with any."""
    return [system for system in systems if system.balancer in balancers or system.group == "peer"]
