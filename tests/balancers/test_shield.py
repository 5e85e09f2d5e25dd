"""While a new color bakes, what fails there is asked of the old one: real nginx and HAProxy, failing applications."""

import http.client
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, PoolKey, Route, ServerKey, ServiceIntent
from lbswitch.wiring import make_balancer
from tests.balancers.haproxy import managed
from tests.balancers.moods import Moody
from tests.balancers.nginx import site
from tests.balancers.streams import WebSocket
from tests.support.agent import make_short_directory
from tests.support.app import App
from tests.support.ports import free_port
from tests.support.wait import wait_until

BLUE, GREEN = Color.BLUE, Color.GREEN
IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
OTHERS = ("POST", "PATCH", "FETCH")
MOODS = (500, 502, 503, 504, "hang", "reset")


class Stand:
    """A balancer with one service, `shop`, that goes to green: `start`, `ask`, `statuses`, `close`."""

    def __init__(self, kind: str, binary: str, blue: Sequence[str], green: Sequence[str], **service: Any) -> None:
        self.directory = make_short_directory()
        self.port = free_port()
        self.kind = kind
        self._document = {
            "agent": {"state_dir": str(self.directory / "state")},
            "balancer": {"kind": kind, "binary": binary, "workers": 1},
            "services": {
                "shop": {
                    "bind": f"127.0.0.1:{self.port}",
                    "blue": {"servers": list(blue)},
                    "green": {"servers": list(green)},
                    "timeouts": {"connect": "1s", "read": "300ms"},
                    **service,
                }
            },
        }
        self.balancer = self.adapter()
        self.intent = Intent({"shop": ServiceIntent(Route(GREEN), 1, "weights" in service)}, 1)

    def adapter(self) -> Any:
        """Another one for the same balancer, as a restarted agent has it."""
        return make_balancer(Config.model_validate(self._document))

    def start(self) -> "Stand":
        rendered = self.balancer.render(self.intent)
        self.balancer.check(rendered)
        self.balancer.commit(self.intent, self.intent.services)
        self.balancer.install(rendered)
        self.balancer.start()
        return self

    def move(self, route: Route) -> None:
        generation = self.intent.generation + 1
        weighted = self.intent.services["shop"].weighted
        self.intent = Intent({"shop": ServiceIntent(route, generation, weighted)}, generation)
        self.balancer.commit(self.intent, ["shop"])

    def ask(self, method: str = "GET", path: str = "/", body: bytes | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def statuses(self, methods: Sequence[str], times: int = 1) -> list[int]:
        return [self.ask(method)[0] for _ in range(times) for method in methods]

    def close(self) -> None:
        self.balancer.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


BINARIES = [("nginx", path) for path in site.binaries()] + [("haproxy", path) for path in managed.binaries()]


@pytest.fixture(params=BINARIES, ids=lambda binary: f"{binary[0]}-{BINARIES.index(binary)}")
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Stand]]:
    """Start balancers that are stopped and removed at the end."""
    with ExitStack() as stack:

        def make_one(blue: Sequence[Moody | App], green: Sequence[Moody | App], **service: Any) -> Stand:
            addresses = [[server.address for server in color] for color in (blue, green)]
            stand = Stand(*request.param, *addresses, **service)
            stack.callback(stand.close)
            return stand.start()

        yield make_one


@pytest.fixture
def apps() -> Iterator[Callable[..., list[Moody]]]:
    """Start applications that end with the test."""
    with ExitStack() as stack:
        yield lambda *names: [stack.enter_context(Moody(name)) for name in names]


def test_what_may_be_repeated_never_fails_and_nothing_else_is_asked_twice(make, apps):
    """With each way to fail; without the shield the same requests fail."""
    blue, green = apps("blue", "green")
    stand = make([blue], [green])
    for mood in MOODS:
        green.mood = mood
        assert stand.ask()[0] != 200, mood
        stand.balancer.shield({"shop": GREEN})
        times = 1 if mood == "hang" else 3
        blue.asked.clear()
        green.asked.clear()
        assert set(stand.statuses(IDEMPOTENT, times)) == {200}, mood
        assert all(status >= 500 for status in stand.statuses(OTHERS, times)), mood
        assert blue.asked.keys() == {(method, "/") for method in IDEMPOTENT}, mood
        assert all(green.count(method) == times for method in (*IDEMPOTENT, *OTHERS)), (mood, green.asked)
        stand.balancer.shield({"shop": None})
        assert stand.ask()[0] != 200, mood


def test_a_color_that_is_down_costs_nothing(make, apps):
    """What could not even be sent goes to the other color whatever its method."""
    blue, green = apps("blue", "green")
    stand = make([blue], [green])
    stand.balancer.shield({"shop": GREEN})
    green.stop()
    assert set(stand.statuses((*IDEMPOTENT, "POST", "PATCH"), 3)) == {200}
    assert blue.count("POST") == 3


@pytest.mark.parametrize("failing", [1, 3])
def test_all_servers_are_used_and_any_of_them_may_fail(make, apps, failing):
    """Of three servers one, or all."""
    blues, greens = apps("blue", "blue"), apps("green", "green", "green")
    stand = make(blues, greens)
    stand.balancer.shield({"shop": GREEN})
    for server in greens[:failing]:
        server.mood = 500
    assert set(stand.statuses(IDEMPOTENT, 12)) == {200}
    assert all(server.asked for server in greens)
    assert failing == 1 or all(server.asked for server in blues)


def test_a_request_that_fails_everywhere_ends_soon_and_takes_nothing_from_others(make, apps):
    """Its client gets the failure; each server was asked once at most, and goes on to be asked."""
    blues, greens = apps("blue", "blue", "blue"), apps("green")
    stand = make(blues, greens)
    stand.balancer.shield({"shop": GREEN})
    for server in (*blues, *greens):
        server.mood = 500
    assert stand.statuses(["GET"]) == [500]
    assert max(server.count("GET") for server in (*blues, *greens)) == 1
    for server in (*blues, *greens):
        server.mood = None
    assert stand.ask()[1].startswith("green")


def test_it_is_on_disk_and_told_to_every_worker(make, apps):
    """A restart, a reload and another agent find it; the same again is the same; nothing of it is drift."""
    blue, green = apps("blue", "green")
    stand = make([blue], [green])
    green.mood = 500
    held = http.client.HTTPConnection("127.0.0.1", stand.port, timeout=10)
    held.request("GET", "/")
    answer = held.getresponse()
    assert answer.status == 500
    assert answer.read()
    stand.balancer.reload()
    before = stand.balancer.observe("shop")
    for _ in range(2):
        stand.balancer.shield({"shop": GREEN})
    if stand.kind == "haproxy":  # nginx closes idle connections when it reloads
        held.request("GET", "/")
        assert held.getresponse().status == 200
    held.close()
    assert stand.ask()[0] == 200
    assert stand.balancer.observe("shop") == before
    assert stand.balancer.committed() == stand.intent
    assert stand.balancer.differences(stand.intent) == []
    stand.balancer.stop()
    stand.adapter().start()
    assert stand.ask()[0] == 200
    stand.adapter().shield({"shop": None})
    assert stand.ask()[0] == 500


def test_only_the_color_under_it_is_shielded(make, apps):
    """After a switch back the shield of the color that was left means nothing, until it moves, too."""
    blue, green = apps("blue", "green")
    stand = make([blue], [green])
    stand.balancer.shield({"shop": GREEN})
    blue.mood = 500
    stand.move(Route(BLUE))
    assert stand.ask() == (500, "blue 0\n")
    stand.balancer.shield({"shop": BLUE})
    assert stand.ask() == (200, "green 0\n")
    stand.move(Route(GREEN))
    assert stand.ask() == (200, "green 0\n")
    assert not blue.count("POST")


def test_a_canary_is_shielded(make, apps):
    """With half of the traffic on a failing color no client sees it."""
    blue, green = apps("blue", "green")
    stand = make([blue], [green], weights={})
    stand.move(Route(BLUE, 50))
    stand.balancer.shield({"shop": GREEN})
    green.mood = 500
    assert set(stand.statuses(["GET"], 40)) == {200}
    assert green.asked


def test_switching_by_reload_is_shielded_too(make, apps):
    """The rendered color is shielded as the pointed at one is."""
    blue, green = apps("blue", "green")
    stand = make([blue], [green], switching="reload")
    green.mood = 500
    assert stand.ask()[0] == 500
    stand.balancer.shield({"shop": GREEN})
    assert stand.ask() == (200, "blue 0\n")


def test_requests_pass_as_they_came(make, apps):
    """Path, query and body; on the way to the other color as well."""
    blue, green = apps("blue", "green")
    stand = make([blue], [green])
    stand.balancer.shield({"shop": GREEN})
    assert stand.ask("POST", "/a%2Fb//c?d=%20e", b"x" * 200_000) == (200, "green 200000\n")
    green.mood = 500
    assert stand.ask("PUT", "/a%2Fb//c?d=%20e", b"four")[1] in {"blue 4\n", "green 4\n"}
    assert stand.ask("GET", "/a%2Fb//c?d=%20e")[0] == 200
    assert blue.asked["GET", "/a%2Fb//c?d=%20e"] == 1


def test_websockets_pass_and_are_counted_where_they_are(make):
    """Under the shield each color's connections are its own."""
    with App("blue") as blue, App("green") as green:
        stand = make([blue], [green], timeouts={"read": "20s"})
        stand.balancer.shield({"shop": GREEN})
        pools = [PoolKey("shop", color) for color in Color]
        with WebSocket(stand.port):
            wait_until(lambda: _held(stand, pools) == [0, 1], "green has it")
            if stand.kind == "haproxy":
                assert stand.balancer.draining.close(pools[1], 5) == 1
                wait_until(lambda: _held(stand, pools) == [0, 0], "it was ended")


def _held(stand: Stand, pools: Sequence[PoolKey]) -> list[int]:
    held = stand.balancer.draining.held(pools)
    return [sum(one.count for one in held[pool]) for pool in pools]


def test_a_server_that_is_left_out_is_left_out_here_too(make, apps):
    """Of either color."""
    blues, greens = apps("blue", "blue"), apps("green", "green")
    stand = make(blues, greens)
    stand.balancer.shield({"shop": GREEN})
    out = frozenset({ServerKey("shop", BLUE, blues[0].address), ServerKey("shop", GREEN, greens[0].address)})
    intent = stand.intent.with_ejected(out)
    if not stand.balancer.eject(out):
        stand.balancer.install(stand.balancer.render(intent))
        master = psutil.Process(int((stand.directory / "state/nginx/nginx.pid").read_text()))
        before = master.children()
        stand.balancer.reload()
        wait_until(lambda: not any(worker.is_running() for worker in before), "old workers are gone")
    assert stand.balancer.differences(intent) == []
    for server in greens:
        server.mood = 500
    assert set(stand.statuses(["GET"], 8)) == {200}
    assert not blues[0].asked
    assert not greens[0].asked


def test_without_it_nothing_of_it_is_rendered(make, apps):
    """`bake.shield: false`, and a shield that is asked for all the same changes nothing."""
    blue, green = apps("blue", "green")
    stand = make([blue], [green], bake={"shield": False})
    assert b"shield" not in b"".join(file.content for file in stand.balancer.render(stand.intent).files)
    assert "bake.shield is false" in stand.balancer.why_not_shielded("shop")
    stand.balancer.shield({"shop": GREEN})
    green.mood = 500
    assert stand.ask()[0] == 500
    assert not _below(stand.directory, "shield")


def _below(directory: Path, word: str) -> list[str]:
    return [name for _, folders, files in os.walk(directory) for name in (*folders, *files) if word in name]
