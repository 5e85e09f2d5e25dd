"""Single values of the configuration: durations, addresses, names, paths; refused where they are read.

Each check allows what is known to be harmless wherever the value lands (an nginx or HAProxy file, a map, a
request line) and refuses the rest, so that no value can end a directive and begin another. A message reads on from
"is 'what was written', which": `is not a path that ...`.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from lbswitch.core.durations import DURATION, format_duration, parse_duration

_SHORTEST_S = 0.001  # what the balancers can be told
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?")
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?")  # libc reads 0x7f.1 as an address
# HAProxy reads , ( ) and % inside map(...) and log formats.
_PATH = re.compile(r"/[A-Za-z0-9_@+=:./~-]*")
_SOCKET_PATH = re.compile(r"/[A-Za-z0-9_@+=./~-]*[A-Za-z0-9_@+=~-]")  # nginx ends a socket's path at a colon
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.@-]{0,247}\.service")
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")
_URL_PATH = re.compile(r"/[A-Za-z0-9_@%+=:,./~!$&()*?-]*")
_HOST_HEADER = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,255}")
_URL_REST = re.compile(r"(?:[/?][A-Za-z0-9_@%+=:,./~!$&()*?;\[\]'-]*)?")
_STICKY = re.compile(r"none|address|(?:cookie|header):[A-Za-z0-9_-]{1,64}")
_UNIX_MAX = 107  # sun_path is 108 bytes with its NUL (unix(7))
_URL = "a URL: write http://HOST[:PORT]/PATH or https://..."
_ADDRESS = "an address: write host:port with a port of 1-65535, [ipv6]:port or unix:/path"


def _duration(value: object, info: ValidationInfo) -> float:
    """Text from a file; code may also pass seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and info.mode == "python":
        if not 0 <= value < math.inf:
            raise ValueError("is not a duration in seconds")
        return float(value)
    return parse_duration(value)


def _positive(seconds: float) -> float:
    if seconds < _SHORTEST_S:
        raise ValueError("is shorter than 1ms")
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
        return Endpoint(path=socket_path(text.removeprefix("unix:")))
    host, _, port = text.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"is not {_ADDRESS}")
    return Endpoint(_host(host), int(port))


def _host(text: str) -> str:
    """The canonical form of a host. Raises: ValueError."""
    if text.startswith("[") and text.endswith("]"):
        return _ipv6(text[1:-1])
    if ":" in text:
        raise ValueError("is not an address: an IPv6 address goes in brackets, such as [::1]:8080")
    if text == "*":
        return text
    if re.fullmatch(r"[0-9.]+", text):
        return _ipv4(text)
    if not _HOST.fullmatch(text) or _ENDS_IN_NUMBER.fullmatch(text):
        raise ValueError("is not an address: the host is neither a host name nor an IP address")
    return text.lower()


def _ipv4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError("is not an address: the host is not an IPv4 address") from None


def _ipv6(text: str) -> str:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError("is not an address: what is in the brackets is not an IPv6 address") from None
    if address.scope_id is not None:
        raise ValueError("is not an address that can be used: zones (%...) are not supported")
    if address.ipv4_mapped is not None:
        raise ValueError(f"is an IPv4 address in IPv6 form: write {address.ipv4_mapped}")
    return str(address)


def _server_address(text: str) -> str:
    endpoint = parse_endpoint(text)
    if endpoint.is_any:
        raise ValueError("is an address to listen on, not one to connect to: name one host")
    return str(endpoint)


def _bind_address(text: str) -> str:
    return str(parse_endpoint(text))


def _api_address(text: str) -> str:
    endpoint = parse_endpoint(text)
    if endpoint.is_unix:
        raise ValueError("is not a TCP address: the unix socket of the API is agent.socket")
    if not endpoint.is_loopback:
        raise ValueError(
            "is not a loopback address: beyond loopback the API requires TLS and tokens, which this version "
            "does not have; listen on 127.0.0.1 or [::1], or use the unix socket"
        )
    return str(endpoint)


def http_url(text: str) -> str:
    """Accept the address of a document; who may read it is said elsewhere. Raises: ValueError."""
    scheme, _, after = text.partition("://")
    authority = re.split(r"[/?#]", after, maxsplit=1)[0]
    if "@" in authority:
        raise ValueError("holds a user or a password: they go in `user` and `password_file`")
    if scheme not in ("http", "https") or not _URL_REST.fullmatch(after[len(authority) :]):
        raise ValueError(f"is not {_URL}")
    try:
        # A name or an address in brackets may stand without a port.
        _server_address(authority if re.search(r":[0-9]*\Z", authority) else f"{authority}:1")
    except ValueError:
        raise ValueError(f"is not {_URL}") from None
    return text


def file_path(text: str) -> str:
    """Accept an absolute path made of characters that no balancer reads as syntax. Raises: ValueError."""
    if not _PATH.fullmatch(text):
        raise ValueError("is not an absolute path made of letters, digits and _@+=:./~-")
    return text


def socket_path(text: str) -> str:
    """Accept a path where a unix socket can be. Raises: ValueError."""
    if not _SOCKET_PATH.fullmatch(text):
        raise ValueError("is not an absolute path made of letters, digits and _@+=./~-")
    if len(text) > _UNIX_MAX:
        raise ValueError(
            f"is too long for a unix socket: the path has {len(text)} bytes, the system allows {_UNIX_MAX}"
        )
    return text


def argument(text: str) -> str:
    """Accept one word of a command line. Raises: ValueError."""
    if "\0" in text:
        raise ValueError("is not a word of a command line: it holds a NUL")
    return text


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"is not {what}")
        return text

    return check


def service_name(text: str) -> str:
    """Accept the name of a service. Raises: ValueError."""
    return _matching(_NAME, _SERVICE_NAME)(text)


def source_name(text: str) -> str:
    """Accept the name of a source. Raises: ValueError."""
    return _matching(_TOKEN, _SOURCE_NAME)(text)


@dataclass(frozen=True, slots=True)
class _Text:
    """Annotates a text that `check` accepts or makes canonical; `what` tells what to write instead of a number."""

    check: Callable[[str], str]
    what: str
    json_schema: Mapping[str, Any] = field(hash=False)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._whole, handler(source))

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", **self.json_schema}

    def _whole(self, value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"is not {self.what}")  # noqa: TRY004 - pydantic turns only this into a validation error
        return self.check(value)


def _pattern(regex: re.Pattern[str]) -> dict[str, Any]:
    return {"pattern": f"^(?:{regex.pattern})$"}


# JSON Schema says less than the checks above: it can't tell an IPv6 address from other colons and digits.
_PORT_SCHEMA = r":(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_UNIX_SCHEMA = rf"unix:(?={_SOCKET_PATH.pattern}$).{{1,{_UNIX_MAX}}}"
_NAME_SCHEMA = rf"(?!{_ENDS_IN_NUMBER.pattern}:[0-9]+$){_LABEL}(?:\.{_LABEL})*\.?"
_IPV4_SCHEMA = r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?!:)|(?=:))){4}"
_IPV6_SCHEMA = r"\[(?=[^\]]*:)[0-9A-Fa-f:.]{2,45}\]"
_HOSTS_SCHEMA = rf"{_IPV4_SCHEMA}|{_NAME_SCHEMA}|{_IPV6_SCHEMA}"
_SERVER_SCHEMA = rf"^(?:{_UNIX_SCHEMA}|(?!0\.0\.0\.0:|\[::\])(?:{_HOSTS_SCHEMA}){_PORT_SCHEMA})$"
_API_SCHEMA = rf"^(?:localhost|(?=127\.){_IPV4_SCHEMA}|\[(?:0{{0,4}}:){{2,7}}0{{0,3}}1\]){_PORT_SCHEMA}$"
_BIND_SCHEMA = rf"^(?:{_UNIX_SCHEMA}|(?:\*|{_HOSTS_SCHEMA}){_PORT_SCHEMA})$"
_DURATION_SCHEMA = WithJsonSchema({"type": "string", **_pattern(DURATION), "examples": ["250ms", "1s", "5m"]})
_AS_TEXT = PlainSerializer(format_duration, return_type=str)


Duration = Annotated[float, BeforeValidator(_duration), AfterValidator(_positive), _AS_TEXT, _DURATION_SCHEMA]
"""Seconds, a millisecond at least; written with a unit."""
DurationOrZero = Annotated[float, BeforeValidator(_duration), _AS_TEXT, _DURATION_SCHEMA]
"""Seconds, 0 or more; written with a unit."""


def _named(pattern: re.Pattern[str], what: str) -> _Text:
    return _Text(_matching(pattern, what), what, _pattern(pattern))


_SERVICE_NAME = "a service name: a-z first, then a-z, 0-9, _ and -, 48 characters at most"
_SOURCE_NAME = "the name of a source: letters, digits, _ and - (64 at most)"
_PATH_WORDS = "an absolute path, such as /var/lib/lbswitch"

ServerAddress = Annotated[str, _Text(_server_address, _ADDRESS, {"pattern": _SERVER_SCHEMA})]
"""One address to connect to, in its canonical form."""
BindAddress = Annotated[str, _Text(_bind_address, _ADDRESS, {"pattern": _BIND_SCHEMA})]
"""One address to listen on, in its canonical form."""
ApiAddress = Annotated[str, _Text(_api_address, _ADDRESS, {"pattern": _API_SCHEMA})]
"""One loopback address that the API listens on."""
FilePath = Annotated[str, _Text(file_path, _PATH_WORDS, _pattern(_PATH))]
"""An absolute path."""
HttpUrl = Annotated[str, _Text(http_url, _URL, {"pattern": r"^https?://[^\s/?#@]+([/?][^\s#]*)?$"})]
"""An http or https URL without user and password."""
SocketPath = Annotated[str, _Text(socket_path, _PATH_WORDS, {**_pattern(_SOCKET_PATH), "maxLength": _UNIX_MAX})]
"""The absolute path of a unix socket."""
UrlPath = Annotated[str, _named(_URL_PATH, "a path that begins with / and holds no spaces, quotes or ; # { }")]
"""The path, and query if any, of a request."""
HostHeader = Annotated[str, _named(_HOST_HEADER, "a host name")]
"""A value for the Host header."""
Token = Annotated[str, _named(_TOKEN, "a name made of letters, digits, _ and - (64 at most)")]
"""The name of a cookie, header, user or source."""
SourceName = Annotated[str, _named(_TOKEN, _SOURCE_NAME)]
"""The name of a source of metrics."""
UnitName = Annotated[str, _named(_UNIT, "the name of a systemd service, such as nginx.service")]
"""A systemd service unit."""
ContainerName = Annotated[str, _named(_CONTAINER, "the name or id of a container")]
"""A container of Docker."""
ServiceName = Annotated[str, _named(_NAME, _SERVICE_NAME)]
"""The name of a service; it becomes part of file, variable and backend names."""
Stickiness = Annotated[str, _named(_STICKY, "one of none, address, cookie:NAME and header:NAME")]
"""Who stays on a color while both get traffic."""
Argument = Annotated[str, _Text(argument, "text: put it in quotes", {"pattern": "^[^\\u0000]*$"})]
"""One word of a command line."""
