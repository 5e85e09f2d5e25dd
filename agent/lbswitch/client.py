"""Talks to a running agent: one request, one answer, one connection.

A status must not take longer than starting Python does, so the way over the unix socket uses nothing but `socket`
and `json`; `http.client` alone would cost 20 ms more. Over TCP it is httpx, which is loaded only then.

    client = Client(UnixSocket("/run/lbswitch/agent.sock"))
    client.switch("shop", {"to": "green"})["generation"]
"""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from typing import Any, Protocol

from lbswitch.errors import AgentUnreachable, LbswitchError, NotAllowed

Document = dict[str, Any]

STATUS_TIMEOUT_S = 5.0
OPERATION_TIMEOUT_S = 300.0  # the agent has deadlines of its own; this only ends a wait for an agent that hangs
_LARGEST = 64 * 1024 * 1024
_STILL_SERVED = "traffic is not affected: the balancer serves without the agent"


class AgentProblem(LbswitchError):
    """The agent said no, or that something failed; `document` is its problem document (RFC 9457)."""

    def __init__(self, document: Document) -> None:
        """Take message, exit code and status from the document."""
        self.document = document
        self.exit_code = int(document["exit_code"])
        self.http_status = int(document.get("status", 500))
        super().__init__(str(document.get("detail") or document.get("title") or "the agent gave no reason"))


class NobodyAnswers(AgentUnreachable):
    """There was nobody to connect to; nothing was sent."""


class Garbled(Exception):
    """What came is not an HTTP answer of an agent."""


class Lost(Exception):
    """The request was sent, and no complete answer came."""


class Transport(Protocol):
    """Carries one request to an agent."""

    where: str

    def exchange(self, method: str, path: str, headers: dict[str, str], body: bytes, timeout_s: float) -> Answer:
        """Send it and wait for the answer.

        Raises: NobodyAnswers, NotAllowed (then nothing was sent), Lost, Garbled.
        """


class Answer:
    """Status and body of an HTTP answer."""

    def __init__(self, status: int, body: bytes) -> None:
        """Keep both as they came."""
        self.status = status
        self.body = body

    def document(self) -> Document:
        """The body as a JSON object. Raises: Garbled."""
        try:
            value = json.loads(self.body)
        except ValueError:
            raise Garbled(f"status {self.status} with a body that is not JSON") from None
        if not isinstance(value, dict):
            raise Garbled(f"status {self.status} with JSON that is not an object")
        return value


class UnixSocket:
    """HTTP/1.1 over a unix socket (RFC 9112), one connection a request."""

    def __init__(self, path: str) -> None:
        """The path of the agent's socket."""
        self.path = path
        self.where = path

    def exchange(self, method: str, path: str, headers: dict[str, str], body: bytes, timeout_s: float) -> Answer:
        """See `Transport`; the timeout is for the whole exchange."""
        deadline = time.monotonic() + timeout_s
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        lines += ["Host: lbswitch", "Connection: close", f"Content-Length: {len(body)}", "", ""]
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            self._connect(connection)
            try:
                connection.sendall("\r\n".join(lines).encode() + body)
                return _parse(_receive(connection, deadline))
            except TimeoutError:
                raise Lost(f"no answer within {timeout_s:g} s") from None
            except OSError as error:
                raise Lost(error.strerror or str(error)) from error

    def _connect(self, connection: socket.socket) -> None:
        try:
            connection.connect(self.path)
        except PermissionError as error:
            raise NotAllowed(_permission_advice(self.path)) from error
        except OSError as error:
            why = error.strerror or str(error)
            raise NobodyAnswers(f"nobody answers on {self.path} ({why}); {_STILL_SERVED}") from error


def _receive(connection: socket.socket, deadline: float) -> bytes:
    """Everything until the message is complete or the other side closes. Raises: OSError, Garbled."""
    received = bytearray()
    wanted = _LARGEST
    while len(received) < wanted:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(65536)
        if not part:
            break
        received += part
        if len(received) > _LARGEST:
            raise Garbled(f"more than {_LARGEST} bytes")
        if wanted == _LARGEST and (end := received.find(b"\r\n\r\n")) >= 0:
            length = _fields(bytes(received[:end])).get("content-length", "")
            wanted = end + 4 + int(length) if length.isdecimal() else _LARGEST + 1
    return bytes(received)


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _parse(message: bytes) -> Answer:
    """Split an HTTP/1.1 answer. Raises: Lost when it ends too early, Garbled."""
    head, separator, body = message.partition(b"\r\n\r\n")
    version, _, rest = head.partition(b" ")
    if not separator and (not message or b"HTTP/1.1".startswith(version)):
        raise Lost("the connection ended before an answer came")
    status = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not status.isdigit() or len(status) != 3:
        raise Garbled(f"it begins with {message[:40]!r}")
    if not separator:
        raise Lost("the answer ends in the middle of its header")
    fields = _fields(head)
    if "chunked" in fields.get("transfer-encoding", "").lower():
        return Answer(int(status), _dechunk(body))
    length = fields.get("content-length", "")
    if length.isdecimal() and len(body) < int(length):
        raise Lost(f"the answer ends after {len(body)} of {length} bytes")
    return Answer(int(status), body)


def _dechunk(body: bytes) -> bytes:
    """The content of a chunked body (RFC 9112, section 7.1). Raises: Lost, Garbled."""
    content = bytearray()
    while True:
        line, separator, body = body.partition(b"\r\n")
        if not separator:
            raise Lost("the answer ends in the middle")
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise Garbled(f"a chunk of size {line[:20]!r}") from None
        if size == 0:
            return bytes(content)
        if size < 0 or len(body) < size + 2:
            raise Lost("the answer ends in the middle")
        content += body[:size]
        body = body[size + 2 :]


def _permission_advice(path: str) -> str:
    """Who may use the socket, and what somebody who may not can do."""
    try:
        found = os.stat(path)  # noqa: PTH116 - pathlib would have to be loaded
    except OSError:
        parent = path.rpartition("/")[0] or "."
        return f"may not look into {parent}, where the agent's socket is: ask for its group, or use sudo"
    owner, group = _owner_names(found.st_uid, found.st_gid)
    says = f"may not use {path}: it belongs to user {owner} and group {group}, mode {stat.S_IMODE(found.st_mode):04o}"
    if found.st_gid == 0 or not found.st_mode & stat.S_IWGRP:
        return f"{says}; use sudo"
    return f"{says}; join the group (sudo usermod -aG {group} USER, then log in again) or use sudo"


def _owner_names(uid: int, gid: int) -> tuple[str, str]:
    import grp
    import pwd

    try:
        owner = pwd.getpwuid(uid).pw_name
    except KeyError:
        owner = str(uid)
    try:
        return owner, grp.getgrgid(gid).gr_name
    except KeyError:
        return owner, str(gid)


class HttpUrl:
    """HTTP over TCP, with httpx."""

    def __init__(self, url: str) -> None:
        """`http://HOST:PORT`, with or without a path in front of the API's."""
        self.where = url.rstrip("/")

    def exchange(self, method: str, path: str, headers: dict[str, str], body: bytes, timeout_s: float) -> Answer:
        """See `Transport`; connecting gets five seconds at most. Proxies of the environment are not asked."""
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, STATUS_TIMEOUT_S))
        try:
            with httpx.Client(timeout=timeout, trust_env=False) as session:
                answer = session.request(method, self.where + path, headers=headers, content=body)
                return Answer(answer.status_code, answer.content)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise NobodyAnswers(f"nobody answers on {self.where} ({error}); {_STILL_SERVED}") from error
        except httpx.TimeoutException as error:
            raise Lost(f"no answer within {timeout_s:g} s") from error
        except httpx.RemoteProtocolError as error:
            raise Lost(str(error)) from error
        except httpx.HTTPError as error:
            raise Lost(f"{type(error).__name__}: {error}") from error


class Client:
    """The agent's API. Every method raises AgentUnreachable, NotAllowed or AgentProblem when it can't do its work."""

    def __init__(self, transport: Transport, status_timeout_s: float = STATUS_TIMEOUT_S) -> None:
        """Use this way to the agent; operations have a timeout of their own."""
        self.transport = transport
        self._status_timeout_s = status_timeout_s

    def status(self, *, detail: bool = False) -> Document:
        """The Status document: all services, and the agent itself; with `detail` also what is on disk and runs now."""
        return self._get(f"/v1/services{'?detail=true' if detail else ''}", holds="services")

    def detail(self, service: str) -> Document:
        """One service's object with what is intended, on disk and running, looked at now."""
        return self._get(f"/v1/services/{_quoted(service)}?detail=true", holds="intended")

    def switch(self, service: str, request: Document) -> Document:
        """Switch one service; returns the Operation."""
        return self._post(f"/v1/services/{_quoted(service)}/switch", request, holds="state")

    def switch_all(self, request: Document) -> Document:
        """Switch all services at one instant; returns `{"operations": [...]}`."""
        return self._post("/v1/switch", request, holds="operations")

    def service(self, service: str) -> Document:
        """One service's object, without looking at anything."""
        return self._get(f"/v1/services/{_quoted(service)}", holds="live")

    def monitor(self, service: str, request: Document) -> Document:
        """Attach to a service's watch, or begin one; returns it."""
        return self._post(f"/v1/services/{_quoted(service)}/monitor", request, holds="until")

    def incident(self, operation_id: int) -> Document:
        """The record of a rollback that the agent decided on."""
        return self._get(f"/v1/operations/{operation_id}/incident", holds="timeline")

    def rollback(self, service: str, request: Document) -> Document:
        """Go back to what was serving before; returns the Operation."""
        return self._post(f"/v1/services/{_quoted(service)}/rollback", request, holds="state")

    def freeze(self, service: str, request: Document) -> Document:
        """Latch a service; returns its status."""
        return self._post(f"/v1/services/{_quoted(service)}/freeze", request, holds="live")

    def release(self, service: str) -> Document:
        """End a freeze; returns the service's status."""
        return self._post(f"/v1/services/{_quoted(service)}/release", {}, holds="live")

    def apply(self, request: Document) -> Document:
        """Have configuration and templates read again and applied; returns what came of it."""
        return self._post("/v1/apply", request, holds="configuration")

    def operation(self, operation_id: int) -> Document:
        """One Operation."""
        return self._get(f"/v1/operations/{operation_id}", holds="id")

    def history(self, limit: int, service: str | None = None) -> list[Document]:
        """The newest operations first."""
        only = "" if service is None else f"&service={_quoted(service)}"
        answer = self._get(f"/v1/history?limit={limit}{only}", holds="operations")
        operations: list[Document] = answer["operations"]
        return operations

    def drains(self, service: str | None = None) -> Document:
        """What is open to colors without traffic: `{"services": {NAME: ...}}`, of one service or of all."""
        if service is None:
            return self._get("/v1/drain", holds="services")
        return {"services": {service: self._get(f"/v1/services/{_quoted(service)}/drain", holds="workers")}}

    def close_drain(self, service: str, request: Document) -> Document:
        """Close what is left on the color without traffic; returns that drain."""
        return self._post(f"/v1/services/{_quoted(service)}/drain", request, holds="workers")

    def snapshots(self, limit: int) -> Document:
        """The newest snapshots first."""
        return self._get(f"/v1/snapshots?limit={limit}", holds="snapshots")

    def snapshot(self, number: int) -> Document:
        """One snapshot, without the content of its files."""
        return self._get(f"/v1/snapshots/{number}", holds="files")

    def snapshot_file(self, number: int, name: str) -> Document:
        """One file of a snapshot."""
        from urllib.parse import quote

        return self._get(f"/v1/snapshots/{number}/file?name={quote(name, safe='')}", holds="text")

    def snapshot_diff(self, number: int) -> Document:
        """What has changed since a snapshot."""
        return self._get(f"/v1/snapshots/{number}/diff", holds="diff")

    def restore(self, number: int, request: Document) -> Document:
        """Bring back a snapshot; returns `{"snapshot": N, "operations": [...]}`."""
        return self._post(f"/v1/snapshots/{number}/restore", request, holds="operations")

    def alerts(self, limit: int) -> Document:
        """Targets, and the newest alerts."""
        return self._get(f"/v1/alerts?limit={limit}", holds="targets")

    def test_alerts(self, request: Document) -> Document:
        """Send a test alert; returns `{"delivered": ..., "results": [...]}`."""
        return self._post("/v1/alerts/test", request, holds="results")

    def _get(self, path: str, holds: str) -> Document:
        try:
            return _opened(self.transport.exchange("GET", path, {}, b"", self._status_timeout_s), holds)
        except (Lost, Garbled) as error:
            raise AgentUnreachable(
                f"{self.transport.where} gave no usable answer ({error}); {_STILL_SERVED}"
            ) from error

    def _post(self, path: str, request: Document, holds: str) -> Document:
        """The key makes a request that is repeated on the way count once."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": os.urandom(16).hex()}
        try:
            answer = self.transport.exchange("POST", path, headers, json.dumps(request).encode(), OPERATION_TIMEOUT_S)
            return _opened(answer, holds)
        except (Lost, Garbled) as error:
            raise AgentUnreachable(
                f"the outcome is unknown: {self.transport.where} gave no usable answer ({error}). "
                "An operation that was under way is finished or reverted by the agent, also when it has to start anew; "
                "see what is live with: lbswitch status"
            ) from error


def _opened(answer: Answer, holds: str) -> Document:
    """The document of a good answer, which holds that field.

    Raises: AgentProblem for a bad answer, Garbled when no agent says such a thing.
    """
    document = answer.document()
    if 200 <= answer.status < 300 and holds in document:
        return document
    if not isinstance(document.get("exit_code"), int):
        raise Garbled(f"status {answer.status} without an exit code: not an agent, or one of another version")
    raise AgentProblem(document)


def _quoted(name: str) -> str:
    """A service name as one segment of a path."""
    if name.replace("-", "").replace("_", "").isalnum() and name.isascii():
        return name
    from urllib.parse import quote

    return quote(name, safe="")
