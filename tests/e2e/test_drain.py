"""What is left on the old color stays whole, is counted until it is gone, and is closed only as the policy says."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lbswitch.balancers import nginx_workers
from tests.e2e.conftest import Site
from tests.support.streams import Stream, Streams, WebSocket, close
from tests.support.wait import wait_until

MakeSite = Callable[..., Site]


@pytest.fixture
def streams() -> Iterator[Streams]:
    with Streams().running() as running:
        yield running


def start(make_site: MakeSite, **drain: str) -> Site:
    site = make_site(**({"drain": drain} if drain else {}))
    site.until_known()
    return site


def move(site: Site, *arguments: str) -> int:
    """The id of the operation, which is done."""
    said = site.agent.lbswitch(*arguments, "--json")
    assert said.code == 0, said.output
    return int(said.output["id"])


def drain_of(site: Site, operation: int) -> dict[str, Any]:
    code, document = site.agent.http("GET", f"/v1/operations/{operation}")
    assert code == 200, document
    return dict(document["drain"])


def until_open(site: Site, operation: int, count: int) -> dict[str, Any]:
    return wait_until(
        lambda: found if (found := drain_of(site, operation))["open"] == count else None,
        f"{count} connections are left of operation {operation}",
        30,
    )


def until_state(site: Site, operation: int, state: str) -> dict[str, Any]:
    return wait_until(
        lambda: found if (found := drain_of(site, operation))["state"] == state else None,
        f"operation {operation} is {state}",
        60,
    )


def workers(drain: dict[str, Any], *, old: bool) -> int:
    """Connections in old workers, or in those of today."""
    return sum(worker["open"] for worker in drain["workers"] if worker["old"] is old)


def reload(site: Site) -> None:
    """Change what is rendered, so that the balancer reads it anew; its workers of before are old now."""
    before = accepting(site)
    service = site.config["services"]["shop"]
    seconds = int(service.get("timeouts", {"read": "60s"})["read"].removesuffix("s")) + 1
    service["timeouts"] = {"read": f"{seconds}s"}
    site.agent.write_config(site.config)
    said = site.agent.lbswitch("apply", "--json")
    assert (said.code, said.output["configuration"]) == (0, "applied") or said.output["configuration"] == "unchanged"
    # nginx tells its old workers to end only after the new ones run, and until then they take connections as well.
    if said.output["configuration"] == "applied":
        wait_until(lambda: not before & accepting(site), "the old workers accept nothing any more", 30)


def accepting(site: Site) -> set[int]:
    """Those of nginx's workers that were not told to end."""
    running = [nginx_workers.look(process.pid) for process in site.agent.balancer_processes()]
    return {worker.pid for worker in running if worker is not None and not worker.is_old}


def balancer(site: Site) -> dict[str, Any]:
    """What status says of it."""
    return dict(site.agent.http("GET", "/v1/services")[1]["agent"]["balancer"])


def test_streams_stay_whole_and_are_counted_until_none_is_left(make_site: MakeSite, streams: Streams) -> None:
    """A WebSocket too; by worker, in operation, history, status and metrics; then an event says how long it took."""
    site = start(make_site)
    with WebSocket(site.port) as websocket:
        assert websocket.echo("before") == "blue:before"
        short, long = streams.open(site.port, 2, "blue", chunks=40), streams.open(site.port, 2, "blue")
        operation = move(site, "green")
        drain = until_open(site, operation, 5)
        assert (drain["color"], drain["state"], workers(drain, old=False)) == ("blue", "draining", 5)
        assert site.app() == "green"
        assert websocket.echo("after") == "blue:after"
        assert site.status()["drain"]["open"] == 5
        metrics = site.agent.http("GET", "/metrics")[1]
        assert 'lbswitch_draining_connections{color="blue",service="shop"} 5.0' in metrics
        assert "5 open" in site.agent.lbswitch("history", "-n", "1").output
        until_open(site, operation, 3)
        assert all(stream.whole for stream in short)
        assert websocket.echo("later") == "blue:later"
        assert not any(stream.ended_at for stream in long)
    close(long)
    drain = until_state(site, operation, "drained")
    assert (drain["open"], drain["workers"], drain["most"], drain["closed"]) == (0, [], 5, 0)
    assert drain["drained_ms"] > 0
    wait_until(
        lambda: "drained shop: blue is drained: the last of 5 connections ended" in site.agent.log(), "it says so"
    )
    assert site.status()["drain"] is None
    assert "drained after" in site.agent.lbswitch("show", str(operation)).output


def test_streams_from_before_a_reload_are_counted_and_follow_the_switch(make_site: MakeSite, streams: Streams) -> None:
    """In the old workers, which status counts; a client that asks again there is answered by the new color."""
    site = start(make_site)
    early = streams.open(site.port, 2, "blue")
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as kept:
        kept.sendall(b"GET /stream?n=80&ms=100 HTTP/1.1\r\nHost: app\r\n\r\n")
        kept.recv(4096)
        reload(site)
        late = streams.open(site.port, 3, "blue")
        operation = move(site, "green")
        drain = until_open(site, operation, 6)
        assert (workers(drain, old=True), workers(drain, old=False)) == (3, 3)
        wait_until(lambda: balancer(site)["old_workers"] >= 1, "the old workers are counted")
        assert "(old): " in site.agent.lbswitch("drain").output
        assert_answered_by_green_if_at_all(kept)
    until_open(site, operation, 5)
    close(early)
    drain = until_open(site, operation, 3)
    assert workers(drain, old=True) == 0
    close(late)
    until_state(site, operation, "drained")


def assert_answered_by_green_if_at_all(kept: socket.socket) -> None:
    """The stream ends, and the worker may end the connection with it; if not, it has to know of the switch."""
    content = b""
    while not content.endswith(b"0\r\n\r\n"):
        part = kept.recv(65536)
        assert part, content
        content += part
    try:
        kept.sendall(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")
        answer = kept.recv(65536)
    except OSError:
        return
    assert not answer or b"green" in answer, answer


def test_a_switch_back_supersedes(make_site: MakeSite, streams: Streams) -> None:
    """What drained has traffic again; now the other color drains."""
    site = start(make_site)
    streams.open(site.port, 2, "blue")
    first = move(site, "green")
    until_open(site, first, 2)
    streams.open(site.port, 1, "green")
    second = move(site, "rollback")
    until_open(site, second, 1)
    assert drain_of(site, first)["state"] == "superseded"
    assert drain_of(site, second)["color"] == "green"


def test_a_rollback_can_close_what_is_left_spread_over_time(make_site: MakeSite, streams: Streams) -> None:
    """The bad color's streams end one after the other, also those in old workers; the good color's stay whole."""
    site = start(make_site, back="close", close_over="2s")
    good = streams.open(site.port, 3, "blue", chunks=80)
    move(site, "green")
    bad = streams.open(site.port, 4, "green")
    reload(site)
    bad += streams.open(site.port, 4, "green")
    operation = move(site, "rollback")
    drain = until_state(site, operation, "drained")
    assert (drain["closed"], drain["note"]) == (8, None)
    wait_until(lambda: all(stream.broken for stream in bad), "all are ended")
    assert len({round((stream.ended_at or 0) * 20) for stream in bad}) > 1, "all at the same moment"
    assert not any(stream.broken for stream in good)
    wait_until(lambda: all(stream.whole for stream in good), "the good ones come to their end", 30)
    assert "8 connections are left on green; closing within 2 s" in site.agent.log()
    assert (
        'lbswitch_closed_connections_total{color="green",service="shop"} 8.0' in site.agent.http("GET", "/metrics")[1]
    )


def test_a_failover_closes_as_a_rollback_does(make_site: MakeSite, streams: Streams) -> None:
    """A color that hangs keeps its clients for as long as it likes, else."""
    site = start(make_site, back="close", close_over="1s")
    bad = streams.open(site.port, 2, "blue")
    site.blue.fail(health=503)
    site.until_live("green")
    wait_until(lambda: all(stream.broken for stream in bad), "all are ended", 30)


def test_a_killed_agent_goes_on_after_its_restart(make_site: MakeSite, streams: Streams) -> None:
    """Also with closing; what happened meanwhile is seen."""
    site = start(make_site, forward="close", close_after="4s", close_over="1s")
    left = streams.open(site.port, 4, "blue")
    operation = move(site, "green")
    until_open(site, operation, 4)
    site.agent.kill()
    assert not any(stream.ended_at for stream in left)
    close(left[:1])
    site.agent.start()
    drain = until_state(site, operation, "drained")
    assert (drain["most"], drain["closed"]) == (4, 3)
    assert site.app() == "green"


def test_the_command_waits_and_closes(make_site: MakeSite, streams: Streams) -> None:
    """0 drained, 1 the timeout passed; --close ends what is left, and refuses what has traffic."""
    site = start(make_site)
    assert site.agent.lbswitch("drain", "--wait").code == 0
    left = streams.open(site.port, 3, "blue")
    operation = move(site, "green")
    late = site.agent.lbswitch("drain", "--wait", "--timeout", "1s")
    assert late.code == 1
    assert "shop: not drained after 1s: 3 connections open to blue; lbswitch drain --close -s shop" in late.output
    shown = site.agent.lbswitch("drain", "--json")
    assert (shown.code, shown.output["services"]["shop"]["open"]) == (0, 3)
    fresh = streams.open(site.port, 1, "green")
    code, problem = site.agent.http("POST", "/v1/services/shop/drain", {"close": True, "color": "green"})
    assert (code, problem["exit_code"]) == (409, 3), problem
    said = site.agent.lbswitch("drain", "--close", "--over", "500ms", "--wait", "--timeout", "60s", "--json")
    assert (said.code, said.output["services"]["shop"]["state"]) == (0, "drained")
    assert all(stream.broken for stream in left)
    assert not any(stream.ended_at for stream in fresh)
    assert drain_of(site, operation)["closed"] == 3
    assert site.agent.lbswitch("drain", "--wait", "--timeout", "30s").code == 0


def test_old_workers_are_capped(make_site: MakeSite, streams: Streams) -> None:
    """The oldest go, with an event that says how many connections that cost; the others' streams stay."""
    site = make_site(start=False)
    site.config["balancer"] |= {"old_workers": 2, **({"workers": 1} if site.kind == "nginx" else {})}
    site.agent.write_config(site.config)
    site.agent.start()
    site.until_known()
    generations: list[list[Stream]] = []
    for _ in range(4):
        generations.append(streams.open(site.port, 1, "blue"))
        reload(site)
    generations.append(streams.open(site.port, 1, "blue"))
    wait_until(lambda: all(one.broken for one in [*generations[0], *generations[1]]), "the oldest two are ended", 60)
    wait_until(lambda: balancer(site)["old_workers"] == 2, "two are left", 30)
    assert "old-workers-ended" in site.agent.log()
    assert (
        "workers from before reloads were still there, 2 may be (balancer.old_workers: 2 reloads)" in site.agent.log()
    )
    assert not any(one.ended_at for generation in generations[2:] for one in generation)
