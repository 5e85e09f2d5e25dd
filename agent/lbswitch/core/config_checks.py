"""What is only wrong together: listeners that collide, circles, names that become the same, balancers that can't."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from lbswitch.core.config import (
    AgentConfig,
    BalancerConfig,
    BalancerKind,
    Config,
    Mode,
    ServiceConfig,
    Switching,
    TimeoutsConfig,
)
from lbswitch.core.model import Color
from lbswitch.core.names import variable_name
from lbswitch.core.values import Endpoint, parse_endpoint

_MOST_THREADS = 64  # HAProxy before 2.7; later ones take more in groups
_LONGEST_SOCKET = 107 - len(".4194304.tmp")  # HAProxy binds under a temporary name with its pid, then renames
_LONGEST_STATE_DIR = _LONGEST_SOCKET - len("/haproxy/master.sock")


class Misplaced(NamedTuple):
    """One thing that is wrong; `at` is the path of the key to blame."""

    at: tuple[str | int, ...]
    message: str


class _Listener(NamedTuple):
    at: tuple[str, ...]
    endpoint: Endpoint

    @property
    def name(self) -> str:
        return ".".join(self.at)


def cross_check(
    agent: AgentConfig | None,
    balancer: BalancerConfig | None,
    services: Mapping[str, ServiceConfig],
    sources: Collection[str] = (),
) -> Iterator[Misplaced]:
    """Check the sections that are right by themselves against each other; None is a section that is not.

    `sources` are the names of all sources, right or not.
    """
    is_guest = balancer is not None and not balancer.managed
    # The listeners of somebody else's balancer may be shared: names and paths tell its services apart there.
    yield from _listeners(agent, {} if is_guest else services)
    if not is_guest:
        yield from _circles(services)
    yield from _names(services)
    if sources:
        yield from _unknown_sources(services, sources)
    if balancer is not None:
        yield from _whose(balancer, services)
        yield from _abilities(balancer, services)
        yield from _sizes(agent or AgentConfig(), balancer, services)


def _listeners(agent: AgentConfig | None, services: Mapping[str, ServiceConfig]) -> Iterator[Misplaced]:
    """Two listeners that the system would not let exist, or of which one would take the other's connections."""
    by_port: defaultdict[int, list[_Listener]] = defaultdict(list)
    for listener in _all_listeners(agent, services):
        others = by_port[listener.endpoint.port]
        other = next((one for one in others if _overlap(one.endpoint, listener.endpoint)), None)
        if other is not None:
            yield Misplaced(
                listener.at, f"is {str(listener.endpoint)!r}, which {other.name} ({other.endpoint}) listens on already"
            )
        others.append(listener)


def _all_listeners(agent: AgentConfig | None, services: Mapping[str, ServiceConfig]) -> Iterator[_Listener]:
    if agent is not None:
        yield _Listener(("agent", "socket"), Endpoint(path=agent.socket))
    if agent is not None and agent.listen is not None:
        yield _Listener(("agent", "listen"), parse_endpoint(agent.listen))
    for name, service in services.items():
        yield _Listener(("services", name, "bind"), parse_endpoint(service.bind))


def _overlap(one: Endpoint, other: Endpoint) -> bool:
    if one.port != other.port or one.is_unix != other.is_unix:
        return False
    if one.is_unix:
        return one.path == other.path
    return _covers(one, other) or _covers(other, one)


def _covers(wide: Endpoint, narrow: Endpoint) -> bool:
    """Whether a listener on `wide` gets connections that are made to `narrow`; `[::]` is rendered for IPv6 only."""
    if wide.host == narrow.host:
        return True
    if "localhost" in (wide.host, narrow.host):
        other = narrow if wide.host == "localhost" else wide
        return other.is_any or other.host in ("127.0.0.1", "::1")
    if wide.host == "::":
        return narrow.is_ipv6
    return wide.is_any and not narrow.is_ipv6


def _circles(services: Mapping[str, ServiceConfig]) -> Iterator[Misplaced]:
    """Servers that are a listener of ours from which the requests come back."""
    listeners: defaultdict[tuple[int, str], list[tuple[str, Endpoint]]] = defaultdict(list)
    for name, service in services.items():
        endpoint = parse_endpoint(service.bind)
        listeners[endpoint.port, endpoint.path].append((name, endpoint))
    edges = [edge for name, service in services.items() for edge in _edges(name, service, listeners)]
    onward: defaultdict[str, set[str]] = defaultdict(set)
    for source, target, _, _ in edges:
        onward[source].add(target)
    for source, target, at, address in edges:
        if source == target:
            yield Misplaced(at, f"is {address!r}, where {source} itself listens: its requests would go in a circle")
        elif _leads_to(target, source, onward):
            yield Misplaced(
                at, f"is {address!r}, where {target} listens, which sends to {source}: requests would go in a circle"
            )


class _Edge(NamedTuple):
    source: str
    target: str
    at: tuple[str | int, ...]
    address: str


def _edges(
    name: str, service: ServiceConfig, listeners: Mapping[tuple[int, str], list[tuple[str, Endpoint]]]
) -> Iterator[_Edge]:
    for color in Color:
        for index, address in enumerate(service.pool(color).servers):
            server = parse_endpoint(address)
            for other, endpoint in listeners.get((server.port, server.path), ()):
                if endpoint.is_unix or _reaches(server, endpoint):
                    yield _Edge(name, other, ("services", name, str(color), "servers", index), address)


def _reaches(server: Endpoint, listener: Endpoint) -> bool:
    """Whether connecting to `server` surely arrives at `listener`; of other hosts nothing is known here."""
    if listener.is_any and not server.is_loopback:
        return False
    return _covers(listener, server)


def _leads_to(start: str, end: str, onward: Mapping[str, set[str]]) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        if here == end:
            return True
        following = onward.get(here, set()) - seen
        seen |= following
        waiting.extend(following)
    return False


def _names(services: Iterable[str]) -> Iterator[Misplaced]:
    taken: dict[str, str] = {}
    for name in services:
        other = taken.setdefault(variable_name(name), name)
        if other != name:
            yield Misplaced(
                ("services", name),
                f"has the same name as {other} once - becomes _ in the balancer's variables: rename one",
            )


def _unknown_sources(services: Mapping[str, ServiceConfig], sources: Collection[str]) -> Iterator[Misplaced]:
    for at, name in _used_sources(services):
        if name not in sources:
            close = difflib.get_close_matches(name, sources, 1)
            hint = f" did you mean {close[0]!r}?" if close else ""
            yield Misplaced(at, f"is {name!r}, which is no source:{hint} known: {', '.join(sources)}")


def _used_sources(services: Mapping[str, ServiceConfig]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where a source is named, and its name."""
    for service, config in services.items():
        for name, criterion in (config.criteria or {}).items():
            if criterion.source is not None:
                yield ("services", service, "criteria", name, "source"), criterion.source


def _abilities(balancer: BalancerConfig, services: Mapping[str, ServiceConfig]) -> Iterator[Misplaced]:
    """What this kind of balancer can't do."""
    is_nginx = balancer.kind is BalancerKind.NGINX
    foreign = Switching.MAP if is_nginx else Switching.POINTER
    allowed = "pointer or reload" if is_nginx else "map or reload"
    for name, service in services.items():
        if service.switching is foreign:
            yield Misplaced(
                ("services", name, "switching"),
                f"is {str(foreign)!r}, which {balancer.kind} does not have: write {allowed}, or leave it out",
            )
        if not is_nginx and not balancer.managed and service.switching is Switching.RELOAD:
            yield Misplaced(
                ("services", name, "switching"),
                "is 'reload', but the use_backend line is in a frontend that lbswitch does not write: leave it out",
            )
        if is_nginx and service.mode is Mode.TCP:
            yield Misplaced(
                ("services", name, "mode"),
                "is 'tcp', which needs balancer.kind: haproxy (nginx carries http in this version)",
            )


def _sizes(agent: AgentConfig, balancer: BalancerConfig, services: Mapping[str, ServiceConfig]) -> Iterator[Misplaced]:
    """Limits of a HAProxy whose sockets lie where lbswitch has them."""
    if balancer.kind is not BalancerKind.HAPROXY or not balancer.managed:
        return
    if balancer.workers is not None and balancer.workers > _MOST_THREADS:
        words = f"is {balancer.workers}, but HAProxy has at most {_MOST_THREADS} threads"
        yield Misplaced(("balancer", "workers"), words)
    if len(agent.state_dir) > _LONGEST_STATE_DIR:
        words = f"has {len(agent.state_dir)} bytes, but HAProxy's sockets lie below it: {_LONGEST_STATE_DIR} at most"
        yield Misplaced(("agent", "state_dir"), words)
    for name, service in services.items():
        path = parse_endpoint(service.bind).path
        if len(path) > _LONGEST_SOCKET:
            words = f"is a path of {len(path)} bytes, and HAProxy can bind {_LONGEST_SOCKET} at most"
            yield Misplaced(("services", name, "bind"), words)


_OF_THE_OWNER = {"tls": "verify.tls says that the owner's listener speaks TLS", "http2": "the owner's listener decides"}
_OF_A_GUEST = ("host", "tls", "prefix")


def _whose(balancer: BalancerConfig, services: Mapping[str, ServiceConfig]) -> Iterator[Misplaced]:
    """What is for a listener of ours, and what is for one of somebody else's."""
    for name, service in services.items():
        if balancer.managed:
            for key in _OF_A_GUEST:
                if getattr(service.verify, key):
                    yield Misplaced(("services", name, "verify", key), "needs balancer.managed: false")
            continue
        for key, instead in _OF_THE_OWNER.items():
            if getattr(service, key):
                yield Misplaced(("services", name, key), f"is for a balancer that lbswitch manages: {instead}")
        if balancer.kind is BalancerKind.NGINX and service.timeouts != TimeoutsConfig():
            words = "are the owner's to set: proxy_connect_timeout and proxy_read_timeout beside their proxy_pass"
            yield Misplaced(("services", name, "timeouts"), words)
        if service.verify.prefix is not None and balancer.kind is not BalancerKind.HAPROXY:
            yield Misplaced(("services", name, "verify", "prefix"), "is for HAProxy")


def notes(config: Config) -> list[str]:
    """Plain sentences: what is probably a mistake."""
    return [*_undefined_sources(config), *_shared_servers(config)]


def _undefined_sources(config: Config) -> Iterator[str]:
    """Without any `sources` a criterion may name one all the same; it is never judged then."""
    names = sorted({name for _, name in _used_sources(config.services)} - config.sources.keys())
    if names:
        yield f"there is no section sources, so criteria that need {_listed(names)} can't be judged: docs/sources.md"


def _shared_servers(config: Config) -> Iterator[str]:
    for name, service in config.services.items():
        shared = sorted(set(service.blue.servers) & set(service.green.servers))
        if shared:
            yield f"services.{name}: blue and green both have {_listed(shared)}, so a switch does not move them"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:5])} and {len(names) - 5} more"
