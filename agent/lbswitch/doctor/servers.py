"""The two colors' servers: that they are two, that their names resolve, and what their health paths say."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from lbswitch import __version__
from lbswitch.core.config import HealthConfig, HealthType, ServiceConfig
from lbswitch.core.model import Color
from lbswitch.core.values import Endpoint, parse_endpoint
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, error, note, warning
from lbswitch.doctor.together import together
from lbswitch.doctor.words import listed

_MOST_SERVERS = 50  # of a service: the rest are alike
_BODY = 65536
_INSTANCE = ("instance", "instance_id", "instanceid", "pod")
_MACHINE = ("boot_id", "hostname", "server_id", "machine_id")
_SAID_BY_ALL = frozenset({"date", "content-length", "content-type", "connection", "keep-alive", "server", "vary"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a health path said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def same(case: Case) -> Iterator[Finding]:
    """Both colors are the same server."""
    for name, service in case.services.items():
        blue, green = (_places(case, service, color) for color in (Color.BLUE, Color.GREEN))
        for place in sorted(blue.keys() & green.keys()):
            first, second = blue[place], green[place]
            how = f"{first} and {second} both resolve to {place}" if first != second else f"both colors list {first}"
            yield warning(
                f"{name}: blue and green reach the same server ({how}): a switch changes nothing, and a failure of one "
                "color is one of both",
                f"give services.{name}.green servers of its own",
                name,
            )


def _places(case: Case, service: ServiceConfig, color: Color) -> dict[str, str]:
    """Addresses and ports, each with the server that leads there."""
    found: dict[str, str] = {}
    for server in service.pool(color).servers:
        endpoint = parse_endpoint(server)
        if endpoint.is_unix:
            found[str(endpoint)] = server
            continue
        for address in _resolved(case)[endpoint.host]:
            found[str(Endpoint(address, endpoint.port))] = server
    return found


def _resolved(case: Case) -> Mapping[str, list[str]]:
    """By host, the addresses of all servers; asked for once."""
    found: Mapping[str, list[str]] = case.look_up("resolved", lambda: together(_addresses, _hosts(case)))
    return found


def _hosts(case: Case) -> Iterator[str]:
    for service in case.services.values():
        for server in (*service.blue.servers, *service.green.servers):
            endpoint = parse_endpoint(server)
            if not endpoint.is_unix:
                yield endpoint.host


def _addresses(host: str) -> list[str]:
    """What a name resolves to; an address is itself, and a name that does not resolve gives none."""
    if _is_address(host):
        return [host]
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def unresolved(case: Case) -> Iterator[Finding]:
    """A server's name is not known."""
    hosts: dict[str, str] = {}
    for name, service in case.services.items():
        for color in Color:
            for server in service.pool(color).servers:
                endpoint = parse_endpoint(server)
                if not endpoint.is_unix and not _is_address(endpoint.host):
                    hosts.setdefault(endpoint.host, name)
    for host, found in _resolved(case).items():
        if not found and host in hosts:
            yield _unknown(case, host, hosts[host])


def _unknown(case: Case, host: str, name: str) -> Finding:
    mend = f"mend the name, or DNS: getent hosts {host}"
    if case.is_nginx:
        return error(
            f"{name}: {host} does not resolve: nginx refuses a configuration with such a name, so it would neither "
            "reload nor start",
            mend,
            name,
        )
    return warning(
        f"{name}: {host} does not resolve: HAProxy leaves such a server out until its next reload", mend, name
    )


# -- what the health paths say ---------------------------------------------------------------------------------


def odd_health(case: Case) -> Iterator[Finding]:
    """A health path that passes although it says that there is nothing to ask."""
    for name, service in _checked(case):
        answers = _asked(case, name)
        missing = [address for address, answer in answers.items() if answer is not None and answer.status in (404, 410)]
        moved = [address for address, answer in answers.items() if answer is not None and 300 <= answer.status < 400]
        path = service.health.path
        if missing:
            yield warning(
                f"{name}: {path} is not there on {listed(missing)} (HTTP 404 or 410): the check judges nothing",
                f"services.{name}.health.path: one that the application answers",
                name,
            )
        if moved and _passes(service.health, 302):
            target = _location(answers[moved[0]])
            yield warning(
                f"{name}: {path} on {listed(moved)} redirects (to {target}), which passes: a login page or a proxy in "
                "front may answer so while the application is down",
                f"services.{name}.health.expect: 200-299, or the path that it redirects to",
                name,
            )


def _location(answer: Answer | None) -> str:
    return answer.headers.get("location", "nowhere") if answer is not None else "nowhere"


def alike(case: Case) -> Iterator[Finding]:
    """Both colors' health paths are answered by the same process, or can't be told apart."""
    for name, service in _checked(case):
        answers = _asked(case, name)
        blue, green = (_of(service, color, answers) for color in (Color.BLUE, Color.GREEN))
        shared = sorted(_marks(service, blue) & _marks(service, green))
        if shared:
            yield warning(
                f"{name}: the same process answers {service.health.path} for both colors ({listed(shared)}): the "
                "checks of one color say nothing about it",
                f"see where {service.blue.servers[0]} and {service.green.servers[0]} lead; is a proxy between?",
                name,
            )
        elif blue and green and len({_plain(one) for one in (*blue, *green)}) == 1:
            yield note(
                f"{name}: {service.health.path} answers the same on both colors, and nothing in it names the color or "
                "the release: a server that is listed under the wrong color would not be noticed",
                "let the application say its version there, and set health.body if you want it checked",
                name,
            )


def _of(service: ServiceConfig, color: Color, answers: Mapping[str, Answer | None]) -> list[Answer]:
    found = (answers.get(server) for server in service.pool(color).servers)
    return [answer for answer in found if answer is not None]


def _checked(case: Case) -> Iterator[tuple[str, ServiceConfig]]:
    for name, service in case.services.items():
        if service.health.type is HealthType.HTTP and service.health.method != "OPTIONS":
            yield name, service


def _passes(health: HealthConfig, status: int) -> bool:
    return any(low <= status <= high for low, high in health.expect)


def _asked(case: Case, name: str) -> Mapping[str, Answer | None]:
    """By server, what the health path of a service answers now; None where nothing did. Each is asked once."""
    answers = case.look_up("answers", lambda: _ask_all(case))
    service = case.services[name]
    servers = (*service.blue.servers[:_MOST_SERVERS], *service.green.servers[:_MOST_SERVERS])
    return {server: answers[name, server] for server in servers}


def _ask_all(case: Case) -> Mapping[tuple[str, str], Answer | None]:
    questions = [
        (name, server)
        for name, service in _checked(case)
        for color in Color
        for server in service.pool(color).servers[:_MOST_SERVERS]
    ]
    return together(lambda one: _ask(one[1], case.services[one[0]].health), questions)


def _ask(server: str, health: HealthConfig) -> Answer | None:
    endpoint = parse_endpoint(server)
    if health.port is not None:
        endpoint = Endpoint("127.0.0.1" if endpoint.is_unix else endpoint.host, health.port)
    host = health.host or ("localhost" if endpoint.is_unix else str(endpoint))
    try:
        with _connected(endpoint, health, host) as connected:
            connection = http.client.HTTPConnection("localhost")
            connection.sock = connected
            headers = {"Host": host, "User-Agent": f"lbswitch/{__version__}", "Connection": "close"}
            connection.request(health.method, health.path, headers=headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read(_BODY))
    except (OSError, http.client.HTTPException, UnicodeError):
        return None


def _connected(endpoint: Endpoint, health: HealthConfig, host: str) -> socket.socket:
    if endpoint.is_unix:
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(health.timeout)
        try:
            plain.connect(endpoint.path)
        except BaseException:
            plain.close()
            raise
    else:
        plain = socket.create_connection((endpoint.host, endpoint.port), timeout=health.timeout)
    if not health.tls:
        return plain
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # as the checks themselves have it
    try:
        return context.wrap_socket(plain, server_hostname=host.partition(":")[0])
    except BaseException:
        plain.close()
        raise


def _marks(service: ServiceConfig, answers: list[Answer]) -> set[str]:
    """What names a process, as `name value`: headers and JSON fields such as X-Instance-Id.

    What names a machine counts where the two colors are on different ones.
    """
    hosts = [{parse_endpoint(server).host for server in service.pool(color).servers} for color in Color]
    names = _INSTANCE if hosts[0] & hosts[1] else _INSTANCE + _MACHINE
    said = [_fields(answer) for answer in answers]
    return {f"{name} {fields[name]}" for fields in said for name in names if fields.get(name)}


def _fields(answer: Answer) -> dict[str, str]:
    fields = {name.removeprefix("x-").replace("-", "_"): value for name, value in answer.headers.items()}
    try:
        document = json.loads(answer.body)
    except ValueError:
        return fields
    if isinstance(document, dict):
        fields |= {str(name).lower(): str(value) for name, value in document.items() if isinstance(value, str | int)}
    return fields


def _plain(answer: Answer) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    """The answer without what every server says, and says anew each time."""
    kept = ((name, value) for name, value in answer.headers.items() if name not in _SAID_BY_ALL)
    return answer.status, tuple(sorted(kept)), answer.body
