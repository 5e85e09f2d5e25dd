"""What a real HAProxy tells of requests, and that it serves on when nobody listens."""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbswitch.core.config import Config
from lbswitch.core.evidence import Failure
from lbswitch.core.model import Color, PoolKey, Route
from lbswitch.traffic.haproxy import HAProxyTraffic
from tests.balancers.haproxy.managed import Managed
from tests.support.agent import short_directory
from tests.support.app import App
from tests.support.ports import free_port
from tests.support.wait import wait_until

BLUE, GREEN = PoolKey("shop", Color.BLUE), PoolKey("shop", Color.GREEN)


class Reads:
    """A reader, and all that it has read."""

    def __init__(self, site: Managed) -> None:
        site.state.chmod(0o755)  # workers of another user come through
        self.reader = HAProxyTraffic(Config.model_validate(site.document), time.time)
        self.reader.start()
        self.requests: Counter[PoolKey] = Counter()
        self.failures: Counter[tuple[PoolKey, Failure]] = Counter()
        self.listed: list[tuple[str, str, str]] = []

    def read(self) -> "Reads":
        reading = self.reader.read()
        assert reading.lost == 0
        for pool, batch in reading.batches.items():
            self.requests[pool] += batch.requests
            self.failures.update({(pool, failure): count for failure, count in batch.failures.items()})
        self.listed += [(one.method, one.path, one.request_id) for one in reading.requests]
        return self

    def wait_for(self, requests: int, pool: PoolKey = BLUE) -> None:
        wait_until(lambda: self.read().requests[pool] >= requests, f"{requests} requests are told of")


@pytest.fixture
def reads() -> Iterator[Callable[[Managed], Reads]]:
    made: list[Reads] = []

    def make_one(site: Managed) -> Reads:
        made.append(Reads(site))
        return made[-1]

    yield make_one
    for each in made:
        each.reader.close()


@pytest.fixture
def faulty() -> Iterator[int]:
    """The port of a server that does what the path says."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(listener.fileno())], pass_fds=[listener.fileno()])
    yield listener.getsockname()[1]
    listener.close()
    server.kill()
    server.wait()


_SERVER = r"""
import socket, sys
listener, kept = socket.socket(fileno=int(sys.argv[1])), []
while True:
    connection, _ = listener.accept()
    path = connection.recv(65536).split(b" ")[1]
    if path == b"/hung":
        kept.append(connection)
        continue
    if path == b"/500":
        connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    if path == b"/torn":
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nno")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
"""


def test_how_requests_end(
    make: Callable[..., Managed], blue: App, faulty: int, reads: Callable[[Managed], Reads]
) -> None:
    """Each kind of failure, on the color that it happened on; HAProxy waits for the server when the client has left."""
    servers = {"blue": {"servers": [blue.address]}, "green": {"servers": [f"127.0.0.1:{faulty}"]}}
    bad = {"blue": {"servers": [f"127.0.0.1:{free_port()}"]}, "green": {"servers": [blue.address]}}
    timeouts = {"timeouts": {"connect": "500ms", "read": "500ms"}, "bake": {"duration": "1s", "shield": False}}
    site = make({"shop": {**servers, **timeouts}, "bad": {**bad, **timeouts}})
    told = reads(site)
    site.serve()
    assert site.get("/a?secret=1", X_Request_Id="r-1").status == 200
    site.get("/", "bad")
    told.wait_for(1)
    site.move(shop=Route(Color.GREEN))
    for path in ("/500", "/torn", "/hung", "/closed"):
        with contextlib.suppress(http.client.HTTPException):
            site.get(path)
    with socket.create_connection(("127.0.0.1", site.ports["shop"])) as impatient:
        impatient.sendall(b"POST /hung HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX-Request-Id: r-2\r\n\r\n")
    told.wait_for(5, GREEN)
    assert told.requests[GREEN] == 5
    assert {kind: count for (pool, kind), count in told.failures.items() if pool == GREEN} == {
        Failure.STATUS: 1,
        Failure.TIMEOUT: 2,
        Failure.CLOSED: 2,
    }
    assert told.failures[PoolKey("bad", Color.BLUE), Failure.CONNECT] == 1
    assert told.requests[BLUE] == 1, "questions of the agent's own are no traffic"
    assert ("POST", "/hung", "r-2") in told.listed


def test_an_agent_that_comes_and_goes(shop: Managed, reads: Callable[[Managed], Reads]) -> None:
    """Requests are served while nobody listens or a listener is frozen, and the next agent is told again."""
    first = reads(shop)
    shop.get()
    first.wait_for(1)
    first.reader.close()
    assert not (shop.directory / "traffic.sock").exists()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as frozen:
        frozen.bind(str(shop.directory / "traffic.sock"))
        (shop.directory / "traffic.sock").chmod(0o666)
        assert [shop.get().status for _ in range(50)] == [200] * 50
    second = reads(shop)
    shop.get()
    second.wait_for(1)
    shop.haproxy.reload()
    shop.get()
    second.wait_for(2)
    assert second.reader.problem is None


@pytest.mark.parametrize("is_locked_in", [False, True])
def test_a_haproxy_of_somebody_else(binary: str, blue: App, is_locked_in: bool) -> None:
    """The lines that `problem` names are enough, also for one that locks itself into a directory."""
    if is_locked_in and os.geteuid() != 0:
        pytest.skip("only root can chroot")
    with short_directory() as directory:
        output, jail, port = directory / "out", directory / "jail", free_port()
        owner = directory / "haproxy.cfg"
        for each in (output, jail / str(output)[1:]):
            each.mkdir(parents=True)
        directory.chmod(0o755)
        lock = f"global\n  chroot {jail}\n" if is_locked_in else ""
        sections = f"{lock}defaults\n  mode http\n  timeout client 9s\n  timeout server 9s\n  timeout connect 9s\n"
        owner.write_text(sections)
        reader = HAProxyTraffic(_guest(directory, blue, port), time.time)
        reader.start()
        lines = [line for line in (reader.problem or "").splitlines() if line.startswith("    ")]
        backend = f"  default_backend lbswitch_shop_blue\nbackend lbswitch_shop_blue\n  server s1 {blue.address}\n"
        owner.write_text("\n".join([sections, "frontend web", f"  bind 127.0.0.1:{port}", *lines, backend]))
        assert reader.problem is None
        with subprocess.Popen([binary, "-db", "-f", str(owner)], stderr=subprocess.DEVNULL) as haproxy:
            try:
                wait_until(lambda: _status(port) == 200, "HAProxy answers")
                wait_until(lambda: reader.read().batches[BLUE].requests == 1, "it tells of that")
            finally:
                haproxy.kill()
                reader.close()


def _guest(directory: Path, blue: App, port: int) -> Config:
    service = {"bind": f"127.0.0.1:{port}", "blue": {"servers": [blue.address]}, "green": {"servers": ["127.0.0.1:1"]}}
    paths = {"config": str(directory / "haproxy.cfg"), "output_dir": str(directory / "out")}
    balancer = {"kind": "haproxy", "managed": False, **paths, "master_socket": str(directory / "m")}
    agent = {"state_dir": str(directory)}
    return Config.model_validate({"agent": agent, "balancer": balancer, "services": {"shop": service}})


def _status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().status
