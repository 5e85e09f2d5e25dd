"""What an nginx configuration says that matters here: upstreams, servers, and who passes to what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lbswitch.balancers.nginx_config import Directive, NginxConfig, Place
from lbswitch.core.values import Endpoint, parse_endpoint

_PASS = re.compile(r"(https?)://([^/$]+)(/.*)?")
_PLAIN_NAME = re.compile(r"\.?([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)")


@dataclass(frozen=True, slots=True)
class Upstream:
    """An `upstream`. `servers` are addresses with ports; `settings` is everything else in it, as text."""

    name: str
    servers: tuple[str, ...]
    settings: tuple[str, ...]
    where: str


@dataclass(frozen=True, slots=True)
class Pass:
    """A `proxy_pass` to a fixed target; `uri` is the path behind it, mostly empty."""

    place: Place
    scheme: str
    target: str
    uri: str

    @property
    def server(self) -> Directive:
        """The server it is in."""
        return next(block for block in self.place.around if block.name == "server")

    @property
    def where(self) -> str:
        """File and line."""
        return self.place.directive.where


@dataclass(frozen=True, slots=True)
class Listener:
    """One `listen` of a server."""

    bind: Endpoint
    tls: bool
    proxy_protocol: bool


def upstreams(config: NginxConfig) -> dict[str, Upstream]:
    """All of `http`, by name."""
    found = {}
    for place in config.find("upstream"):
        if place.path == ("http",) and place.directive.args:
            inside = list(flat(place.directive))
            found[place.directive.args[0]] = Upstream(
                place.directive.args[0],
                tuple(_with_port(each.args[0]) for each in inside if each.name == "server" and _takes_part(each)),
                tuple(_settings(inside)),
                place.directive.where,
            )
    return found


def _takes_part(server: Directive) -> bool:
    return bool(server.args) and not {"down", "backup"}.intersection(server.args)


def _settings(inside: list[Directive]) -> Iterator[str]:
    """What lbswitch's pools have not: they keep connections and share a zone, too."""
    for each in inside:
        is_plain = each.name in ("include", "zone") or each.name.startswith("keepalive")
        if len(each.args) > 1 if each.name == "server" else not is_plain:
            yield str(each)


def _with_port(address: str) -> str:
    """Upstream servers without a port are on 80."""
    if address.startswith("unix:") or re.search(r":[0-9]+$", address):
        return address
    return f"{address}:80"


def flat(block: Directive) -> Iterator[Directive]:
    """What is directly in a block, with what it includes."""
    for directive in block.block or ():
        if directive.name == "include":
            yield from flat(directive)
        else:
            yield directive


def passes(config: NginxConfig) -> list[Pass]:
    """Every `proxy_pass` of `http` that names its target, once each."""
    found = {}
    for place in config.find("proxy_pass"):
        match = _PASS.fullmatch(place.directive.args[0]) if place.directive.args else None
        if match is not None and place.path[:2] == ("http", "server"):
            key = (place.directive.where, _identity(place))
            found[key] = Pass(place, match[1], match[2], match[3] or "")
    return list(found.values())


def _identity(place: Place) -> str:
    server = place.around[1]
    return server.where


def servers(config: NginxConfig) -> list[Directive]:
    """Every `server` of `http`."""
    return [place.directive for place in config.find("server") if place.path == ("http",) and place.directive.block]


def names(server: Directive) -> list[str]:
    """Its `server_name`s."""
    return [name for each in flat(server) if each.name == "server_name" for name in each.args]


def plain_name(server: Directive) -> str | None:
    """A name that can be asked for."""
    for name in names(server):
        match = _PLAIN_NAME.fullmatch(name)
        if match and name != "_":
            return match[1]
    return None


def listeners(server: Directive) -> list[Listener]:
    """Where it can be reached over TCP or a unix socket, in the order of the file."""
    whole = any(each.name == "ssl" and each.args == ("on",) for each in flat(server))
    given = [each.args for each in flat(server) if each.name == "listen" and each.args and "quic" not in each.args]
    found = []
    for args in given or [("80",)]:
        bind = _endpoint(args[0])
        if bind is not None:
            found.append(Listener(bind, whole or "ssl" in args, "proxy_protocol" in args))
    return found


def _endpoint(text: str) -> Endpoint | None:
    if text.isdecimal():
        text = f"*:{text}"
    elif not text.startswith("unix:") and not re.search(r":[0-9]+$", text):
        text = f"{text}:80"
    try:
        return parse_endpoint(text)
    except ValueError:
        return None


def best_listener(server: Directive) -> Listener | None:
    """The one to ask at: IPv4 first, none that wants the PROXY protocol."""
    usable = [each for each in listeners(server) if not each.proxy_protocol]
    return min(usable, key=lambda each: (each.bind.is_ipv6, each.bind.is_unix), default=None)


def described(server: Directive) -> str:
    """For people: name and addresses."""
    where = " and ".join(str(each.bind) for each in listeners(server))
    name = plain_name(server) or " ".join(names(server)) or "no name"
    return f"{name} on {where or 'an address that lbswitch can not read'} ({server.where})"
