"""The configuration file as typed values (DESIGN 7.1). Reading YAML into them is `core.config_text`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from lbswitch.core.model import Color
from lbswitch.core.values import (
    BindAddress,
    Duration,
    DurationOrZero,
    FilePath,
    HostHeader,
    ServerAddress,
    ServiceName,
    Token,
    UrlPath,
    parse_endpoint,
)


class BalancerKind(StrEnum):
    """The two load balancers that lbswitch drives."""

    NGINX = "nginx"
    HAPROXY = "haproxy"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class AgentConfig(_Section):
    """Where the agent keeps its state and where it listens."""

    state_dir: FilePath = Field(
        "/var/lib/lbswitch", description="Pointer, journal, history; on a disk that survives a reboot."
    )
    socket: FilePath = Field("/run/lbswitch/agent.sock", description="Unix socket of the API, mode 0660.")
    listen: BindAddress | None = Field(None, description="TCP address of the API; loopback only in this version.")

    @field_validator("listen")
    @classmethod
    def _listen_on_loopback(cls, value: str | None) -> str | None:
        if value is not None and not parse_endpoint(value).is_loopback:
            raise ValueError(
                "is not a loopback address: beyond loopback the API requires TLS and tokens, which this version "
                "does not have; listen on 127.0.0.1 or [::1], or use the unix socket"
            )
        return value


class BalancerConfig(_Section):
    """The nginx or HAProxy on this host."""

    kind: BalancerKind = Field(description="nginx or haproxy.")
    managed: bool = Field(True, description="lbswitch writes the whole main configuration and starts the balancer.")
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

    @field_validator("managed")
    @classmethod
    def _only_managed(cls, value: bool) -> bool:
        if not value:
            raise ValueError(
                "false is not in this version: lbswitch writes and starts the balancer itself (managed: true)"
            )
        return value


class PoolConfig(_Section):
    """The servers of one color."""

    servers: tuple[ServerAddress, ...] = Field(min_length=1, max_length=1000)

    @field_validator("servers")
    @classmethod
    def _no_server_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({address for address in value if value.count(address) > 1})
        if twice:
            raise ValueError(f"lists {', '.join(twice)} twice")
        return value


class HealthType(StrEnum):
    """How a server is checked."""

    HTTP = "http"
    TCP = "tcp"
    COMMAND = "command"


def _status_ranges(value: object) -> object:
    """`200`, `200-399` or a list of both, as pairs of first and last."""
    items = value if isinstance(value, list | tuple) else [value]
    ranges = []
    for item in items:
        if isinstance(item, tuple) and len(item) == 2:
            ranges.append(item)
            continue
        first, _, last = str(item).partition("-")
        if not (first.isdigit() and (last.isdigit() or not last)):
            raise ValueError("is not a status or a range of them, such as 200 or 200-399")
        low, high = int(first), int(last or first)
        if not 100 <= low <= high <= 599:
            raise ValueError("is not within 100-599")
        ranges.append((low, high))
    return tuple(ranges)


class HealthConfig(_Section):
    """How every server of both colors is checked, all the time."""

    type: HealthType = HealthType.HTTP
    path: UrlPath = "/health"
    method: Literal["GET", "HEAD", "OPTIONS"] = "GET"
    host: HostHeader | None = Field(None, description="Host header; by default the server's address.")
    port: int | None = Field(None, ge=1, le=65535, description="Check this port instead of the server's.")
    expect: Annotated[
        tuple[tuple[int, int], ...],
        BeforeValidator(_status_ranges, json_schema_input_type=int | str | list[int | str]),
    ] = Field(((200, 399),), description="Statuses that pass, such as 200 or [200-299, 401].")
    body: str | None = Field(
        None, min_length=1, max_length=1000, description="Text that the first 64 KiB of the body must hold."
    )
    tls: bool = Field(False, description="Check over TLS (the certificate is not verified).")
    command: tuple[str, ...] | None = Field(
        None, min_length=1, description="argv; {address}, {host} and {port} are filled in. 0 passes."
    )
    interval: Duration = 1.0
    timeout: Duration = 0.5
    jitter: float = Field(0.1, ge=0, le=0.5, description="Random share of the interval by which checks are spread.")
    rise: int = Field(2, ge=1, le=100, description="Passes in a row until a server is healthy.")
    fall: int = Field(2, ge=1, le=100, description="Failures in a row until a server is unhealthy.")
    min_healthy: int = Field(1, ge=1, description="Healthy servers that make the color healthy.")
    eject_after: Duration = Field(
        30.0,
        description="nginx before 1.27.4: how long a server stays down until a reload takes it out of its pool.",
    )

    @model_validator(mode="after")
    def _command_with_its_type(self) -> Self:
        if (self.type is HealthType.COMMAND) != (self.command is not None):
            raise ValueError("type: command and command: [...] go together")
        return self


class FailoverConfig(_Section):
    """When the agent switches by itself because the live color is unhealthy."""

    enabled: bool = True
    cooldown: DurationOrZero = Field(30.0, description="Least time between two automatic switches.")
    max_per_hour: int = Field(3, ge=1, le=1000, description="Automatic switches in an hour before the service latches.")


class OnBreach(StrEnum):
    """What a breach during the bake leads to."""

    ROLLBACK = "rollback"
    FREEZE = "freeze"
    ALERT = "alert"


class BakeConfig(_Section):
    """The watch period after a switch. Read and validated; acted on from a later version."""

    duration: Duration = 300.0
    shield: bool = True
    on_breach: OnBreach = OnBreach.ROLLBACK


class CriterionConfig(_Section):
    """One criterion. Read and validated; acted on from a later version."""

    threshold: float = Field(allow_inf_nan=False, ge=0)
    window: Duration
    min_samples: int | None = Field(None, ge=1)
    quantile: float | None = Field(None, gt=0, lt=1)
    source: Token | None = None


class CriteriaConfig(_Section):
    """The criteria of the contract."""

    error_rate: CriterionConfig | None = Field(None, description="5xx answers per second.")
    error_ratio: CriterionConfig | None = Field(None, description="Share of requests that fail, 0-1.")
    response_time: CriterionConfig | None = Field(None, description="Milliseconds at the quantile.")
    database_connections: CriterionConfig | None = Field(None, description="Fraction of the maximum.")
    health_check: CriterionConfig | None = Field(None, description="Failed checks.")


class PolicyConfig(_Section):
    """How criteria become a decision. Read and validated; acted on from a later version."""

    trigger: Literal["any", "confidence"] = "any"
    alert_threshold: float = Field(0.8, gt=0, le=1)


class TlsConfig(_Section):
    """TLS termination: PEM files of the certificate chain and its key."""

    cert: FilePath
    key: FilePath


class WeightsConfig(_Section):
    """Renders the service so that weights move without a reload, and says who sticks to a color.

    `sticky` is `none` (every request draws), `address`, `cookie:NAME` or `header:NAME`.
    """

    sticky: Annotated[str, Field(pattern=r"^(none|address|(cookie|header):[A-Za-z0-9_-]{1,64})$")] = "none"

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

    bind: BindAddress
    mode: Mode = Mode.HTTP
    blue: PoolConfig
    green: PoolConfig
    initial: Color = Color.BLUE
    switching: Switching | None = Field(None, description="By default pointer on nginx and map on HAProxy.")
    health: HealthConfig = HealthConfig()
    failover: FailoverConfig = FailoverConfig()
    bake: BakeConfig | None = None
    criteria: CriteriaConfig | None = None
    policy: PolicyConfig | None = None
    tls: TlsConfig | None = None
    http2: bool = False
    weights: WeightsConfig | None = None
    timeouts: TimeoutsConfig = TimeoutsConfig()
    verify: VerifyConfig = VerifyConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        smaller = min(len(self.blue.servers), len(self.green.servers))
        if self.health.min_healthy > smaller:
            raise ValueError(f"health.min_healthy is {self.health.min_healthy}, but a color has only {smaller} servers")
        if self.http2 and self.tls is None:
            raise ValueError("http2 needs tls: clients negotiate it in the TLS handshake")
        if self.mode is Mode.TCP:
            self._fits_tcp()
        return self

    def _fits_tcp(self) -> None:
        if self.http2:
            raise ValueError("http2 is for mode: http")
        if self.weights is not None and self.weights.sticky_by in ("cookie", "header"):
            raise ValueError(
                f"weights.sticky: {self.weights.sticky} needs mode: http; in mode: tcp use none or address"
            )

    def pool(self, color: Color) -> PoolConfig:
        """The servers of `color`."""
        return self.blue if color is Color.BLUE else self.green


class Config(_Section):
    """The whole file."""

    agent: AgentConfig = AgentConfig()
    balancer: BalancerConfig
    services: dict[ServiceName, ServiceConfig] = Field(min_length=1)

    def switching(self, service: str) -> Switching:
        """How this service switches, with the balancer's default filled in."""
        chosen = self.services[service].switching
        if chosen is not None:
            return chosen
        return Switching.POINTER if self.balancer.kind is BalancerKind.NGINX else Switching.MAP
