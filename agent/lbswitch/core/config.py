"""The configuration file as typed values (DESIGN 7.1). Reading YAML into them is `core.config_text`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PrivateAttr,
    field_validator,
    model_validator,
)

from lbswitch.core import defaults
from lbswitch.core.alert_config import AlertsConfig
from lbswitch.core.bake_config import BakeConfig, Criteria, PolicyConfig, misfits
from lbswitch.core.model import Color, Kind, ServerKey
from lbswitch.core.sections import Misfit
from lbswitch.core.sections import Section as _Section
from lbswitch.core.sections import refuse as _refuse
from lbswitch.core.source_config import SourceConfig
from lbswitch.core.values import (
    ApiAddress,
    Argument,
    BindAddress,
    ContainerName,
    Duration,
    DurationOrZero,
    FilePath,
    HostHeader,
    ServerAddress,
    ServiceName,
    SocketPath,
    SourceName,
    Stickiness,
    Token,
    UnitName,
    UrlPath,
)


class BalancerKind(StrEnum):
    """The two load balancers that lbswitch drives."""

    NGINX = "nginx"
    HAPROXY = "haproxy"


class WaitConfig(_Section):
    """How long edits are left to settle before they are rendered, checked and applied."""

    min: Duration = Field(0.25, description="Quiet time after the last edit.")
    max: Duration = Field(2.0, description="The longest that edits which go on and on put it off.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.max < self.min:
            _refuse([Misfit(("max",), "is shorter than min")])
        return self


class OnDrift(StrEnum):
    """What the agent does when files or the running balancer are not as intended any more."""

    REPORT = "report"
    REPAIR = "repair"


class SnapshotsConfig(_Section):
    """How many snapshots are kept. Those that a rollback needs are kept beyond that."""

    keep: int = Field(100, ge=10, le=10_000, description="The newest that are kept, whatever their age.")
    age: Duration = Field(30 * 86400.0, description="Older ones beyond `keep` are removed.")


class AgentConfig(_Section):
    """Where the agent keeps its state and where it listens."""

    state_dir: FilePath = Field(
        defaults.STATE_DIR, description="Pointer, journal, history; on a disk that survives a reboot."
    )
    socket: SocketPath = Field(defaults.SOCKET, description="Unix socket of the API, mode 0660.")
    listen: ApiAddress | None = Field(None, description="TCP address of the API; loopback only in this version.")
    wait: WaitConfig = WaitConfig()
    on_drift: OnDrift = OnDrift.REPORT
    snapshots: SnapshotsConfig = SnapshotsConfig()


class Control(StrEnum):
    """How a balancer that somebody else manages is checked and reloaded."""

    SIGNAL = "signal"
    SYSTEMD = "systemd"
    DOCKER = "docker"


_ONLY_MANAGED = ("user", "workers", "connections", "old_workers")
_ONLY_GUEST = ("config", "output_dir", "control", "unit", "pid_file", "container", "container_paths", "master_socket")
_OF_CONTROL = {
    "unit": Control.SYSTEMD,
    "pid_file": Control.SIGNAL,
    "container": Control.DOCKER,
    "container_paths": Control.DOCKER,
}


class BalancerConfig(_Section):
    """The nginx or HAProxy on this host."""

    kind: BalancerKind = Field(description="nginx or haproxy.")
    managed: bool = Field(
        True,
        description="true: lbswitch writes the whole main configuration and starts the balancer. false: it is "
        "somebody else's, and lbswitch writes files that their configuration includes.",
    )
    binary: FilePath | None = Field(None, description="The program; by default it is looked up.")
    user: Token | None = Field(
        None, description="User of the workers when started by root; by default the distribution's."
    )
    templates: FilePath | None = Field(None, description="Directory whose templates come before the stock ones.")
    workers: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Worker processes (nginx) or threads (HAProxy); by default one a core.",
    )
    connections: int = Field(
        4096,
        ge=64,
        le=1_000_000,
        description="Most connections at once: a worker's (nginx), the process's (HAProxy).",
    )
    old_workers: int = Field(
        16,
        ge=1,
        le=1000,
        description="From how many reloads workers may go on with their connections; the oldest beyond it are ended.",
    )
    config: tuple[FilePath, ...] | None = Field(
        None,
        min_length=1,
        json_schema_extra={
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "null"},
            ]
        },
        description="managed: false. The owner's main file (nginx -c), or the files and directories of haproxy -f.",
    )
    output_dir: FilePath | None = Field(None, description="managed: false. The directory that lbswitch writes to.")
    control: Control | None = Field(None, description="managed: false. How to check and reload; signal by default.")
    unit: UnitName | None = Field(
        None, description="control: systemd. The unit; by default nginx.service or haproxy.service."
    )
    pid_file: FilePath | None = Field(None, description="control: signal. The pid file; else the master is looked for.")
    container: ContainerName | None = Field(None, description="control: docker. The container's name or id.")
    container_paths: dict[FilePath, FilePath] | None = Field(
        None, min_length=1, description="control: docker. Directories here, and where the container has them."
    )
    master_socket: SocketPath | None = Field(
        None, description="HAProxy with managed: false. The master socket (haproxy -S), as this host sees it."
    )

    @field_validator("config", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value  # strict validation takes no list here

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _refuse(self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        foreign = _ONLY_GUEST if self.managed else _ONLY_MANAGED
        whose = "needs managed: false" if self.managed else "is the owner's to set with managed: false"
        yield from (Misfit((key,), whose) for key in foreign if self._is_set(key))
        if not self.managed:
            yield from self._guest_misfits()

    def _guest_misfits(self) -> Iterator[Misfit]:
        for key in ("config", "output_dir"):
            if getattr(self, key) is None:
                yield Misfit((key,), "is missing, which managed: false needs")
        if self.kind is BalancerKind.NGINX and self.config is not None and len(self.config) > 1:
            yield Misfit(("config",), "names several files, but nginx has one main file")
        if self.kind is BalancerKind.NGINX and self.master_socket is not None:
            yield Misfit(("master_socket",), "is for kind: haproxy")
        if self.kind is BalancerKind.HAPROXY and self.master_socket is None:
            yield Misfit(("master_socket",), "is missing: without haproxy -S a switch reaches no worker")
        for key, control in _OF_CONTROL.items():
            if self._is_set(key) and self.controlled_by is not control:
                yield Misfit((key,), f"is for control: {control}, but control is {self.controlled_by}")
        if self.controlled_by is Control.DOCKER and self.container is None:
            yield Misfit(("container",), "is missing, which control: docker needs")

    def _is_set(self, key: str) -> bool:
        """Whether a default was changed."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    @property
    def controlled_by(self) -> Control:
        """How it is checked and reloaded when it is not managed."""
        return self.control or Control.SIGNAL


class PoolConfig(_Section):
    """The servers of one color."""

    servers: tuple[ServerAddress, ...] = Field(
        min_length=1,
        max_length=1000,
        json_schema_extra={"uniqueItems": True},
        description="Addresses, such as [127.0.0.1:9101].",
    )

    @field_validator("servers")
    @classmethod
    def _no_server_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = [address for address, count in Counter(value).items() if count > 1]
        if twice:
            raise ValueError(f"lists {', '.join(twice)} more than once")
        return value


class HealthType(StrEnum):
    """How a server is checked."""

    HTTP = "http"
    TCP = "tcp"
    COMMAND = "command"


_STATUSES = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")


def _status_range(item: object) -> tuple[int, int]:
    if isinstance(item, list | tuple) and len(item) == 2 and all(type(end) is int for end in item):
        item = f"{item[0]}-{item[1]}"
    match = _STATUSES.fullmatch(str(item))
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 100 <= first <= last:
        raise ValueError(f"holds {item!r}, which is not a status or a range of 100-599, such as 200 or 200-399")
    return first, last


def _status_ranges(value: object) -> object:
    """`200`, `200-399` or a list of both, as pairs of first and last."""
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError("holds no status, so that nothing could pass: write one, such as 200 or 200-399")
    return tuple(_status_range(item) for item in items)


_Status = Annotated[int, Field(ge=100, le=599)] | Annotated[str, Field(pattern=rf"^{_STATUSES.pattern}$")]


def _status_texts(ranges: tuple[tuple[int, int], ...]) -> list[str]:
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]


class HealthConfig(_Section):
    """How every server of both colors is checked, all the time."""

    type: HealthType = HealthType.HTTP
    path: UrlPath = "/health"
    method: Literal["GET", "HEAD", "OPTIONS"] = "GET"
    host: HostHeader | None = Field(None, description="Host header; by default the server's address.")
    port: int | None = Field(None, ge=1, le=65535, description="Check this port instead of the server's.")
    expect: Annotated[
        tuple[tuple[int, int], ...],
        BeforeValidator(_status_ranges, json_schema_input_type=_Status | Annotated[list[_Status], Field(min_length=1)]),
        PlainSerializer(_status_texts, return_type=list[str]),
    ] = Field(
        ((200, 399),),
        description="Statuses that pass, such as 200 or [200-299, 401].",
        json_schema_extra={"default": ["200-399"]},
    )
    body: str | None = Field(
        None, min_length=1, max_length=1000, description="Text that the first 64 KiB of the body must hold."
    )
    tls: bool = Field(False, description="Check over TLS (the certificate is not verified).")
    command: tuple[Argument, ...] | None = Field(
        None, min_length=1, description="argv; {address}, {host} and {port} are filled in. 0 passes."
    )
    interval: Duration = 1.0
    timeout: Duration = 0.5
    jitter: float = Field(0.1, ge=0, le=0.5, description="Random share of the interval by which checks are spread.")
    rise: int = Field(2, ge=1, le=100, description="Passes in a row until a server is healthy.")
    fall: int = Field(2, ge=1, le=100, description="Failures in a row until a server is unhealthy.")
    min_healthy: int = Field(1, ge=1, le=1000, description="Healthy servers that make the color healthy.")
    eject_after: Duration = Field(
        30.0,
        description="nginx before 1.27.4: how long a server stays down until a reload takes it out of its pool.",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _refuse(self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        if self.type is HealthType.COMMAND and self.command is None:
            yield Misfit(("type",), "is 'command', but there is no command: [...] to run")
        if self.method == "HEAD" and self.body is not None:
            yield Misfit(("body",), "can never be found, because an answer to method: HEAD has no body")
        if self.type is not HealthType.COMMAND and self.command is not None:
            yield Misfit(("command",), f"is for type: command, but type is {self.type}")


class FailoverConfig(_Section):
    """When the agent switches by itself because the live color is unhealthy."""

    enabled: bool = True
    cooldown: DurationOrZero = Field(30.0, description="Least time between two automatic switches.")
    max_per_hour: int = Field(3, ge=1, le=1000, description="Automatic switches in an hour before the service latches.")


class TlsConfig(_Section):
    """TLS termination: PEM files of the certificate chain and its key."""

    cert: FilePath = Field(description="Path of the certificate chain.")
    key: FilePath = Field(description="Path of the private key.")


class WeightsConfig(_Section):
    """Renders the service so that weights move without a reload, and says who sticks to a color.

    `sticky` is `none` (every request draws), `address`, `cookie:NAME` or `header:NAME`.
    """

    sticky: Stickiness = "none"

    @property
    def sticky_by(self) -> str:
        """`none`, `address`, `cookie` or `header`."""
        return self.sticky.partition(":")[0]

    @property
    def sticky_name(self) -> str:
        """The name of the cookie or header, else empty."""
        return self.sticky.partition(":")[2]


class TimeoutsConfig(_Section):
    """How long the balancer waits for a server."""

    connect: Duration = 2.0
    read: Duration = Field(60.0, description="Between two reads of an answer; also how long an idle WebSocket lives.")


class VerifyConfig(_Section):
    """When a switch counts as seen."""

    answers: int = Field(3, ge=1, le=100, description="Answers in a row, each on a connection of its own.")
    deadline: Duration = 5.0
    host: HostHeader | None = Field(
        None, description="managed: false. Host header, and server name over TLS, of the owner's listener."
    )
    tls: bool = Field(False, description="managed: false. Whether the owner's listener speaks TLS.")
    prefix: UrlPath | None = Field(
        None, description="HAProxy with managed: false. Put before the question's path, where the path chooses."
    )


class Leftover(StrEnum):
    """What becomes of connections to a color that lost its traffic."""

    WAIT = "wait"
    CLOSE = "close"


class DrainConfig(_Section):
    """What becomes of connections that are open to a color when it has lost its traffic.

    `wait` lets them end by themselves; `close` ends them, `close_after` later and evenly over `close_over`.
    """

    forward: Leftover = Field(Leftover.WAIT, description="After a switch or a restore: wait or close.")
    back: Leftover = Field(Leftover.WAIT, description="After a rollback or a failover: wait or close.")
    close_after: DurationOrZero = Field(0.0, description="close: how long they are left alone at first.")
    close_over: Duration = Field(10.0, description="close: the time over which they are spread.")

    def leftover(self, kind: Kind) -> Leftover:
        """What becomes of them after an operation of that kind."""
        return self.back if kind.is_way_back else self.forward


class Switching(StrEnum):
    """How a switch reaches the balancer."""

    POINTER = "pointer"
    MAP = "map"
    RELOAD = "reload"


class Mode(StrEnum):
    """What a service carries."""

    HTTP = "http"
    TCP = "tcp"


class ServiceConfig(_Section):
    """One traffic entry point with two colors."""

    bind: BindAddress = Field(description="Where clients connect, such as 127.0.0.1:8080.")
    mode: Mode = Mode.HTTP
    blue: PoolConfig = Field(description="A pool, such as {servers: [127.0.0.1:9101]}.")
    green: PoolConfig = Field(description="A pool, such as {servers: [127.0.0.1:9102]}.")
    initial: Color = Color.BLUE
    switching: Switching | None = Field(None, description="By default pointer on nginx and map on HAProxy.")
    health: HealthConfig = HealthConfig()
    failover: FailoverConfig = FailoverConfig()
    bake: BakeConfig | None = None
    criteria: Criteria | None = Field(None, description="By name; without them error_ratio alone is watched.")
    policy: PolicyConfig | None = None
    tls: TlsConfig | None = None
    http2: bool = False
    weights: WeightsConfig | None = None
    timeouts: TimeoutsConfig = TimeoutsConfig()
    verify: VerifyConfig = VerifyConfig()
    drain: DrainConfig = DrainConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _refuse(self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        yield from misfits(self.criteria)
        for color in Color:
            servers = len(self.pool(color).servers)
            if self.health.min_healthy > servers:
                what = "1 server" if servers == 1 else f"{servers} servers"
                words = f"is {self.health.min_healthy}, but {color} has only {what} and could never be healthy"
                yield Misfit(("health", "min_healthy"), words)
        if self.http2 and self.mode is Mode.TCP:
            yield Misfit(("http2",), "is for mode: http")
        elif self.http2 and self.tls is None:
            yield Misfit(("http2",), "needs tls: clients negotiate it in the TLS handshake")
        if self.mode is Mode.TCP and self.weights is not None and self.weights.sticky_by in ("cookie", "header"):
            words = f"is {self.weights.sticky!r}, which needs mode: http; in mode: tcp use none or address"
            yield Misfit(("weights", "sticky"), words)

    def pool(self, color: Color) -> PoolConfig:
        """The servers of `color`."""
        return self.blue if color is Color.BLUE else self.green


class Config(_Section):
    """The whole file."""

    agent: AgentConfig = AgentConfig()
    balancer: BalancerConfig = Field(description="At least {kind: nginx} or {kind: haproxy}.")
    services: dict[ServiceName, ServiceConfig] = Field(
        min_length=1, max_length=10_000, description="One section for each service, under its name."
    )
    alerts: AlertsConfig = AlertsConfig()
    sources: dict[SourceName, Annotated[SourceConfig, Field(discriminator="kind")]] = Field(
        {}, max_length=1000, description="Metrics from elsewhere, under the names by which criteria call them."
    )
    _text: str | None = PrivateAttr(None)
    _by_reload: frozenset[str] | None = PrivateAttr(None)

    @property
    def text(self) -> str | None:
        """The file's text, where this was read from one."""
        return self._text

    def read_from(self, text: str | None) -> Self:
        """The same, remembering the text that it was read from."""
        self._text = text
        return self

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, whatever comments and order their files have."""
        return isinstance(other, Config) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # holds dictionaries

    def lists(self, key: ServerKey) -> bool:
        """Whether that server is in that pool."""
        service = self.services.get(key.service)
        return service is not None and key.address in service.pool(key.color).servers

    @property
    def switching_by_reload(self) -> frozenset[str]:
        """The services whose rendered files say where traffic goes; asked for every switch."""
        if self._by_reload is None:
            self._by_reload = frozenset(name for name in self.services if self.switching(name) is Switching.RELOAD)
        return self._by_reload

    def switching(self, service: str) -> Switching:
        """How this service switches, with the balancer's default filled in."""
        chosen = self.services[service].switching
        if chosen is not None:
            return chosen
        return Switching.POINTER if self.balancer.kind is BalancerKind.NGINX else Switching.MAP
