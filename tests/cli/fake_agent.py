"""A small real HTTP server that stands in for the agent: records requests, gives canned answers."""

import contextlib
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]


def operation(**changes: Any) -> dict[str, Any]:
    """An Operation document: blue to green, done."""
    document = {
        "id": 17,
        "kind": "switch",
        "service": "shop",
        "from": "blue",
        "to": "green",
        "weight": 100,
        "state": "done",
        "generation": 43,
        "reason": "release 2.4",
        "actor": "alice",
        "gate": None,
        "error": None,
        "notes": [],
        "dry_run": False,
        "timings_ms": {"gates": 0.1, "render": 3.0, "commit": 0.4, "verify": 2.13, "total": 5.6},
        "started_at": 1_790_000_000.25,
        "ended_at": 1_790_000_000.5,
    }
    return {**document, **changes}


def pool(address: str, error: str | None = None) -> dict[str, Any]:
    """A color with one server, which is unhealthy when there is an error."""
    state = "unhealthy" if error else "healthy"
    server = {"address": address, "healthy": not error, "state": state, "last_error": error}
    server |= {"checks": 40, "failed": 3 if error else 0, "latency_ms": 0.8}
    return {"state": state, "healthy": 0 if error else 1, "total": 1, "servers": [server]}


def service(**changes: Any) -> dict[str, Any]:
    """A service's status: green is live, all is well."""
    document = {
        "live": "green",
        "weight": 100,
        "weights": {"blue": 0, "green": 100},
        "generation": 43,
        "verified": True,
        "frozen": None,
        "previous": "blue",
        "problem": None,
        "bake": None,
        "operation": None,
        "bind": "127.0.0.1:8080",
        "mode": "http",
        "switching": "pointer",
        "blue": pool("127.0.0.1:9101"),
        "green": pool("127.0.0.1:9102"),
        "evidence": {"blue": {}, "green": {}},
    }
    return {**document, **changes}


def status(**services: dict[str, Any]) -> dict[str, Any]:
    """A Status document; without services the one service `shop`."""
    about = {
        "version": "0.1.0",
        "pid": 812,
        "started_at": 1_790_000_000.0,
        "config": {"path": "/etc/lbswitch/lbswitch.yaml", "valid": True, "error": None, "files_error": None},
        "balancer": {"kind": "nginx", "version": "1.22.1", "running": True, "revision": "0123456789ab"},
        "notes": [],
    }
    return {"services": services or {"shop": service()}, "agent": about}


def problem(status_code: int, exit_code: int, detail: str, **more: Any) -> Answer:
    """A problem document with its HTTP status."""
    document = {"type": "urn:lbswitch:problem:x", "title": "X", "status": status_code, "detail": detail}
    return status_code, {**document, "exit_code": exit_code, **more}


class _Threads(socketserver.ThreadingMixIn):
    daemon_threads = False
    block_on_close = True


class _UnixServer(_Threads, socketserver.UnixStreamServer):
    request_queue_size = 64


class _TcpServer(_Threads, socketserver.TCPServer):
    allow_reuse_address = True


class FakeAgent:
    """Answers with `answers[method, path]`: (status, document), raw bytes, or a list of those, one after the other."""

    def __init__(self, socket_path: Path | None = None, port: int | None = None) -> None:
        self.socket_path = socket_path
        self.requests: list[dict[str, Any]] = []
        self.answers: dict[tuple[str, str], Any] = {("GET", "/v1/services"): (200, status())}
        self.chunked = False
        handler = type("Handler", (_Handler,), {"agent": self})
        if socket_path is not None:
            self._server: socketserver.BaseServer = _UnixServer(str(socket_path), handler)
        else:
            self._server = _TcpServer(("127.0.0.1", port or 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def answer(self, method: str, path: str) -> Any:
        found = self.answers.get((method, path), problem(404, 2, f"no answer for {method} {path}"))
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found

    def posted(self, path: str) -> list[Any]:
        """The bodies of the POST requests to a path."""
        return [request["body"] for request in self.requests if (request["method"], request["path"]) == ("POST", path)]

    def __enter__(self) -> "FakeAgent":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if self.socket_path is not None:
            self.socket_path.unlink()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    agent: FakeAgent

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.agent.requests.append(
            {
                "method": self.command,
                "path": self.path,
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "body": json.loads(body) if body else None,
            }
        )
        answer = self.agent.answer(self.command, self.path)
        if isinstance(answer, bytes):
            self.wfile.write(answer)
            self.close_connection = True
            return
        self._reply(*answer)

    do_GET = do_POST = _serve  # noqa: N815 - named by http.server

    def _reply(self, code: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json" if code < 400 else "application/problem+json")
        if self.agent.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            content = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (content[:7], content[7:]))
            content += b"0\r\n\r\n"
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test's output quiet."""


@contextlib.contextmanager
def dead_socket(path: Path) -> Iterator[Path]:
    """A socket file that nobody listens on, as a killed agent leaves it."""
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(path))
    yield path
    path.unlink()
