"""Which services the shield is rendered for, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping

from lbswitch.core.config import BalancerKind, Config, Mode
from lbswitch.core.model import Color

METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
"""What may be repeated: RFC 9110, 9.2.2. A method that nobody here knows may not."""

MOST_OTHERS = 2
"""How many servers of the other color are asked at most, so that a request that fails everywhere ends soon."""

_WHOSE = {
    BalancerKind.NGINX: "nginx repeats requests as a location says, and with managed: false those are the owner's",
    BalancerKind.HAPROXY: "with managed: false the owner's frontend chooses of two backends, and the shield is a third",
}


def why_not(config: Config, service: str) -> str | None:
    """Why this service has no shield, with what to do; None when it has one."""
    settings = config.services[service]
    if not config.balancer.managed:
        return f"{_WHOSE[config.balancer.kind]}: a failing new color costs clients requests until it is rolled back"
    if settings.mode is not Mode.HTTP:
        return "mode: tcp: what one server has begun no other one can go on with"
    if settings.bake is not None and not settings.bake.shield:
        return f"services.{service}.bake.shield is false; set it to true"
    return None


def shielded(config: Config) -> list[str]:
    """The services that have one."""
    return [name for name in config.services if why_not(config, name) is None]


def merged(config: Config, before: Mapping[str, Color], changes: Mapping[str, Color | None]) -> dict[str, Color]:
    """Who is under the shield after these changes; services that have none, or none any more, are left out."""
    after = {**before, **changes}
    return {name: color for name in shielded(config) if (color := after.get(name)) is not None}
