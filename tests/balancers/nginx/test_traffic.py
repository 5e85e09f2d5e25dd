"""What a real nginx logs of real requests is counted for the right color, and only while somebody reads."""

import http.client
import os
import signal
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lbswitch.balancers.nginx_guest import NginxGuest
from lbswitch.core.evidence import Batch, Failure
from lbswitch.core.model import Color, PoolKey
from lbswitch.ports import Answered
from lbswitch.traffic.lease import SECONDS
from lbswitch.traffic.nginx import NginxTraffic, log_path
from lbswitch.traffic.tail import MODE
from tests.balancers.nginx.servers import Server
from tests.balancers.nginx.site import BLUE, GREEN, Site
from tests.support.app import App
from tests.support.ports import free_port
from tests.support.wait import wait_until

MakeSite = Callable[..., Site]


class Watch:
    """All that a reader has counted."""

    def __init__(self, site: Any) -> None:
        self.site = site
        self.reader = NginxTraffic(site.config)
        self.requests: Counter[str] = Counter()
        self.failures: Counter[tuple[str, Failure]] = Counter()
        self.listed: list[Answered] = []
        self.reader.start()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()

    def until(self, count: int) -> None:
        """Until so many requests were read."""
        wait_until(lambda: self.look() >= count, f"{count} requests are read; {self.requests} {self.reader.problem}")

    def look(self) -> int:
        reading = self.reader.read()
        assert reading.lost == 0
        for pool, batch in reading.batches.items():
            self._add(pool, batch)
        self.listed += reading.requests
        return self.requests.total()

    def _add(self, pool: PoolKey, batch: Batch) -> None:
        self.requests[pool.color] += batch.requests
        for failure, count in batch.failures.items():
            self.failures[pool.color, failure] += count


def test_each_color_has_its_own(site: MakeSite):
    """Requests before and after a switch count for the color that answered; the agent's own questions for none."""
    shop = site()
    with Watch(shop) as watch:
        watch.look()  # empties the log for the first time; the next time is a minute from now
        for _ in range(3):
            shop.get("/a?card=1234")
        shop.observe()
        shop.switch(shop=GREEN)
        shop.get("/a")
        shop.observe()
        watch.until(4)
        assert watch.requests == {BLUE: 3, GREEN: 1}
        text = log_path(shop.config).read_bytes()
        assert b"card" not in text, "no query strings"
        assert text.count(b"127.0.0.1") == 4, "of addresses only the servers'"
        assert stat.S_IMODE(log_path(shop.config).stat().st_mode) == MODE


def test_how_requests_fail(site: MakeSite, service: Callable[..., dict[str, Any]]):
    """An answer with 5xx, a server that drops the connection, one that is not there, one that never answers."""
    with Server("drops") as server, App("fails") as app, socket.create_server(("127.0.0.1", 0)) as silent:
        app.fail(traffic=503)
        silent_address = f"127.0.0.1:{silent.getsockname()[1]}"
        refused = {"servers": [f"127.0.0.1:{free_port()}"]}
        services = {
            "drops": service(blue={"servers": [server.address]}),
            "refuses": service(blue=refused),
            "hangs": service(blue={"servers": [silent_address]}, timeouts={"read": "100ms"}),
            "fails": service(blue={"servers": [app.address]}),
        }
        balancer = site(services)
        with Watch(balancer) as watch:
            assert balancer.get("/drop", "drops")[0] == 502
            assert balancer.get("/", "refuses")[0] == 502
            assert balancer.get("/", "hangs")[0] == 504
            assert balancer.get("/", "fails")[0] == 503
            watch.until(4)
    assert {one.service: (one.status, one.failure) for one in watch.listed} == {
        "drops": (502, Failure.CLOSED),
        "refuses": (502, Failure.CONNECT),
        "hangs": (504, Failure.TIMEOUT),
        "fails": (503, Failure.STATUS),
    }


def test_a_request_that_another_server_had_to_repeat(site: MakeSite, service: Callable[..., dict[str, Any]]):
    """One of two servers is not there: the client sees nothing, the evidence does."""
    with Server("blue") as server:
        shop = site({"shop": service(blue={"servers": [f"127.0.0.1:{free_port()}", server.address]})})
        with Watch(shop) as watch:
            assert {shop.get()[0] for _ in range(8)} == {200}
            watch.until(8)
    assert watch.requests == {BLUE: 8}
    assert set(watch.failures) == {(BLUE, Failure.REPLAY)}


def test_a_replay_under_the_shield(site: MakeSite, service: Callable[..., dict[str, Any]]):
    """What fails on the new color and is answered by the old one counts for both, as what it was for each."""
    with App("green") as app:
        app.fail(traffic=500)
        shop = site({"shop": service(green={"servers": [app.address]})})
        shop.switch(shop=GREEN)
        shop.nginx.shield({"shop": GREEN})
        with Watch(shop) as watch:
            assert {shop.get()[0] for _ in range(5)} == {200}
            watch.until(10)
    assert watch.requests == {GREEN: 5, BLUE: 5}
    assert watch.failures == {(GREEN, Failure.REPLAY): 5}
    assert {(one.color, one.status) for one in watch.listed} == {(GREEN, 500)}


def test_a_post_is_listed_with_its_id(site: MakeSite):
    """The one that the client sent."""
    shop = site()
    with Watch(shop) as watch:
        connection = shop.connect()
        connection.request("POST", "/pay?card=1", body=b"x", headers={"X-Request-Id": "abc-1"})
        assert connection.getresponse().read()
        connection.close()
        watch.until(1)
    (request,) = watch.listed
    assert (request.method, request.path, request.request_id, request.failure) == ("POST", "/pay", "abc-1", None)


def test_nothing_is_logged_without_an_agent(site: MakeSite):
    """Frozen or killed, it renews the lease no more: when that is over the log stops to grow."""
    shop = site()
    watch = Watch(shop)
    shop.get()
    watch.until(1)
    log, lease = log_path(shop.config), Path(shop.config.agent.state_dir) / "traffic" / "lease"
    assert len(list(lease.iterdir())) == 3
    for path in lease.iterdir():  # as if it was last renewed 30 s ago
        path.rename(lease / str(int(path.name) - 30 // SECONDS))
    before = log.stat().st_size
    for _ in range(20):
        shop.get()
    time.sleep(0.2)  # longer than nginx keeps anything
    assert log.stat().st_size == before
    watch.reader.close()
    with Watch(shop) as another:
        shop.get()
        another.until(1)


def test_a_reload_and_a_rotation_lose_nothing(site: MakeSite):
    """Workers that end write what they have; what takes the log's place, as logrotate does it, is read, too."""
    shop = site()
    with Watch(shop) as watch:
        for number in range(30):
            shop.get()
            if number == 10:
                shop.nginx.reload()
            if number == 20:
                log_path(shop.config).rename(log_path(shop.config).with_suffix(".1"))
                watch.look()
                os.kill(int((shop.prefix / "nginx.pid").read_text()), signal.SIGUSR1)
        watch.until(30)
        assert watch.requests == {BLUE: 30}


# -- an owner's nginx --------------------------------------------------------------------------------------------------


def test_a_guest_logs_only_where_it_is_asked_to(owner, guest):
    """Without the owner's include nothing is known, and the reader says so; with it his log goes on."""
    shop = guest().install()
    owner.start()
    with Watch(shop) as watch:
        assert _status(owner) == 200
        assert watch.look() == 0
        assert "traffic.conf" in str(watch.reader.problem)
        site = owner.etc / "sites-available" / "shop"
        line = "shop.server.conf;\n"
        site.write_text(site.read_text().replace(line, f"{line}    include {owner.output}/current/traffic.conf;\n"))
        (warning,) = [each for each in NginxGuest(shop.config).warnings() if "access_log" in each]
        assert f"`access_log {owner.base}/log/access.log;`" in warning
        site.write_text(site.read_text().replace(line, f"{line}    access_log {owner.base}/log/access.log;\n"))
        assert NginxGuest(shop.config).warnings() == []
        shop.reload()
        wait_until(lambda: _status(owner) == 200 and watch.look() > 0, "requests are read")
        assert watch.reader.problem is None
        assert set(watch.requests) == {Color.BLUE}
    assert (owner.base / "log/access.log").read_text().count("GET /owners") >= 2


def _status(owner) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", owner.port, timeout=10)
    connection.request("GET", "/owners", headers={"Host": "shop.example"})
    try:
        return connection.getresponse().status
    finally:
        connection.close()
