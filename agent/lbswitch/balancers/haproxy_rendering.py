"""What the HAProxy templates are given, and the PEM files that TLS services need."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lbswitch.balancers import shielding, tls_files
from lbswitch.balancers.haproxy_maps import MapFiles, share_of_green
from lbswitch.balancers.haproxy_shield import map_of
from lbswitch.balancers.templating import Templates
from lbswitch.core import haproxy_log
from lbswitch.core.config import Config, Mode, ServiceConfig, Switching, TlsConfig
from lbswitch.core.model import Color, Intent, ServiceIntent
from lbswitch.core.names import pool_name, shielded_name
from lbswitch.core.values import Endpoint, parse_endpoint
from lbswitch.errors import CheckFailed, RenderFailed
from lbswitch.ports import REVISION_MARK, Rendered, RenderedFile

_LONGEST_MS = 2**31 - 1  # HAProxy's timers
_NOT_SPLIT = 101


@dataclass(frozen=True, slots=True)
class Server:
    """A `server` line."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class _Pool:
    name: str
    servers: tuple[Server, ...]


@dataclass(frozen=True, slots=True)
class _Shielded:
    """A pool with the other color's servers standing by; `retries` is how many of those are asked at most."""

    name: str
    color: Color
    other: Color
    servers: tuple[Server, ...]
    others: tuple[Server, ...]

    @property
    def retries(self) -> int:
        """Each goes to another server of the other color."""
        return min(shielding.MOST_OTHERS, len({server.address for server in self.others}))


@dataclass(frozen=True, slots=True)
class _Literal:
    """Where a service with `switching: reload` goes; `weight` is green's percentage, 101 when not split."""

    live: Color
    weight: int
    generation: int

    @classmethod
    def of(cls, intent: ServiceIntent) -> _Literal:
        weight = share_of_green(intent.route) if intent.route.is_split else _NOT_SPLIT
        return cls(intent.route.live, weight, intent.generation)


@dataclass(frozen=True, slots=True)
class _Service:
    """One service, as templates see it."""

    name: str
    is_http: bool
    is_tls: bool
    has_port: bool
    bind: str
    initial: Color
    sticky_by: str
    sticky_name: str
    connect_ms: int
    read_ms: int
    pools: tuple[_Pool, ...]
    literal: _Literal | None
    shielded: tuple[_Shielded, ...]
    log_format: str


class Rendering:
    """Renders the configuration; the same inputs are rendered once."""

    def __init__(self, config: Config, directory: Path, files: MapFiles) -> None:
        """`directory` is the balancer's own below the state directory."""
        self._config = config
        self._directory = directory
        self._files = files
        override = config.balancer.templates
        self._templates = Templates("haproxy", None if override is None else Path(override))
        self._last: tuple[object, Rendered] | None = None
        self._tls = [service.tls for service in config.services.values() if service.tls is not None]

    def render(self, intent: Intent) -> Rendered:
        """The configuration for this intent.

        Raises: RenderFailed; CheckFailed with all that is wrong with TLS files, which become part of it.
        """
        inputs = self._inputs(intent)
        if self._last is None or self._last[0] != inputs:
            self._last = (inputs, Rendered.of(self._render(intent)))
        return self._last[1]

    @property
    def template_directories(self) -> tuple[Path, ...]:
        """Where templates are looked for, the operator's first."""
        return self._templates.directories

    def _inputs(self, intent: Intent) -> object:
        """Everything beside the configuration that the rendered bytes depend on."""
        literal = tuple((name, self._literal(name, intent)) for name in self._config.switching_by_reload)
        tls = tuple(_state(path) for service in self._tls for path in (service.cert, service.key))
        return self._templates.fingerprint(), literal, tls, os.geteuid()

    def _render(self, intent: Intent) -> Iterator[RenderedFile]:
        self._refuse_unusable()
        user, group = _user_and_group(self._config.balancer.user)
        variables = {
            "revision": REVISION_MARK,
            "connections": self._config.balancer.connections,
            "threads": self._config.balancer.workers,
            "user": user,
            "group": group,
            "live_map": str(self._files.live),
            "weights_map": str(self._files.weights),
            "shield_map": str(map_of(self._directory)),
            "repeatable": shielding.METHODS,
            "traffic_log": haproxy_log.log_target(self._directory / haproxy_log.SOCKET),
            "worker_socket": str(self._directory / "worker.sock"),
            "state_socket": str(self._directory / "state.sock"),
            "services": [self._service(name, intent) for name in self._config.services],
        }
        yield RenderedFile("haproxy.cfg", self._templates.render("haproxy.cfg.j2", variables))
        for name, service in self._config.services.items():
            if service.tls is not None:
                yield RenderedFile(f"{name}.pem", _pem(name, service.tls), secret=True)

    def _refuse_unusable(self) -> None:
        """All that is wrong with users and TLS files; the latter are needed to render. Raises: CheckFailed."""
        problems = [
            *_unknown_user(self._config.balancer.user),
            *tls_files.problems(self._config, may_be_encrypted=False),
        ]
        if problems:
            raise CheckFailed("\n".join(problems))

    def _service(self, name: str, intent: Intent) -> _Service:
        service = self._config.services[name]
        endpoint = parse_endpoint(service.bind)
        return _Service(
            name=name,
            is_http=service.mode is Mode.HTTP,
            is_tls=service.tls is not None,
            has_port=not endpoint.is_unix,
            bind=_bind(name, service, endpoint),
            initial=service.initial,
            sticky_by=service.weights.sticky_by if service.weights else "none",
            sticky_name=service.weights.sticky_name if service.weights else "",
            connect_ms=milliseconds(service.timeouts.connect),
            read_ms=milliseconds(service.timeouts.read),
            pools=tuple(_Pool(pool_name(name, color), servers(service, color)) for color in Color),
            literal=self._literal(name, intent),
            shielded=tuple(_shielded(name, service, color) for color in Color)
            if shielding.why_not(self._config, name) is None
            else (),
            log_format=haproxy_log.log_format(is_http=service.mode is Mode.HTTP),
        )

    def _literal(self, name: str, intent: Intent) -> _Literal | None:
        if self._config.switching(name) is not Switching.RELOAD:
            return None
        try:
            return _Literal.of(intent.services[name])
        except KeyError:
            raise RenderFailed(f"{name}: the intent does not say what it serves") from None


def server_name(position: int) -> str:
    """The name of the server that is listed there, counting from 0."""
    return f"s{position + 1}"


def servers(service: ServiceConfig, color: Color) -> tuple[Server, ...]:
    """The `server` lines of a color."""
    addresses = service.pool(color).servers
    return tuple(Server(server_name(i), _address(parse_endpoint(text))) for i, text in enumerate(addresses))


def _shielded(name: str, service: ServiceConfig, color: Color) -> _Shielded:
    own, others = shielded_servers(service, color, color), shielded_servers(service, color, color.other)
    return _Shielded(shielded_name(pool_name(name, color)), color, color.other, own, others)


def shielded_servers(service: ServiceConfig, shielded: Color, color: Color) -> tuple[Server, ...]:
    """The `server` lines of a color in the shield of one: named after their color, and of the other color two at least.

    HAProxy waits a second before it tries anew where only one server has a weight, so one that stands by alone is there
    under two names.
    """
    found = tuple(
        Server(f"{color}{server.name.removeprefix('s')}", server.address) for server in servers(service, color)
    )
    if shielded is color or len(found) > 1:
        return found
    return (*found, Server(f"{found[0].name}_again", found[0].address))


def _address(endpoint: Endpoint) -> str:
    return f"unix@{endpoint.path}" if endpoint.is_unix else str(endpoint)


def _bind(name: str, service: ServiceConfig, endpoint: Endpoint) -> str:
    """The arguments of the `bind` line."""
    words = [_address(endpoint)]
    if endpoint.is_unix:
        words.append("mode 666")  # as nginx has it; the directory says who may connect
    if endpoint.host == "::":
        words.append("v6only")  # as nginx has it, and whatever the system's default is
    if service.tls is not None:
        words.append(f"ssl crt {name}.pem")
        if service.mode is Mode.HTTP:
            words.append("alpn h2,http/1.1" if service.http2 else "alpn http/1.1")
    return " ".join(words)


def milliseconds(seconds: float) -> int:
    """For HAProxy's timers: one at least, and no more than they hold."""
    return min(_LONGEST_MS, max(1, round(seconds * 1000)))


def _user_and_group(configured: str | None) -> tuple[str | None, str | None]:
    """Who the workers run as; only root can choose. One that does not exist is refused."""
    if os.geteuid() != 0:
        return None, None
    for user in [configured] if configured else ["haproxy", "nobody"]:
        try:
            return user, grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
        except KeyError:
            continue
    return (configured, configured) if configured else (None, None)


def _unknown_user(configured: str | None) -> Iterator[str]:
    if configured is not None and os.geteuid() == 0:
        try:
            pwd.getpwnam(configured)
        except KeyError:
            yield f"balancer.user {configured}: there is no such user on this host"


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _pem(name: str, tls: TlsConfig) -> bytes:
    """Certificate chain and key in one, as HAProxy wants them. Raises: RenderFailed, naming the file."""
    cert, key = (_read(name, what, path) for what, path in (("cert", tls.cert), ("key", tls.key)))
    return cert.rstrip(b"\n") + b"\n" + key


def _read(name: str, what: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RenderFailed(f"services.{name}.tls.{what}: {path}: {error.strerror}") from error
