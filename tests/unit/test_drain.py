"""What is left on a color that lost its traffic: counted until it is gone, closed as the policy says. With fakes."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lbswitch.core.model import Color, DrainState, Intent, Kind, Operation, PoolKey, Route, ServiceIntent
from lbswitch.drain import DrainWatch, OldWorkers
from lbswitch.errors import Busy, Refused
from lbswitch.events import Event, Events
from lbswitch.ports import Held, OldWorker
from lbswitch.serving import Serving
from lbswitch.store.sqlite import SqliteStore
from lbswitch.switch import Request, Switcher
from tests.unit.fakes import FakeBalancer, FakeHealth, config_of
from tests.unit.test_api import Client, running

BLUE, GREEN = Color.BLUE, Color.GREEN
LEFT, LEFT_GREEN = PoolKey("shop", BLUE), PoolKey("shop", GREEN)


async def never(*_: object) -> None:
    raise AssertionError("nothing runs in a loop here")


class Desk:
    """A DrainWatch and what it looks at; `now` is both clocks, and moves when a test says so."""

    def __init__(self, directory: Path, **drain: str) -> None:
        self.now = 1000.0
        self.events, self.told = Events(self.clock), list[Event]()
        self.balancer = FakeBalancer()
        self.draining = self.balancer.draining
        self.store = SqliteStore(directory / "lbswitch.db")
        self.config = config_of(**({"drain": drain} if drain else {}))
        self.serving = Serving(self.config, self.balancer, self.events)
        self.switcher = Switcher(self.serving, self.store, FakeHealth(), self.events, self.clock)
        self.watch = self.a_watch()
        intent = Intent({name: ServiceIntent(Route(BLUE), 1) for name in self.config.services}, 1)
        self.serving.start(intent)
        self.store.save_services(intent.services, 1)
        self.events.listen(self.told.append)

    def clock(self) -> float:
        return self.now

    def a_watch(self) -> DrainWatch:
        return DrainWatch(self.serving, self.switcher, self.store, self.events, never, self.clock, self.clock)

    def move(self, to: Color | None = GREEN, kind: Kind = Kind.SWITCH, **more: Any) -> Operation:
        request = Request(kind, more.pop("services", ("shop",)), to=to, actor="test", **more)
        operation = self.switcher.run(request)[0]
        assert operation.state == "done", operation
        return operation

    def leave(self, *counts: int, pool: PoolKey = LEFT) -> None:
        """So many connections in each worker; all but the last are from before reloads."""
        self.draining.open[pool] = tuple(
            Held(100 + index, index < len(counts) - 1, count) for index, count in enumerate(counts)
        )

    def steps(self, count: int = 1, every_s: float = 0.1) -> None:
        for _ in range(count):
            self.now += every_s
            self.watch.step()

    def drain(self, operation: Operation) -> dict[str, Any]:
        """As the API shows it: from the journal, and what is known now."""
        found = self.store.operation(operation.id)
        assert found is not None
        shown = self.watch.shown(found).drain
        assert shown is not None
        return shown.to_json()

    def types(self) -> list[str]:
        return [event.type for event in self.told if event.type not in ("switch", "rollback", "failover", "weight")]

    def closed(self) -> int:
        return sum(count for _, count in self.draining.closed)


@pytest.fixture
def make_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    desks = []

    def make(**drain: str) -> Desk:
        desks.append(Desk(tmp_path, **drain))
        return desks[-1]

    yield make
    for desk in desks:
        desk.store.close()


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()


# -- counting --------------------------------------------------------------------------------------------------


def test_what_is_left_is_counted_by_worker_until_none_is(desk: Desk) -> None:
    """Then there is one event with how long it took, and the journal has it."""
    desk.leave(2, 5)
    operation = desk.move()
    assert operation.drain is not None
    assert operation.drain.to_json() | {"open": None, "workers": [], "state": "draining"} == operation.drain.to_json()
    desk.steps()
    drain = desk.drain(operation)
    assert (drain["color"], drain["open"], drain["state"]) == ("blue", 7, "draining")
    assert drain["workers"] == [{"pid": 100, "old": True, "open": 2}, {"pid": 101, "old": False, "open": 5}]
    desk.leave(1)
    desk.steps()
    assert (desk.drain(operation)["open"], desk.drain(operation)["most"]) == (1, 7)
    desk.leave()
    desk.steps(2)
    drain = desk.drain(operation)
    assert (drain["state"], drain["open"], drain["workers"], drain["closed"]) == ("drained", 0, [], 0)
    assert drain["drained_ms"] == pytest.approx(300.0)
    assert desk.types() == ["drained"]
    assert desk.told[-1].message == "blue is drained: the last of 7 connections ended 0.3 s after switch 1"
    assert desk.told[-1].data["drain"]["operation"] == operation.id
    assert desk.watch.by_service == {}
    assert desk.store.draining() == []


def test_one_count_of_none_is_not_believed(desk: Desk) -> None:
    """A request that is on its way to its server is in none."""
    operation = desk.move()
    desk.steps()
    assert desk.drain(operation)["state"] == "draining"
    desk.leave(1)
    desk.steps(3)
    assert desk.types() == []
    desk.leave()
    desk.steps(2)
    assert desk.types() == ["drained"]


def test_unknown_is_never_none(desk: Desk) -> None:
    """It is said once, kept with the operation, and over when somebody knows."""
    desk.draining.open[LEFT] = None
    operation = desk.move()
    desk.steps(5)
    drain = desk.drain(operation)
    assert (drain["state"], drain["open"], drain["drained_ms"]) == ("unknown", None, None)
    assert desk.types() == ["drain-unknown"]
    assert [each.drain for each in desk.store.draining()] == [desk.store.operation(operation.id).drain]
    desk.leave()
    desk.steps(2)
    assert desk.drain(operation)["state"] == "drained"


def test_a_way_back_supersedes(desk: Desk) -> None:
    """The first operation says so, and the other color drains now."""
    desk.leave(3)
    first = desk.move()
    desk.steps()
    desk.leave(2, pool=LEFT_GREEN)
    second = desk.move(None, Kind.ROLLBACK)
    desk.steps()
    assert (desk.drain(first)["state"], desk.drain(first)["open"]) == ("superseded", 3)
    assert (desk.drain(second)["color"], desk.drain(second)["open"]) == ("green", 2)
    assert [each.id for each in desk.store.draining()] == [second.id]
    assert desk.types() == []


def test_a_part_of_the_traffic_supersedes_and_drains_nothing(desk: Desk) -> None:
    """A canary on the color that drains; only the weight that takes the last of it drains again."""
    desk.leave(3)
    first = desk.move()
    canary = desk.move(BLUE, weight=10)
    desk.steps()
    assert (desk.drain(first)["state"], canary.drain, desk.watch.by_service) == ("superseded", None, {})
    last = desk.move(BLUE, weight=0)
    assert last.kind is Kind.WEIGHT
    desk.steps()
    assert (desk.drain(last)["color"], desk.drain(last)["open"]) == ("blue", 3)


def test_an_operation_that_moves_nothing_ends_no_drain(desk: Desk) -> None:
    """The same switch again is `already`."""
    desk.leave(3)
    first = desk.move()
    desk.switcher.run(Request(Kind.SWITCH, ("shop",), to=GREEN, actor="test"))
    desk.steps()
    assert desk.drain(first)["state"] == "draining"


def test_switches_as_fast_as_they_can_are_counted_once(desk: Desk) -> None:
    """All but the last are superseded, which is one write; one count covers all services."""
    desk.leave(1)
    desk.draining.open[PoolKey("blog", BLUE)] = (Held(None, False, 4),)
    operations = [desk.move(GREEN if number % 2 == 0 else BLUE) for number in range(21)]
    blog = desk.move(services=("blog",))
    held, asked = desk.draining.held, []
    desk.draining.held = lambda pools: asked.append(set(pools)) or held(pools)
    desk.steps()
    assert asked == [{LEFT, PoolKey("blog", BLUE)}]
    assert [desk.drain(each)["state"] for each in operations] == ["superseded"] * 20 + ["draining"]
    assert (desk.drain(operations[-1])["open"], desk.drain(blog)["open"]) == (1, 4)


def test_the_next_agent_goes_on(desk: Desk) -> None:
    """Also with how many there were; what moved meanwhile is superseded, and times go on from the operation's end."""
    desk.leave(4)
    operation = desk.move()
    desk.steps()
    desk.watch = desk.a_watch()
    desk.watch.resume()
    desk.leave(1)
    desk.steps(every_s=60.0)
    assert desk.drain(operation)["open"] == 1
    desk.leave()
    desk.steps(2, every_s=60.0)
    assert desk.told[-1].message == "blue is drained: the last of 4 connections ended 120.1 s after switch 1"


def test_the_next_agent_takes_what_happened_in_between_for_what_it_is(desk: Desk) -> None:
    """Nobody had taken in the second switch when the agent died."""
    desk.leave(4)
    first = desk.move()
    second = desk.move(BLUE)
    desk.watch = desk.a_watch()
    desk.watch.resume()
    desk.steps()
    assert (desk.drain(first)["state"], desk.drain(second)["state"]) == ("superseded", "draining")


def test_a_service_that_is_removed_is_not_waited_for(desk: Desk) -> None:
    """The operation says why."""
    desk.leave(4)
    operation = desk.move()
    desk.steps()
    desk.serving.config = desk.config.model_copy(update={"services": {"blog": desk.config.services["blog"]}})
    desk.steps()
    drain = desk.drain(operation)
    assert (drain["state"], drain["note"]) == ("superseded", "the service is no longer configured")


# -- closing ---------------------------------------------------------------------------------------------------


def test_forward_waits_unless_told_otherwise(desk: Desk) -> None:
    """Nothing is closed by default, in either direction."""
    desk.leave(4)
    desk.leave(4, pool=LEFT_GREEN)
    desk.move()
    desk.steps(50)
    desk.move(None, Kind.ROLLBACK)
    desk.steps(50)
    assert desk.draining.closed == []


def test_back_closes_evenly_after_a_while(make_desk: Callable[..., Desk]) -> None:
    """The losing color's, beginning later, spread over the time; the other color's are never touched."""
    desk = make_desk(back="close", close_after="2s", close_over="10s")
    desk.leave(7)
    desk.leave(15, 25, pool=LEFT_GREEN)
    desk.move()
    desk.steps(30)
    assert desk.draining.closed == []
    operation = desk.move(None, Kind.ROLLBACK)
    desk.steps(19)
    assert desk.closed() == 0
    open_then = []
    for _ in range(10):
        desk.steps(10)
        drain = desk.drain(operation)
        assert drain["open"] + drain["closed"] == 40
        assert sum(worker["open"] for worker in drain["workers"]) == drain["open"]
        open_then.append(desk.drain(operation)["open"])
    assert open_then == pytest.approx([36, 32, 28, 24, 20, 16, 12, 8, 4, 0], abs=2)
    desk.steps(5)
    drain = desk.drain(operation)
    assert (drain["state"], drain["closed"], drain["open"]) == ("drained", 40, 0)
    assert {pool for pool, _ in desk.draining.closed} == {LEFT_GREEN}
    assert max(count for _, count in desk.draining.closed) <= 2
    assert desk.types() == ["drain-closing", "drained"]
    assert desk.told[-1].message.endswith("after rollback 2, 40 were closed")
    assert desk.watch.closed == {LEFT_GREEN: 40}


def test_forward_can_close_too_and_a_failover_counts_as_back(make_desk: Callable[..., Desk]) -> None:
    """Each direction has its own policy."""
    desk = make_desk(forward="close", close_over="1s")
    desk.leave(4)
    desk.leave(4, pool=LEFT_GREEN)
    desk.move()
    desk.steps(15)
    assert desk.closed() == 4
    desk.move(BLUE, Kind.FAILOVER)
    desk.steps(15)
    assert desk.closed() == 4


def test_closing_stops_as_soon_as_the_service_moves_again(make_desk: Callable[..., Desk]) -> None:
    """Also when nobody has heard of the move yet: what has traffic now is never closed."""
    desk = make_desk(forward="close", close_over="10s")
    desk.leave(40)
    desk.move()
    desk.steps(20)
    closed = desk.closed()
    assert 0 < closed < 40
    route = desk.serving.intent.services["shop"]
    desk.serving.intent = desk.serving.intent.with_services({"shop": ServiceIntent(Route(BLUE, 10), 9)})
    desk.steps(20)
    assert desk.closed() == closed
    desk.serving.intent = desk.serving.intent.with_services({"shop": route})
    desk.move(BLUE)
    desk.steps(150)
    assert desk.closed() == closed


def test_closing_never_keeps_a_switch_waiting(make_desk: Callable[..., Desk]) -> None:
    """While somebody moves traffic nothing is closed; afterwards it goes on."""
    desk = make_desk(forward="close", close_over="1s")
    desk.leave(8)
    desk.move()
    desk.steps()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with desk.serving.mutex:
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    desk.steps(20)
    release.set()
    holder.join()
    assert desk.closed() == 0
    desk.steps(20)
    assert desk.closed() == 8


@pytest.mark.parametrize("why", ["needs CAP_NET_ADMIN; mend it so", None])
def test_what_cant_be_closed_is_said_once_and_left(make_desk: Callable[..., Desk], why: str | None) -> None:
    """A warning, and a note in the operation's drain; it goes on to be counted."""
    desk = make_desk(forward="close")
    if why is None:
        desk.draining.break_close = why = "the kernel said no"
    else:
        desk.draining.no_closing = why
    desk.leave(4)
    operation = desk.move()
    desk.steps(40)
    assert [event.level for event in desk.told if event.type == "not-closed"] == ["warning"]
    assert desk.drain(operation)["note"] == f"not closed: {why}"
    assert desk.drain(operation)["open"] == 4
    assert why in next(event.message for event in desk.told if event.type == "not-closed")
    desk.leave()
    desk.steps(2)
    assert desk.store.operation(operation.id).drain.note == f"not closed: {why}"


def test_a_moment_in_which_nobody_can_tell_stops_no_closing(make_desk: Callable[..., Desk]) -> None:
    """Where it stays so, that is the reason why nothing is closed."""
    desk = make_desk(forward="close", close_over="1s")
    desk.draining.open[LEFT] = None
    desk.move()
    desk.steps(4)
    assert desk.types() == []
    desk.leave(4)
    desk.steps(20)
    assert desk.closed() == 4
    desk.draining.open[LEFT_GREEN] = None
    operation = desk.move(BLUE)
    desk.steps(6)
    assert desk.drain(operation)["note"] == "not closed: they can't be counted"
    assert desk.types()[-2:] == ["drain-unknown", "not-closed"]


def test_close_by_hand(desk: Desk) -> None:
    """What is left now, over the time that was asked for, whatever the policy says."""
    desk.leave(4)
    operation = desk.move()
    desk.steps()
    document = desk.watch.close("shop", 2.0)
    assert (document["open"], document["closing"]) == (4, {"total": 4, "over_s": 2.0})
    desk.steps(25)
    assert (desk.drain(operation)["closed"], desk.drain(operation)["state"]) == (4, "drained")


def test_close_by_hand_long_after_the_drain_was_over(desk: Desk) -> None:
    """Who came late is closed too, and the watch tells of its end."""
    desk.move()
    desk.steps(3)
    desk.leave(2)
    assert desk.watch.documents(["shop"])["shop"]["state"] == "draining"
    desk.watch.close("shop", 1.0)
    desk.steps(15)
    assert desk.closed() == 2
    assert desk.told[-1].message.startswith("blue is drained: the last of 2 connections ended")


def test_nothing_with_traffic_is_ever_closed_by_hand(desk: Desk) -> None:
    """Neither the live color nor a share of a split, nor anything while an operation runs."""
    desk.leave(4)
    desk.leave(4, pool=LEFT_GREEN)
    with pytest.raises(Refused, match="blue gets 100% of the traffic; nothing was closed"):
        desk.watch.close("shop", color=BLUE)
    desk.move(weight=10)
    with pytest.raises(Refused, match="both colors get traffic"):
        desk.watch.close("shop")
    desk.move()
    request = Request(Kind.SWITCH, ("shop",), to=BLUE, actor="ann")
    with desk.switcher.held(request), pytest.raises(Busy, match="a switch by ann is running"):
        desk.watch.close("shop")
    desk.draining.no_closing = "no way"
    with pytest.raises(Refused, match="4 connections are left on blue, and can't be closed: no way"):
        desk.watch.close("shop")
    desk.steps(50)
    assert desk.closed() == 0


# -- showing ---------------------------------------------------------------------------------------------------


def test_the_document_tells_of_what_nobody_waits_for(desk: Desk) -> None:
    """Counted at that moment; of a split there is nothing to tell."""
    desk.leave(1, pool=LEFT_GREEN)
    documents = desk.watch.documents(["shop", "blog", "gone"])
    assert documents.keys() == {"shop", "blog"}
    assert (documents["shop"]["color"], documents["shop"]["open"], documents["shop"]["state"]) == (
        "green",
        1,
        "draining",
    )
    assert (documents["blog"]["open"], documents["blog"]["state"], documents["blog"]["operation"]) == (
        0,
        "drained",
        None,
    )
    desk.draining.open[LEFT_GREEN] = None
    assert desk.watch.documents(["shop"])["shop"]["state"] == "unknown"
    desk.move(weight=10)
    split = desk.watch.documents(["shop"])["shop"]
    assert (split["color"], split["open"], split["state"]) == (None, None, "none")


def test_the_document_remembers_how_long_it_took(desk: Desk) -> None:
    """Until the service moves again."""
    desk.leave(1)
    operation = desk.move()
    desk.steps()
    desk.leave()
    desk.steps(2)
    document = desk.watch.documents(["shop"])["shop"]
    assert (document["state"], document["operation"]) == ("drained", operation.id)
    assert document["drained_ms"] == pytest.approx(200.0)
    assert desk.watch.by_service == {}


def test_a_document_counts_anew_but_not_for_everybody_who_asks(desk: Desk) -> None:
    """A count that is a moment old will do."""
    desk.leave(5)
    desk.move()
    desk.steps()
    desk.leave(3)
    assert desk.watch.documents(["shop"])["shop"]["open"] == 5
    desk.now += 1.0
    assert desk.watch.documents(["shop"])["shop"]["open"] == 3


# -- old workers -----------------------------------------------------------------------------------------------


def workers(count: int) -> tuple[OldWorker, ...]:
    return tuple(OldWorker(200 + number, 3600.0 - number, 2 if number else None) for number in range(count))


@pytest.mark.parametrize("managed", [True, False])
def test_old_workers_are_counted_and_capped_where_they_are_ours(desk: Desk, managed: bool) -> None:
    """The oldest are ended, with an event that says what it cost; an owner's are only counted."""
    guest = {} if managed else {"config": "/etc/nginx/nginx.conf", "output_dir": "/etc/nginx/lbswitch"}
    document = desk.config.model_dump(mode="json")
    document["balancer"] = {"kind": "nginx", "managed": managed, **guest}
    desk.serving.config = type(desk.config).model_validate(document)
    old = OldWorkers(desk.serving, desk.events, never)
    most = 2 * desk.serving.config.balancer.old_workers  # two workers a reload
    desk.draining.old = workers(most)
    old.look()
    assert (len(old.found), desk.types()) == (most, [])
    desk.draining.old = workers(most + 2)
    old.look()
    assert len(old.found) == (most if managed else most + 2)
    assert [each.pid for each in desk.draining.ended] == ([200, 201] if managed else [])
    if managed:
        (event,) = desk.told
        assert (event.type, event.level) == ("old-workers-ended", "warning")
        assert "2 ended, which cost an unknown number of connections: pid 200, 3600 s old" in event.message


def test_why_connections_cant_be_closed_is_asked_only_where_they_are_to_be(make_desk: Callable[..., Desk]) -> None:
    """For the doctor, in the name of the agent."""
    desk = make_desk()
    desk.draining.no_closing = "no way"
    old = OldWorkers(desk.serving, desk.events, never)
    old.look()
    assert old.why_not_closed is None
    desk.serving.config = config_of(drain={"back": "close"})
    old.look()
    assert old.why_not_closed == "no way"


# -- the agent and its API -------------------------------------------------------------------------------------


def test_the_api(tmp_path: Path) -> None:
    """The loop counts by itself; operation, history, status, drain and metrics tell the same."""

    async def main() -> None:
        async with running(tmp_path) as client:
            loop = asyncio.create_task(client.agent.drain.run())
            try:
                await story(client)
            finally:
                loop.cancel()
                await asyncio.gather(loop, return_exceptions=True)

    asyncio.run(main())


async def until(client: Client, path: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    for _ in range(3000):
        _, document = await client.get(path)
        if wanted(document):
            return document
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path}: {document}")


async def story(client: Client) -> None:
    draining = client.balancer.draining
    draining.open[LEFT] = (Held(7, True, 2), Held(8, False, 1))
    code, operation = await client.post("/v1/services/shop/switch", {"to": "green"})
    assert (code, operation["drain"]["state"], operation["drain"]["open"]) == (200, "draining", None)
    path = f"/v1/operations/{operation['id']}"
    drain = (await until(client, path, lambda found: found["drain"]["open"] == 3))["drain"]
    assert drain["workers"] == [{"pid": 7, "old": True, "open": 2}, {"pid": 8, "old": False, "open": 1}]
    assert (await client.get("/v1/history"))[1]["operations"][0]["drain"] == drain
    whole = {**drain, "operation": operation["id"], "closing": None}
    assert (await client.get("/v1/services/shop"))[1]["drain"] == whole
    assert (await client.get("/v1/services/blog"))[1]["drain"] is None
    assert (await client.get("/v1/services/shop/drain"))[1] == {"service": "shop", **whole}
    assert (await client.get("/v1/drain"))[1]["services"].keys() == {"shop", "blog"}
    metrics = (await client.http.get("/metrics")).text
    assert 'lbswitch_draining_connections{color="blue",service="shop"} 3.0' in metrics
    assert "lbswitch_old_workers 0.0" in metrics
    await bad_requests(client)
    answers = [
        await client.post(
            "/v1/services/shop/drain", {"close": True, "over": "100ms", "color": "blue"}, **{"Idempotency-Key": "once"}
        )
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert answers[0][1]["closing"] == {"total": 3, "over_s": 0.1}
    done = (await until(client, path, lambda found: found["drain"]["state"] == "drained"))["drain"]
    assert (done["closed"], done["open"], done["most"]) == (3, 0, 3)
    assert (await client.get("/v1/services/shop"))[1]["drain"] is None
    assert (await client.get("/v1/services/shop/drain"))[1]["drained_ms"] == done["drained_ms"]
    metrics = (await client.http.get("/metrics")).text
    assert 'lbswitch_draining_connections{color="blue",service="shop"} 0.0' in metrics
    assert 'lbswitch_closed_connections_total{color="blue",service="shop"} 3.0' in metrics
    assert client.agent.store.draining() == []


async def bad_requests(client: Client) -> None:
    """Each is a problem document, and closes nothing."""
    bad: list[tuple[dict[str, Any], int, str]] = [
        ({}, 422, "close"),
        ({"close": False}, 422, "close"),
        ({"close": True, "over": "soon"}, 422, "is not a duration"),
        ({"close": True, "over": 5}, 422, "is not a duration"),
        ({"close": True, "over": "0s"}, 422, "no time to spread"),
        ({"close": True, "colour": "blue"}, 422, "colour"),
        ({"close": True, "color": "green"}, 409, "green gets 100% of the traffic"),
    ]
    for body, code, words in bad:
        got, document = await client.post("/v1/services/shop/drain", body)
        assert (got, words in document["detail"]) == (code, True), (body, document)
    assert (await client.post("/v1/services/nope/drain", {"close": True}))[0] == 404
    assert (await client.get("/v1/services/nope/drain"))[0] == 404
    request = Request(Kind.SWITCH, ("shop",), to=BLUE, actor="ann")
    with client.agent.switcher.held(request):
        assert (await client.post("/v1/services/shop/drain", {"close": True}))[0] == 423
    assert client.balancer.draining.closed == []


def test_states_that_are_over() -> None:
    """Nobody counts them any more."""
    assert {state for state in DrainState if state.is_over} == {"drained", "superseded"}
