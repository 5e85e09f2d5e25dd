"""Somebody else's hand in what lbswitch keeps: noticed within seconds, told with a diff, put right when asked to."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Route, ServerKey, ServiceIntent
from lbswitch.drift import DriftWatch
from lbswitch.events import Event, Events
from lbswitch.serving import Serving
from lbswitch.wiring import make_balancer
from tests.e2e.conftest import Site
from tests.support.load import Load
from tests.support.wait import wait_until

MakeSite = Callable[..., Site]
_NOTICED_S = 8.0  # on a busy machine; the agent looks every 2.5 s


def start(make_site: MakeSite, on_drift: str, **service: Any) -> Site:
    """A site that has switched to green, so that a lost pointer shows."""
    site = make_site(start=False, **service)
    site.config["agent"] = {"on_drift": on_drift}
    site.agent.write_config(site.config)
    site.agent.start()
    site.until_known()
    assert site.agent.lbswitch("green").code == 0
    return site


def say(site: Site, command: str, path: str = "worker.sock") -> str:
    """What `echo COMMAND | socat` says."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(5)
        connection.connect(str(site.agent.state_dir / "haproxy" / path))
        connection.sendall(f"{command}\n".encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return answer.decode().strip()


def drift(site: Site) -> list[dict[str, Any]]:
    """What status tells, of the service and of the whole."""
    document = site.agent.http("GET", "/v1/services")[1]
    return [*document["services"]["shop"]["drift"], *document["agent"]["drift"]]


def until_noticed(site: Site, *words: str) -> dict[str, Any]:
    """The difference whose sentence or diff holds these words; prints how long it took."""
    began = time.monotonic()

    def found() -> dict[str, Any]:
        each = [one for one in drift(site) if all(word in one["what"] + one["diff"] for word in words)]
        return each[0]

    difference = wait_until(found, f"{words} is noticed: {drift(site)}", _NOTICED_S)
    print(f"{site.kind}: noticed after {(time.monotonic() - began) * 1000:.0f} ms: {difference['what']}")
    return difference


def until_over(site: Site) -> None:
    wait_until(lambda: drift(site) == [] and site.status()["verified"], "nothing differs", _NOTICED_S)


def until_repaired(site: Site, times: int = 1) -> None:
    wait_until(lambda: site.agent.log().count("warning repaired") >= times, "it is repaired", _NOTICED_S)
    print(next(line for line in reversed(site.agent.log().splitlines()) if "warning repaired" in line))
    until_over(site)


def diffs_told(site: Site) -> str:
    """The diffs of all events since the agent's start, as /v1/events tells them."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(5)
        connection.connect(str(site.agent.socket))
        connection.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 0\r\n\r\n")
        told = b""
        while b"event: repaired" not in told:
            told += connection.recv(65536)
    lines = told.decode().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return "".join(each["diff"] for event in events for each in event["data"].get("drift", ()))


def live_map(site: Site) -> Path:
    return site.agent.state_dir / "haproxy" / "live.map"


def lose_the_choice(site: Site) -> None:
    """Send the traffic to blue without lbswitch: no pointer, or another map in the worker."""
    if site.kind == "nginx":
        (site.agent.state_dir / "live").unlink()
    else:
        assert say(site, f"set map {live_map(site)} shop blue") == ""


def rendered(site: Site) -> Path:
    return site.agent.state_dir / site.kind / "current" / f"{site.kind}.{'conf' if site.kind == 'nginx' else 'cfg'}"


def reload_by_hand(site: Site) -> None:
    number = signal.SIGHUP if site.kind == "nginx" else signal.SIGUSR2
    os.kill(int((site.agent.state_dir / site.kind / f"{site.kind}.pid").read_text()), number)


def revision_that_runs(site: Site) -> str:
    return str(site.agent.http("GET", "/v1/services/shop?detail=true")[1]["running"]["revision"])


def test_a_lost_choice_is_reported_once_and_left(make_site: MakeSite) -> None:
    """`report` touches nothing: the sentence, the diff and what to do are in status, log and metrics; apply mends."""
    site = start(make_site, "report")
    lose_the_choice(site)
    assert site.app() == "blue"
    difference = until_noticed(site, "green")
    assert "blue" in difference["what"]
    wait_until(lambda: "drift" in site.agent.log(), "the log tells")
    time_to_look_again = site.agent.log().count(" drift")
    metrics = site.agent.http("GET", "/metrics")[1]
    where = difference["where"]
    assert f'lbswitch_drift{{where="{where}"}} 0.0' not in metrics
    text = site.agent.lbswitch("status", "--detail").output
    assert "INTENDED" in text
    assert "(differs)" in text
    assert "lbswitch apply puts it back" in text
    assert site.app() == "blue"
    assert site.agent.log().count(" drift") == time_to_look_again
    applied = site.agent.lbswitch("apply")
    assert applied.code == 0, applied.output
    print(applied.output)
    assert site.app() == "green"
    until_over(site)
    wait_until(lambda: "drift-over" in site.agent.log(), "its end is told")


def test_a_lost_choice_is_repaired(make_site: MakeSite) -> None:
    """With load running nothing is lost; what went to the wrong color in between is counted."""
    site = start(make_site, "repair")
    with Load("127.0.0.1", site.port, rate=400, connections=8, new_connections=0.5) as load:
        wait_until(lambda: load.report().answered_by("green") > 50, "the load is under way")
        load.mark("drift")
        lose_the_choice(site)
        until_repaired(site)
        load.mark("after")
        wait_until(lambda: load.report().phase("after").sent > 50, "it goes on")
        report = load.stop()
    assert report.lost == 0, report.lost_by_kind
    late = report.phase("after").by("blue")  # at most the answer to what was sent before
    assert late is None or late.last_sent_ms < 0
    wrong = report.phase("drift").by("blue")
    said = "none" if wrong is None else f"{wrong.count}, the last answered {wrong.last_ms:.1f} ms after it"
    print(f"{site.kind}: of {report.sent} requests {said} went to blue")


def test_a_repair_survives_every_way_to_spoil_the_pointer(make_site: MakeSite, kind: str) -> None:
    """A flag removed or added, a state edited, another target, a directory in its place: green again each time."""
    if kind != "nginx":
        pytest.skip("nginx has the pointer")
    site = start(make_site, "repair")
    live = site.agent.state_dir / "live"

    def retarget() -> None:
        old = site.agent.state_dir / "gen-000001"
        (old / "shop").mkdir(parents=True)
        (old / "shop" / "blue").touch()
        (old / "shop" / "state").write_text("shop 1 0\n")
        live.with_name("other").symlink_to("gen-000001")
        live.with_name("other").rename(live)

    def replace_by_directory() -> None:
        """As often as it takes to be faster than the repair."""

        def replaced() -> bool:
            live.unlink(missing_ok=True)
            live.mkdir()
            return True

        wait_until(replaced, "a directory is there")

    hands: list[Callable[[], object]] = [
        (live / "shop" / "green").unlink,
        (live / "shop" / "weighted").touch,
        lambda: (live / "shop" / "state").write_text("shop 99 0\n"),
        lambda: (live / "shop").chmod(0o700),
        lambda: (live / "other").mkdir(),
        retarget,
        replace_by_directory,
    ]
    for hand in hands[:5]:
        before = site.agent.log().count("warning repaired")
        hand()
        until_repaired(site, before + 1)
        assert site.app() == "green"
    for hand in hands[5:]:
        before = site.agent.log().count("warning repaired")
        hand()
        until_repaired(site, before + 1)
        assert site.app() == "green"


def test_an_edited_file_and_a_reload_by_hand(make_site: MakeSite) -> None:
    """Noticed on disk and in the processes, with the changed line; repaired with a reload of what was rendered."""
    site = start(make_site, "report")
    workers = {process.pid for process in site.agent.balancer_processes()}
    path, revision = rendered(site), revision_that_runs(site)
    text = path.read_text()
    path.write_text(text + "# a hand was here\n")
    difference = until_noticed(site, "+# a hand was here")
    assert difference["where"] == "disk"
    assert {process.pid for process in site.agent.balancer_processes()} == workers
    reload_by_hand(site)
    until_noticed(site, "read its configuration while")
    site.config["agent"]["on_drift"] = "repair"
    site.agent.stop()
    site.agent.write_config(site.config)
    site.agent.start()
    until_repaired(site)
    assert "+# a hand was here" in diffs_told(site)
    assert path.read_text() == text
    assert revision_that_runs(site) == revision
    assert site.app() == "green"


def test_an_edited_file_alone_is_put_back_without_a_reload(make_site: MakeSite) -> None:
    """What runs is what was rendered, so the processes are left alone; an extra and a lost file count as well."""
    site = start(make_site, "repair")
    workers = {process.pid for process in site.agent.balancer_processes()}
    path = rendered(site)
    text = path.read_text()
    path.write_text("")
    until_repaired(site, 1)
    assert path.read_text() == text
    path.with_name("extra.conf").write_text("x")
    until_repaired(site, 2)
    assert not path.with_name("extra.conf").exists()
    path.unlink()
    until_repaired(site, 3)
    assert path.read_text() == text
    assert {process.pid for process in site.agent.balancer_processes()} == workers


def test_an_older_revision_that_somebody_reloaded(make_site: MakeSite) -> None:
    """`current` moved to the file before, and a reload: both are noticed, and the intended one runs again."""
    site = start(make_site, "report")
    old = revision_that_runs(site)
    site.config["services"]["shop"]["timeouts"] = {"read": "33s"}
    site.agent.write_config(site.config)
    wait_until(lambda: "configuration-applied" in site.agent.log(), "the change is applied")
    new = revision_that_runs(site)
    assert new != old
    current = site.agent.state_dir / site.kind / "current"
    current.unlink()
    current.symlink_to(f"rendered/{old}")
    reload_by_hand(site)
    until_noticed(site, f"current points at rendered/{old}")
    running = until_noticed(site, f"runs configuration {old}")
    assert "33" in running["diff"]
    assert current.readlink() == Path(f"rendered/{old}")
    site.config["agent"]["on_drift"] = "repair"
    site.agent.write_config(site.config)
    wait_until(lambda: revision_that_runs(site) == new, "the intended one runs again")
    until_over(site)
    assert current.readlink() == Path(f"rendered/{new}")


@pytest.fixture
def haproxy_site(make_site: MakeSite, kind: str) -> Site:
    if kind != "haproxy":
        pytest.skip("HAProxy can be changed while it runs")
    return start(make_site, "repair")


def test_hands_at_the_runtime_api(haproxy_site: Site) -> None:
    """Maps, servers and listeners changed through either socket are as intended again."""
    site = haproxy_site
    path, weights = live_map(site), live_map(site).with_name("weights.map")
    green = site.green.address
    hands = [
        ("master.sock", f"@1 set map {path} shop blue", "shop blue"),
        ("worker.sock", f"del map {path} shop", "shop"),
        ("worker.sock", f"add map {weights} shop 0", "shop 0"),
        ("master.sock", f"@1 clear map {path}", "nothing"),
        ("worker.sock", "set server shop_green/s1 state maint", "maint"),
        ("worker.sock", "set server shop_blue/s1 state drain", "drain"),
        ("master.sock", "@1 set server shop_green/s1 weight 50", "weight 50"),
        ("worker.sock", "set server shop_green/s1 addr 127.0.0.9 port 9", "127.0.0.9:9"),
        ("worker.sock", "disable server shop_green/s1", "maint"),
        ("worker.sock", "disable frontend shop", "frontend"),
    ]
    for number, (sock, command, words) in enumerate(hands, 1):
        say(site, command, sock)
        until_repaired(site, number)
        assert words in site.agent.log(), words
        assert site.app() == "green", (command, green)


def test_edited_maps(haproxy_site: Site) -> None:
    """On disk they count at the next reload or restart: the file comes back, byte for byte."""
    site = haproxy_site
    path = live_map(site)
    text = path.read_bytes()
    for number, content in enumerate((b"shop blue\n", b"\xff\xfe\x00", b"", None), 1):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        until_repaired(site, number)
        assert path.read_bytes() == text
    assert site.app() == "green"


def test_two_hundred_switches_are_no_drift(make_site: MakeSite) -> None:
    """Whatever lbswitch does itself, files, reloads, weights and a restart of the agent included, is no drift."""
    site = start(make_site, "report")
    for number in range(100):
        for color in ("blue", "green"):
            assert site.agent.http("POST", "/v1/services/shop/switch", {"to": color})[0] == 200
        if number % 25 == 0:
            site.agent.http("POST", "/v1/services/shop/switch", {"to": "blue", "weight": 10 + number})
            site.config["services"]["shop"]["timeouts"] = {"read": f"{40 + number}s"}
            site.agent.write_config(site.config)
    site.agent.kill()
    site.agent.start()
    until_over(site)
    assert " drift" not in site.agent.log(), site.agent.log()


async def _nowhere(*_: object) -> None:
    """Nobody runs the agent's loop here."""


def test_looking_as_fast_as_it_goes_sees_nothing_in_what_lbswitch_does(make_site: MakeSite, kind: str) -> None:
    """Two hundred switches, weights and reloads among them, each seen from the middle: no drift is told."""
    site = make_site(start=False)
    site.config["services"]["shop"]["blue"]["servers"].append(site.green.address)
    ejected = frozenset({ServerKey("shop", Color.BLUE, site.green.address)})
    config = Config.model_validate({**site.config, "agent": {"state_dir": str(site.agent.state_dir)}})
    told: list[Event] = []
    events = Events(time.time)
    events.listen(told.append)
    serving = Serving(config, make_balancer(config), events)
    serving.start(Intent({"shop": ServiceIntent(Route(Color.BLUE), 1)}, 1))
    watch, ended = DriftWatch(serving, events, _nowhere), threading.Event()
    looks = []

    def look() -> None:
        while not ended.is_set():
            watch.look()
            looks.append(1)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for number in range(200):
            route = Route(Color.GREEN if number % 2 else Color.BLUE)
            route = route.with_share(Color.GREEN, 30) if number % 20 == 7 else route
            with serving.mutex:
                now = serving.intent.services["shop"]
                after = {"shop": ServiceIntent(route, now.generation + 1, (number // 40) % 2 == 1 or route.is_split)}
                intent = serving.intent.with_services(after)
                files = serving.changed_files(intent)
                serving.move(intent, files)
                if files is not None:
                    serving.verify(after, reloaded=True)
            serving.verify(after)
            if number % 50 == 25:  # nginx reloads for this
                serving.set_ejected(frozenset() if serving.intent.ejected else ejected)
    finally:
        ended.set()
        looker.join()
    print(f"{kind}: {len(looks)} looks during 200 switches")
    assert [event.message for event in told if event.type.startswith("drift")] == []
    assert len(looks) > 100
