"""A HAProxy under lbswitch's adapter, with an intent that tests move."""

import copy
import http.client
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from lbswitch.balancers.haproxy import HAProxy
from lbswitch.balancers.haproxy_runtime import Processes, Runtime
from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Observation, Route, ServerKey, ServiceIntent
from tests.support.ports import free_port
from tests.support.wait import wait_until


class Managed:
    """One HAProxy with its own state directory: `serve`, `move`, `get`, `stop`."""

    def __init__(self, binary: str, services: dict[str, dict[str, Any]], **balancer: Any) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="lbs-"))  # short: socket paths have to fit
        self.ports: dict[str, int] = {}
        services = copy.deepcopy(services)
        for name, service in services.items():
            if "bind" not in service:
                self.ports[name] = free_port()
                service["bind"] = f"127.0.0.1:{self.ports[name]}"
        self.document: dict[str, Any] = {
            "agent": {"state_dir": str(self.state)},
            "balancer": {"kind": "haproxy", "binary": binary, "workers": 1, **balancer},
            "services": services,
        }
        self.haproxy = self.adapter()
        first = {name: ServiceIntent(Route(Color(s.get("initial", "blue"))), 1) for name, s in services.items()}
        self.intent = Intent(first, 1)

    def adapter(self) -> HAProxy:
        """Another adapter for the same HAProxy, as a restarted agent has it."""
        return HAProxy(Config.model_validate(self.document))

    @property
    def directory(self) -> Path:
        return self.state / "haproxy"

    def install(self) -> None:
        rendered = self.haproxy.render(self.intent)
        self.haproxy.check(rendered)
        self.haproxy.commit(self.intent, self.intent.services)
        self.haproxy.install(rendered)

    def serve(self) -> "Managed":
        self.install()
        self.haproxy.start()
        return self

    def after(self, **routes: Route) -> Intent:
        """The next intent, in which these services go there (`-` is written `_`)."""
        generation = self.intent.generation + 1
        moved = {name.replace("_", "-"): ServiceIntent(route, generation) for name, route in routes.items()}
        return self.intent.with_services(moved)

    def move(self, **routes: Route) -> None:
        """Commit routes and see them at every service's listener, from the first answer on."""
        self.intent = self.after(**routes)
        self.haproxy.commit(self.intent, [name.replace("_", "-") for name in routes])
        for name in self.intent.services:
            seen = self.haproxy.observe(name)
            assert self.shows(seen, name), (name, seen, self.intent.services[name])

    def shows(self, seen: Observation, service: str) -> bool:
        return seen.shows(self.intent.services[service], self.haproxy.installed() or "")

    def connection(self, service: str = "shop") -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.ports[service], timeout=10)

    def get(self, path: str = "/", service: str = "shop", **headers: str) -> http.client.HTTPResponse:
        """One request on a connection of its own."""
        connection = self.connection(service)
        try:
            return ask(connection, path, {name.replace("_", "-"): value for name, value in headers.items()})
        finally:
            connection.close()

    def app(self, service: str = "shop", **headers: str) -> str:
        """Which application answered."""
        return self.get("/", service, **headers).getheader("X-App") or ""

    def processes(self) -> Processes:
        return Runtime(self.directory / "master.sock").processes()

    def stop(self) -> None:
        self.haproxy.stop()
        assert not self.haproxy.is_running()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.state)


def ask(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.body = response.read().decode()  # type: ignore[attr-defined]
    return response


def key(service: str, color: str, address: str) -> ServerKey:
    return ServerKey(service, Color(color), address)


def open_files(directory: Path) -> list[str]:
    """Everything below the directory, relative, to compare."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def wait_until_gone(pid: int) -> None:
    wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not _cmdline(pid), f"process {pid} ends")


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def connect(port: int, source: str | None = None, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), timeout=10, source_address=(source, 0) if source else None)


def binaries() -> list[str]:
    """The system's HAProxy and those of LBSWITCH_TEST_HAPROXY=path1:path2."""
    system = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    more = os.environ.get("LBSWITCH_TEST_HAPROXY", "")
    return [path for path in [system or "", *more.split(":")] if path]
