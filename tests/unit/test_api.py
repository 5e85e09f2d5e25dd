"""The HTTP API over the real transaction and store, with a fake balancer and fake health."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from lbswitch.agent import Agent
from lbswitch.api.app import create_app
from lbswitch.automatic import PoolView
from lbswitch.core.config import ServiceConfig
from lbswitch.core.health import CheckResult, PoolHealth, ServerHealth, advance
from lbswitch.core.model import Color, Intent, Route, ServiceIntent
from lbswitch.errors import StateError, UnknownService
from lbswitch.events import Events
from lbswitch.ports import Difference
from lbswitch.serving import Serving
from lbswitch.store.sqlite import SqliteStore
from lbswitch.switch import Switcher
from tests.unit.fakes import FakeBalancer, config_of


class FakeMonitor:
    """Every server passes its checks, but those in `down`."""

    def __init__(self, services: Mapping[str, ServiceConfig]) -> None:
        self.services = dict(services)
        self.down: set[str] = set()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def update(self, services: Mapping[str, ServiceConfig]) -> None:
        self.services = dict(services)

    def pool(self, service: str, color: Color) -> PoolHealth:
        if service not in self.services:
            raise UnknownService(f"no service is named {service}")
        return PoolHealth(tuple(self._health(address) for address in self.services[service].pool(color).servers))

    def _health(self, address: str) -> ServerHealth:
        failed = address in self.down
        result = CheckResult(not failed, "connect refused" if failed else "HTTP 200", 1.0)
        return advance(advance(ServerHealth(address), result, 1.0, 2, 2), result, 2.0, 2, 2)


class Client:
    """Requests to one app."""

    def __init__(self, http: httpx.AsyncClient, agent: Agent, monitor: FakeMonitor, balancer: FakeBalancer) -> None:
        self.http, self.agent, self.monitor, self.balancer = http, agent, monitor, balancer

    async def post(self, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, Any]]:
        answer = await self.http.post(path, json=body or {}, headers=headers)
        return answer.status_code, answer.json()

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        answer = await self.http.get(path)
        return answer.status_code, answer.json()


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Client]:
    config, balancer, events = config_of(), FakeBalancer(), Events(time.time)
    store = SqliteStore(directory / "lbswitch.db")
    monitor = FakeMonitor(config.services)
    serving = Serving(config, balancer, events)
    switcher = Switcher(serving, store, PoolView(monitor), events)
    agent = Agent(directory / "none.yaml", store, serving, switcher, monitor, events, lambda _path: (config, balancer))
    await agent.start()
    transport = httpx.ASGITransport(create_app(agent), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield Client(http, agent, monitor, balancer)
    await agent.close()
    store.close()


@pytest.fixture
def through(tmp_path: Path) -> Callable[[Any], None]:
    """Run one async story against a fresh API."""

    def run(story: Any) -> None:
        async def main() -> None:
            async with running(tmp_path) as client:
                await story(client)

        asyncio.run(main())

    return run


SWITCH = "/v1/services/shop/switch"


def test_the_documents_are_those_of_the_contract(through) -> None:
    """Every fixed field of DESIGN 7.3 is there, and status and history agree."""

    async def story(client: Client) -> None:
        code, operation = await client.post(SWITCH, {"to": "green", "reason": "release 7"})
        assert code == 200
        fixed = {"id", "kind", "service", "from", "to", "weight", "state", "generation", "reason", "actor", "gate"}
        assert fixed | {"timings_ms"} <= operation.keys()
        assert set(operation["timings_ms"]) == {"gates", "render", "commit", "verify", "total"}
        assert (operation["kind"], operation["from"], operation["to"]) == ("switch", "blue", "green")
        _, status = await client.get("/v1/services")
        shop = status["services"]["shop"]
        assert (shop["live"], shop["weight"], shop["generation"]) == ("green", 100, operation["generation"])
        assert shop["verified"] is True
        assert shop["frozen"] is None
        assert shop["bake"] is None
        assert shop["blue"]["servers"] == [shop["blue"]["servers"][0]]
        assert {"address", "healthy", "last_error"} <= shop["blue"]["servers"][0].keys()
        assert set(shop["evidence"]) == {"blue", "green"}
        code, same = await client.get("/v1/services/shop")
        for document in (same, shop):
            for color in ("blue", "green"):
                document["evidence"][color].pop("traffic")  # of the last seconds, which are others now
        assert (code, same) == (200, shop)
        _, history = await client.get("/v1/history?service=shop")
        assert history["operations"] == [operation]
        assert await client.get(f"/v1/operations/{operation['id']}") == (200, operation)

    through(story)


def test_a_refusal_is_a_problem_with_its_gate(through) -> None:
    """409, exit code 3, the gate, the operation, and nothing changed."""

    async def story(client: Client) -> None:
        client.monitor.down.add("127.0.0.1:9102")
        code, problem = await client.post(SWITCH, {"to": "green"})
        assert (code, problem["exit_code"], problem["gate"]["name"]) == (409, 3, "health")
        assert "connect refused" in problem["detail"]
        assert problem["operation"]["state"] == "refused"
        assert (await client.get("/v1/services/shop"))[1]["live"] == "blue"

    through(story)


def test_a_reverted_switch_is_a_problem_with_its_operation(through) -> None:
    """500, exit code 4."""

    async def story(client: Client) -> None:
        client.balancer.deaf = True
        code, problem = await client.post(SWITCH, {"to": "green"})
        assert (code, problem["exit_code"], problem["operation"]["state"]) == (500, 4, "reverted")

    through(story)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"to": "red"}, "to"),
        ({}, "to"),
        ({"to": "green", "weight": 101}, "weight"),
        ({"to": "green", "weight": -1}, "weight"),
        ({"to": "green", "weight": "10"}, "weight"),
        ({"to": "green", "wieght": 10}, "wieght"),
        ({"to": "green", "monitor": 300}, "monitor"),
        ({"to": "green", "reason": "two\nlines"}, "reason"),
        ({"to": "green", "reason": "x" * 501}, "reason"),
        ({"to": "green", "force": 1}, "force"),
        ([1], "body"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(through, body: object, said: str) -> None:
    """422 as a problem document that names the field."""

    async def story(client: Client) -> None:
        answer = await client.http.post(SWITCH, json=body)
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["exit_code"] == 2
        assert said in answer.json()["detail"]
        assert (await client.get("/v1/history"))[1]["operations"] == []

    through(story)


def test_unknown_things_are_404_and_malformed_json_is_422(through) -> None:
    """Always a problem document."""

    async def story(client: Client) -> None:
        assert (await client.post("/v1/services/shp/switch", {"to": "green"}))[0] == 404
        assert "blog, shop" in (await client.get("/v1/services/shp"))[1]["detail"]
        assert (await client.get("/v1/operations/999"))[0] == 404
        assert (await client.get(f"/v1/operations/{2**70}"))[0] == 404
        assert (await client.get("/nowhere"))[0] == 404
        assert (await client.get("/v1/history?service=removed"))[1]["operations"] == []
        untyped = await client.http.post(SWITCH, content=b'{"to": "green"}')
        assert "Content-Type" in untyped.json()["detail"]
        malformed = await client.http.post(SWITCH, content=b"{", headers={"content-type": "application/json"})
        assert malformed.status_code == 422

    through(story)


def test_an_idempotency_key_gives_the_first_answer_again(through) -> None:
    """One operation however often it is sent; the key can't be used for something else."""

    async def story(client: Client) -> None:
        first = await client.post(SWITCH, {"to": "green"}, **{"Idempotency-Key": "k1"})
        await client.post(SWITCH, {"to": "blue"})
        assert await client.post(SWITCH, {"to": "green"}, **{"Idempotency-Key": "k1"}) == first
        assert (await client.get("/v1/services/shop"))[1]["live"] == "blue"
        code, problem = await client.post(SWITCH, {"to": "blue"}, **{"Idempotency-Key": "k1"})
        assert code == 422
        assert "used before" in problem["detail"]

    through(story)


def test_a_full_disk_does_not_hide_what_became_of_a_request(through) -> None:
    """The answer can't be kept on disk: it is given all the same, and again when it is asked for again."""

    async def story(client: Client) -> None:
        def full(*_: object) -> None:
            raise StateError("disk is full")

        client.agent.store.keep_answer = full
        first = await client.post(SWITCH, {"to": "green"}, **{"Idempotency-Key": "k1"})
        assert (first[0], first[1]["state"]) == (200, "done")
        await client.post(SWITCH, {"to": "blue"})
        assert await client.post(SWITCH, {"to": "green"}, **{"Idempotency-Key": "k1"}) == first
        assert "answer-not-written" in [event.type for event in client.agent.events.since(0)]

    through(story)


def test_expect_and_rollback_and_freeze(through) -> None:
    """409 with exit code 7; back to what served before; frozen until released."""

    async def story(client: Client) -> None:
        code, problem = await client.post(SWITCH, {"to": "green", "expect": "green"})
        assert (code, problem["exit_code"]) == (409, 7)
        await client.post(SWITCH, {"to": "green"})
        assert (await client.http.post("/v1/services/shop/rollback")).json()["to"] == "blue"
        assert (await client.post("/v1/services/shop/freeze", {"reason": "audit"}))[1]["frozen"].startswith("audit")
        assert (await client.post(SWITCH, {"to": "green"}))[1]["gate"]["name"] == "freeze"
        assert (await client.post("/v1/services/shop/release"))[1]["frozen"] is None
        assert (await client.post(SWITCH, {"to": "green"}))[0] == 200

    through(story)


def test_all_services_at_once(through) -> None:
    """One generation for all of them; one that is refused keeps all."""

    async def story(client: Client) -> None:
        code, answer = await client.post("/v1/switch", {"to": "green"})
        assert code == 200
        assert {operation["service"] for operation in answer["operations"]} == {"shop", "blog"}
        assert len({operation["generation"] for operation in answer["operations"]}) == 1
        client.monitor.down.add("127.0.0.1:9101")
        code, problem = await client.post("/v1/switch", {"to": "blue"})
        assert (code, problem["gate"]["name"], len(problem["operations"])) == (409, "health", 2)

    through(story)


def test_probes_metrics_and_description(through) -> None:
    """What monitoring reads."""

    async def story(client: Client) -> None:
        await client.post(SWITCH, {"to": "green"})
        for path in ("/healthz", "/readyz"):
            assert (await client.http.get(path)).status_code == 200
        metrics = (await client.http.get("/metrics")).text
        assert 'lbswitch_share_percent{color="green",service="shop"} 100.0' in metrics
        assert 'lbswitch_operations_total{kind="switch",service="shop",state="done"} 1.0' in metrics
        assert SWITCH.replace("shop", "{name}") in (await client.get("/openapi.json"))[1]["paths"]

    through(story)


def test_drift_and_the_three_columns(through) -> None:
    """What differs is always told; what is intended, on disk and running only when it is asked for."""

    async def story(client: Client) -> None:
        await client.post(SWITCH, {"to": "green"})
        client.balancer.drifted = [
            Difference("running", "map", "shop: worker 17 says blue", "shop", "-green\n+blue\n"),
            Difference("disk", "live", "the pointer is gone"),
        ]
        client.balancer.serves = client.balancer.on_disk and client.balancer.on_disk.with_services(
            {"shop": ServiceIntent(Route(Color.BLUE), 1)}
        )
        client.agent.drift.look()
        plain = (await client.get("/v1/services"))[1]
        assert "intended" not in plain["services"]["shop"]
        assert [each["diff"] for each in plain["services"]["shop"]["drift"]] == ["-green\n+blue\n"]
        assert plain["services"]["shop"]["verified"] is False
        assert [each["what"] for each in plain["agent"]["drift"]] == ["the pointer is gone"]
        detailed = (await client.get("/v1/services?detail=true"))[1]["services"]["shop"]
        columns = [detailed[column] for column in ("intended", "on_disk", "running")]
        assert [(each["live"], each["generation"]) for each in columns] == [("green", 2), ("green", 2), ("blue", 1)]
        assert len({each["revision"] for each in columns}) == 1
        assert (await client.get("/v1/services/shop?detail=true"))[1]["running"] == columns[2]
        client.balancer.running = False
        silent = (await client.get("/v1/services/shop?detail=true"))[1]["running"]
        assert (silent["live"], silent["error"]) == (None, "shop: does not answer")
        metrics = (await client.http.get("/metrics")).text
        assert 'lbswitch_drift{where="disk"} 1.0' in metrics
        assert 'lbswitch_drift{where="running"} 1.0' in metrics

    through(story)


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example:9180"}])
def test_web_pages_are_not_answered(through, headers: dict[str, str]) -> None:
    """Neither by their Origin nor under a name that resolves to this host."""

    async def story(client: Client) -> None:
        answer = await client.http.post("/v1/services/shop/rollback", headers=headers)
        assert (answer.status_code, answer.json()["exit_code"]) == (403, 8)
        for host in ("localhost:9180", "[::1]:9180", "127.0.0.1"):
            assert (await client.http.get("/healthz", headers={"Host": host})).status_code == 200

    through(story)


def test_events_are_streamed_from_where_a_reader_left(tmp_path: Path) -> None:
    """`Last-Event-ID` gives what came after it, then what happens."""

    async def story() -> None:
        async with running(tmp_path) as client:
            from lbswitch.api.app import _event_stream

            await client.post(SWITCH, {"to": "green"})
            stream = _event_stream(client.agent, 0)
            assert (await anext(stream)).startswith(":")
            seen = await anext(stream)
            while "event: switch" not in seen:
                seen = await anext(stream)
            document = json.loads(seen.split("data: ", 1)[1])
            assert document["data"]["operation"]["to"] == "green"
            await stream.aclose()

    asyncio.run(story())


def test_while_a_service_is_being_added_all_others_are_told_of(through) -> None:
    """For the moment in which it is configured and not served yet it is left out, and asking for it is no accident."""

    async def story(client: Client) -> None:
        serving = client.agent.serving
        both = serving.intent
        async with client.agent.edits.paused():
            serving.intent = Intent({"shop": both.services["shop"]}, both.generation)
            for query in ("", "?detail=true"):
                code, document = await client.get(f"/v1/services{query}")
                assert (code, set(document["services"])) == (200, {"shop"})
                code, document = await client.get(f"/v1/services/blog{query}")
                assert (code, "just being added or removed" in document["detail"]) == (404, True)
            assert (await client.post("/v1/services/blog/switch", {"to": "green"}))[0] == 423
            serving.intent = both
            del client.monitor.services["blog"]  # served, and checked in a moment
            metrics = await client.http.get("/metrics")
            assert (metrics.status_code, 'lbswitch_generation{service="blog"}' in metrics.text) == (200, True)

    through(story)


def test_the_agent_tells_when_its_process_began(tmp_path: Path) -> None:
    """Not when it was ready: on a busy machine that is much later, and would look like a clock that jumped."""

    async def ask() -> float:
        async with running(tmp_path) as client:
            _, status = await client.get("/v1/services")
            return float(status["agent"]["started_at"])

    assert asyncio.run(ask()) == pytest.approx(psutil.Process().create_time(), abs=1.5)
