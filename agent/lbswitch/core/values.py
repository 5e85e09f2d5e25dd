"""Single values of the configuration: durations, addresses, names, paths; refused where they are read.

Each check allows what is known to be harmless wherever the value lands (an nginx or HAProxy file, a map, a
request line) and refuses the rest, so that no value can end a directive and begin another.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)$", re.ASCII)
_HOST = re.compile(r"^(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_-]{1,63})*\.?$", re.ASCII)
_PATH = re.compile(r"^/[A-Za-z0-9_@%+=:,./~-]*$", re.ASCII)
_TOKEN = re.compile(r"^[A-Za-z0-9_-]{1,64}$", re.ASCII)
_NAME = re.compile(r"^[a-z][a-z0-9_-]{0,47}$", re.ASCII)
_URL_PATH = re.compile(r"^/[A-Za-z0-9_@%+=:,./~!$&()*?-]*$", re.ASCII)
_HOST_HEADER = re.compile(r"^[A-Za-z0-9_.:\[\]-]{1,255}$", re.ASCII)
_UNIX_MAX = 107  # sun_path is 108 bytes with its NUL (unix(7))


def parse_duration(text: object) -> float:
    """Seconds in `250ms`, `1s`, `5m`, `2h` or `30d`. Raises: ValueError."""
    if isinstance(text, float) and not isinstance(text, bool):
        return text  # a default of our own, already in seconds
    match = _DURATION.match(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError("is not a duration: write a number and a unit, such as 250ms, 1s, 5m, 2h or 30d")
    return float(match[1]) * _UNITS_S[match[2]]


def format_duration(seconds: float) -> str:
    """The shortest exact way to write it: `500ms`, `1s`, `5m`, `90s`."""
    if seconds == 0:
        return "0s"
    for unit in ("d", "h", "m", "s"):
        amount = seconds / _UNITS_S[unit]
        if amount >= 1 and abs(amount - round(amount)) < 1e-9:
            return f"{round(amount)}{unit}"
    return f"{seconds * 1000:g}ms" if seconds < 1 else f"{seconds:g}s"


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be longer than 0")
    return seconds


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect: `host` and `port`, or the `path` of a unix socket (then host is "" and port 0)."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_unix(self) -> bool:
        """Whether this is a unix socket."""
        return bool(self.path)

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 address."""
        return ":" in self.host

    @property
    def is_any(self) -> bool:
        """Whether it stands for every address of the machine."""
        return self.host in ("*", "0.0.0.0", "::")  # noqa: S104 - compared, not bound

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.is_unix or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def local(self) -> Endpoint:
        """Where this machine reaches a listener that is bound here."""
        if self.host in ("*", "0.0.0.0"):  # noqa: S104 - compared, not bound
            return Endpoint("127.0.0.1", self.port)
        return Endpoint("::1", self.port) if self.host == "::" else self

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Read `127.0.0.1:80`, `[::1]:80`, `host.example:80`, `*:80` or `unix:/run/app.sock`. Raises: ValueError."""
    if text.startswith("unix:"):
        path = file_path(text.removeprefix("unix:"))
        if len(path.encode()) > _UNIX_MAX:
            raise ValueError(f"the socket path has {len(path)} bytes, the system allows {_UNIX_MAX}")
        return Endpoint(path=path)
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError("is not an address: write host:port with a port of 1-65535, [ipv6]:port or unix:/path")
    if host.startswith("[") and host.endswith("]"):
        try:
            return Endpoint(str(ipaddress.IPv6Address(host[1:-1])), int(port))
        except ValueError:
            raise ValueError(f"{host} is not an IPv6 address") from None
    if ":" in host:
        raise ValueError("is not an address: an IPv6 address goes in brackets, such as [::1]:8080")
    if host == "*":
        return Endpoint("*", int(port))
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return Endpoint(str(ipaddress.IPv4Address(host)), int(port))
        except ValueError:
            raise ValueError(f"{host} is not an IPv4 address") from None
    if not _HOST.match(host):
        raise ValueError(f"{host!r} is neither a host name nor an IP address")
    return Endpoint(host, int(port))


def _server_address(text: str) -> str:
    endpoint = parse_endpoint(text)
    if endpoint.is_any:
        raise ValueError("is a bind address, not one to connect to: name one host")
    return str(endpoint)


def _bind_address(text: str) -> str:
    return str(parse_endpoint(text))


def file_path(text: str) -> str:
    """Accept an absolute path made of characters that no balancer reads as syntax. Raises: ValueError."""
    if not _PATH.match(text):
        raise ValueError("is not an absolute path made of letters, digits and _@%+=:,./~-")
    return text


def _matching(pattern: re.Pattern[str], what: str) -> Any:
    def check(text: str) -> str:
        if not pattern.match(text):
            raise ValueError(f"is not {what}")
        return text

    return AfterValidator(check)


_DURATION_SCHEMA = WithJsonSchema(
    {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$", "examples": ["250ms", "1s", "5m"]}
)
_AS_TEXT = PlainSerializer(format_duration, return_type=str)

Duration = Annotated[float, BeforeValidator(parse_duration), AfterValidator(_positive), _AS_TEXT, _DURATION_SCHEMA]
"""Seconds, longer than 0; written with a unit."""
DurationOrZero = Annotated[float, BeforeValidator(parse_duration), _AS_TEXT, _DURATION_SCHEMA]
"""Seconds, 0 or more; written with a unit."""
ServerAddress = Annotated[str, AfterValidator(_server_address)]
"""One address to connect to, in its canonical form."""
BindAddress = Annotated[str, AfterValidator(_bind_address)]
"""One address to listen on, in its canonical form."""
FilePath = Annotated[str, AfterValidator(file_path)]
"""An absolute path."""
UrlPath = Annotated[str, _matching(_URL_PATH, "a path that begins with / and holds no spaces, quotes or ; # { }")]
"""The path, and query if any, of a request."""
HostHeader = Annotated[str, _matching(_HOST_HEADER, "a host name")]
"""A value for the Host header."""
Token = Annotated[str, _matching(_TOKEN, "a name made of letters, digits, _ and - (64 at most)")]
"""The name of a cookie, header, user or source."""
ServiceName = Annotated[
    str, _matching(_NAME, "a service name: a-z first, then a-z, 0-9, _ and -, 48 characters at most")
]
"""The name of a service; it becomes part of file, variable and backend names."""
