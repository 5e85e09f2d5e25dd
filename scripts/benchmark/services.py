"""Agents with any number of services or servers, for what the agent itself costs."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from scripts.benchmark import programs
from scripts.benchmark.bench import Bench
from scripts.benchmark.systems.system import WORKERS, Absent, Servers
from tests.support.agent import Agent
from tests.support.ports import free_port
from tests.support.wait import wait_until

# One process that listens on many ports and answers every request with 200: servers to be checked, not measured.
_CROWD = """
import asyncio, resource, sys

class Answer(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data):
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")

async def main(ports):
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(Answer, "127.0.0.1", port)
    print("ready", flush=True)
    await loop.create_future()

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a port is a file
asyncio.run(main([int(port) for port in sys.stdin.readline().split()]))
"""


def many(balancer: str, count: int, servers: Servers, **service: Any) -> dict[str, Any]:
    """A configuration with `count` services `s0`, `s1`, ..., which are checked once a minute."""
    shared: dict[str, Any] = {
        "blue": {"servers": [servers.blue]},
        "green": {"servers": [servers.green]},
        "health": {"path": "/", "interval": "60s", "timeout": "5s", "rise": 1},
        "failover": {"enabled": False},
        **service,
    }
    ports = free_ports(count)
    return {
        "balancer": balancer_of(balancer),
        "services": {f"s{index}": {"bind": f"127.0.0.1:{port}", **shared} for index, port in enumerate(ports)},
    }


def wide(balancer: str, addresses: Sequence[str]) -> dict[str, Any]:
    """A configuration with one service, `s0`, whose colors share these servers. Each is checked every second."""
    half = len(addresses) // 2
    service = {
        "bind": f"127.0.0.1:{free_port()}",
        "blue": {"servers": list(addresses[:half])},
        "green": {"servers": list(addresses[half:])},
        "health": {"path": "/", "interval": "1s", "timeout": "900ms", "rise": 1},
        "failover": {"enabled": False},
    }
    return {"balancer": balancer_of(balancer), "services": {"s0": service}}


def balancer_of(kind: str) -> dict[str, Any]:
    """Its section of the configuration. Raises: Absent."""
    binary = programs.of_the_host(kind)
    if binary is None:
        raise Absent(f"{kind} is not installed")
    return {"kind": kind, "binary": binary, "workers": WORKERS}


@contextlib.contextmanager
def agent(bench: Bench, config: dict[str, Any], *, is_started: bool = True) -> Iterator[Agent]:
    """An agent in a directory of its own; started, with all servers known to be healthy, unless told otherwise."""
    made = Agent(bench.place.directory(), config)
    try:
        if is_started:
            made.start(timeout_s=120)
            wait_until(lambda: is_healthy(made), "all servers are healthy", 60)
        yield made
    finally:
        made.kill()  # at once; the directory goes with it
        made.close()


def port_of(config: dict[str, Any]) -> int:
    """Where the service `s0` listens."""
    return int(config["services"]["s0"]["bind"].rpartition(":")[2])


def is_healthy(running: Agent) -> bool:
    """Whether every server of every service is."""
    _, document = running.http("GET", "/v1/services")
    return all(
        service[color]["healthy"] == service[color]["total"]
        for service in document["services"].values()
        for color in ("blue", "green")
    )


@contextlib.contextmanager
def crowd(count: int) -> Iterator[list[str]]:
    """The addresses of so many servers, all in one process."""
    ports = free_ports(count)
    with subprocess.Popen(
        [sys.executable, "-c", _CROWD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(" ".join(str(port) for port in ports) + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{count} servers did not start")
            yield [f"127.0.0.1:{port}" for port in ports]
        finally:
            process.kill()


def free_ports(count: int) -> list[int]:
    """Ports that are free now; too many to lock each one."""
    if count <= 10:
        return [free_port() for _ in range(count)]
    found = []
    for port in range(10000, 20000):  # below those that tests take
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"there are not {count} free ports between 10000 and 20000")
