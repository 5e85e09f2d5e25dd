"""The HTTP API (DESIGN 7.4): every handler decodes, makes one call, and encodes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from lbswitch import __version__, showing
from lbswitch.agent import Agent
from lbswitch.api import documents, problems, quick
from lbswitch.api.alerts import add_alerts
from lbswitch.api.browsers import NoBrowsers
from lbswitch.api.metrics import Metrics
from lbswitch.api.schemas import (
    ApplyBody,
    CanaryBody,
    DrainBody,
    EmptyBody,
    ReasonBody,
    RestoreBody,
    RollbackBody,
    SwitchBody,
    SwitchManyBody,
)
from lbswitch.api.watching import add_watching
from lbswitch.bake import Canary
from lbswitch.core.model import Color, Kind
from lbswitch.errors import (
    Busy,
    InvalidRequest,
    LbswitchError,
    StateError,
    UnknownOperation,
    UnknownService,
    UnknownSnapshot,
)
from lbswitch.events import Event
from lbswitch.ports import StoredAnswer
from lbswitch.snapshots import Archive, Kept, files_now
from lbswitch.switch import Request as SwitchRequest

_EVENTS_QUEUED = 1000
_UNWRITTEN = 1000
_KEEPALIVE_S = 15.0
_ANY_PROBLEM: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {problems.MEDIA_TYPE: {}}}
    for status, text in (
        (404, "No such service or operation"),
        (409, "Refused by a gate, or `expect` does not hold; nothing was changed"),
        (422, "Invalid request"),
        (423, "Another operation is running"),
        (500, "The switch failed and was put back"),
    )
}
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=200)]


def create_app(agent: Agent) -> FastAPI:
    """The API of one agent."""
    app = FastAPI(title="lbswitch", version=__version__, docs_url=None, redoc_url=None)
    problems.install(app)
    app.add_middleware(NoBrowsers)
    _add_probes(app, agent)
    _add_reading(app, agent)
    answers = Answers(agent)
    _add_operations(app, agent, answers)
    _add_snapshots(app, agent, answers)
    add_alerts(app, agent)
    add_watching(app, agent, _ANY_PROBLEM)
    return app


class Answers:
    """Makes a retried POST with the same Idempotency-Key return the first answer."""

    def __init__(self, agent: Agent) -> None:
        """Keep the answers in the agent's store."""
        self._agent = agent
        self._running: set[str] = set()
        self._unwritten: dict[str, StoredAnswer] = {}

    async def once(
        self, key: str | None, request: Request, work: Callable[[], Awaitable[tuple[int, dict[str, Any]]]]
    ) -> Response:
        """Do the work, or give the answer that was given before. Raises: Busy, InvalidRequest."""
        if key is None:
            return _answer(*await work())
        body = await request.body()
        digest = hashlib.sha256(f"{request.method} {request.url.path}\0".encode() + body).hexdigest()
        kept = self._unwritten.get(key) or await self._agent.in_thread(self._agent.store.answer, key)
        if kept is not None:
            if kept.request != digest:
                raise InvalidRequest("Idempotency-Key: was used before for another request; take a new key")
            return _answer(kept.status, json.loads(kept.body))
        if key in self._running:
            raise Busy("Idempotency-Key: the first request with this key is still running; ask again later")
        self._running.add(key)
        try:
            status, document = await work()
            await self._keep(key, StoredAnswer(digest, status, json.dumps(document)))
        finally:
            self._running.discard(key)
        return _answer(status, document)

    async def _keep(self, key: str, answer: StoredAnswer) -> None:
        """A disk that is full hides from nobody what became of the request; the answer is kept in memory then."""
        try:
            await self._agent.in_thread(self._agent.store.keep_answer, key, answer)
        except StateError as error:
            message = f"{error}; the answer to a request with an Idempotency-Key is kept until the agent ends"
            self._agent.events.emit("answer-not-written", message, level="error")
            while len(self._unwritten) >= _UNWRITTEN:
                del self._unwritten[next(iter(self._unwritten))]
            self._unwritten[key] = answer


def _answer(status: int, document: dict[str, Any]) -> Response:
    if status >= 400:
        return problems.respond(document)
    return JSONResponse(document, status)


def _actor(request: Request) -> str:
    """Who asks: the user behind the unix socket as the kernel names it, or the address of a TCP peer."""
    return request.client.host if request.client is not None else "unknown"


def _known(agent: Agent, name: str) -> str:
    if name not in agent.config.services:
        raise UnknownService(f"there is no service {name!r}; known: {', '.join(sorted(agent.config.services))}")
    return name


def _add_probes(app: FastAPI, agent: Agent) -> None:
    metrics = Metrics(agent)

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """The agent answers."""
        return "ok\n"

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> str:
        """The agent has finished its start: what is intended is served, or it says why not."""
        return "ok\n"

    @app.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        """Prometheus metrics."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_reading(app: FastAPI, agent: Agent) -> None:
    @app.get("/v1/services")
    async def services(detail: bool = False) -> dict[str, Any]:
        """The Status document; with `detail` what is intended, on disk and running, looked at now."""
        document = documents.status(agent, await agent.in_thread(documents.about, agent))
        if detail:
            columns = await agent.in_thread(documents.detailed, agent, list(document["services"]))
            for name, found in columns.items():
                document["services"][name].update(found)
        return document

    @app.get("/v1/services/{name}", responses=_only(404))
    async def service(name: str, detail: bool = False) -> dict[str, Any]:
        """One service's object; with `detail` what is intended, on disk and running, looked at now."""
        document = documents.service(agent, _known(agent, name))
        columns = await agent.in_thread(documents.detailed, agent, [name]) if detail else {}
        return {**document, **columns.get(name, {})}

    @app.get("/v1/operations", responses=_only(404, 422))
    @app.get("/v1/history", responses=_only(404, 422))
    async def history(limit: Annotated[int, Query(ge=1, le=10_000)] = 20, service: str | None = None) -> dict[str, Any]:
        """Operations, the newest first."""
        found = await agent.in_thread(agent.store.history, limit, service)
        return {"operations": [agent.drain.shown(operation).to_json() for operation in found]}

    @app.get("/v1/operations/{identity}", responses=_only(404, 422))
    async def operation(identity: int) -> dict[str, Any]:
        """One operation."""
        found = await agent.in_thread(agent.store.operation, identity) if 0 < identity < 2**63 else None
        if found is None:
            raise UnknownOperation(f"there is no operation {identity}")
        document: dict[str, Any] = agent.drain.shown(found).to_json()
        return document

    @app.get("/v1/drain")
    async def drains() -> dict[str, Any]:
        """What is still open to the color without traffic, of every service and by worker."""
        return {"services": await agent.in_thread(agent.drain.documents, list(agent.config.services))}

    @app.get("/v1/services/{name}/drain", responses=_only(404))
    async def drain(name: str) -> dict[str, Any]:
        """What is still open to the service's color without traffic, by worker."""
        return await _drain(agent, name)

    @app.get("/v1/events", response_class=StreamingResponse)
    async def events(last_event_id: Annotated[int | None, Header()] = None) -> StreamingResponse:
        """Server-sent events, from now on, or after `Last-Event-ID` as far as they are remembered."""
        return StreamingResponse(_event_stream(agent, last_event_id), media_type="text/event-stream")


async def _drain(agent: Agent, name: str) -> dict[str, Any]:
    """Raises: UnknownService."""
    documents: dict[str, dict[str, Any]] = await agent.in_thread(agent.drain.documents, [_known(agent, name)])
    if name not in documents:
        raise UnknownService(f"the service {name} is just being added or removed; ask again")
    return documents[name]


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ANY_PROBLEM[status] for status in statuses}


async def _event_stream(agent: Agent, last_id: int | None) -> AsyncIterator[str]:
    queue: asyncio.Queue[Event] = asyncio.Queue(_EVENTS_QUEUED)
    loop = asyncio.get_running_loop()

    def put(event: Event) -> None:
        loop.call_soon_threadsafe(_put_or_drop, queue, event)

    stop = agent.events.listen(put)
    try:
        yield ": lbswitch\n\n"
        for event in agent.events.since(last_id) if last_id is not None else []:
            yield _sse(event)
        while True:
            try:
                async with asyncio.timeout(_KEEPALIVE_S):
                    event = await queue.get()
            except TimeoutError:
                yield ": still here\n\n"
            else:
                yield _sse(event)
    finally:
        stop()


def _put_or_drop(queue: asyncio.Queue[Event], event: Event) -> None:
    """A reader that does not read loses the oldest events; the agent loses no memory."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(event)


def _sse(event: Event) -> str:
    return f"id: {event.id}\nevent: {event.type}\ndata: {json.dumps(event.to_json(), default=str)}\n\n"


def _add_operations(app: FastAPI, agent: Agent, answers: Answers) -> None:
    async def operate(wanted: SwitchRequest, *, many: bool = False) -> tuple[int, dict[str, Any]]:
        try:
            return problems.outcome(await agent.operate(wanted), many=many)
        except LbswitchError as error:
            document = problems.problem(error)
            return document["status"], document

    @app.post("/v1/services/{name}/switch", responses=_ANY_PROBLEM)
    async def switch(name: str, body: CanaryBody, request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        """Send a service's traffic to a color: all of it, `weight` percent, or more with every step."""
        wanted = _switch_request((_known(agent, name),), body, _actor(request))
        if body.steps is None or body.dry_run:
            return await answers.once(idempotency_key, request, lambda: operate(wanted))
        first, canary = replace(wanted, weight=body.steps[0]), Canary(tuple(body.steps[1:]), body.every)

        async def begin() -> tuple[int, dict[str, Any]]:
            agent.bakes.plan(name, canary)
            try:
                return await operate(first)
            finally:
                await agent.bakes.heard()
                agent.bakes.plan(name, None)

        return await answers.once(idempotency_key, request, begin)

    quick.add_switch(app, "/v1/services/{name}/switch", switch)

    @app.post("/v1/switch", responses=_ANY_PROBLEM)
    async def switch_many(body: SwitchManyBody, request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        """Switch several services at one instant; one that is refused keeps all where they are."""
        names = dict.fromkeys(_known(agent, name) for name in body.services or agent.config.services)
        wanted = _switch_request(tuple(names), body, _actor(request))
        return await answers.once(idempotency_key, request, lambda: operate(wanted, many=True))

    @app.post("/v1/services/{name}/rollback", responses=_ANY_PROBLEM)
    async def rollback(
        name: str,
        request: Request,
        body: Annotated[RollbackBody, Body(default_factory=RollbackBody)],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Back to what was serving before."""
        wanted = SwitchRequest(
            Kind.ROLLBACK,
            (_known(agent, name),),
            reason=body.reason,
            actor=_actor(request),
            force=body.force,
            dry_run=body.dry_run,
        )
        return await answers.once(idempotency_key, request, lambda: operate(wanted))

    async def apply_edits(wanted: ApplyBody) -> tuple[int, dict[str, Any]]:
        applied = await (agent.edits.rehearse if wanted.dry_run else agent.edits.apply)(force=wanted.force)
        if applied.error is None:
            return 200, applied.to_json()
        document = problems.problem(applied.error, **applied.to_json())
        return document["status"], document

    @app.post("/v1/apply", responses=_only(409, 422, 500))
    async def apply(
        request: Request,
        body: Annotated[ApplyBody, Body(default_factory=ApplyBody)],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Read configuration and templates again and serve what they say; put right what drifted."""
        return await answers.once(idempotency_key, request, lambda: apply_edits(body))

    @app.post("/v1/services/{name}/drain", responses=_only(404, 409, 422, 423))
    async def close_what_is_left(
        name: str, body: DrainBody, request: Request, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Close the connections that are left on the color without traffic, a few at a time."""
        _known(agent, name)

        async def work() -> tuple[int, dict[str, Any]]:
            try:
                return 200, await agent.in_thread(agent.drain.close, name, body.over, body.color)
            except LbswitchError as error:
                document = problems.problem(error)
                return document["status"], document

        return await answers.once(idempotency_key, request, work)

    @app.post("/v1/services/{name}/freeze", responses=_only(404, 422))
    async def freeze(
        name: str, request: Request, body: Annotated[ReasonBody, Body(default_factory=ReasonBody)]
    ) -> dict[str, Any]:
        """Allow no switch but a rollback by hand, until released."""
        why = body.reason or "no reason given"
        await agent.freeze(name, f"{why} (frozen by {_actor(request)})")
        return documents.service(agent, name)

    @app.post("/v1/services/{name}/release", responses=_only(404, 422))
    async def release(
        name: str,
        request: Request,
        body: Annotated[EmptyBody, Body(default_factory=EmptyBody)],  # noqa: ARG001 - refuses what it does not know
    ) -> dict[str, Any]:
        """End a freeze."""
        await agent.release(name, _actor(request))
        return documents.service(agent, name)


def _add_snapshots(app: FastAPI, agent: Agent, answers: Answers) -> None:
    def read(number: int) -> Kept:
        return _archive(agent).read(number)

    @app.get("/v1/snapshots", responses=_only(422))
    async def snapshots(limit: Annotated[int, Query(ge=1, le=10_000)] = 20) -> dict[str, Any]:
        """Snapshots, the newest first."""
        return showing.listing(await agent.in_thread(_archive(agent).newest, limit))

    @app.get("/v1/snapshots/{number}", responses=_only(404, 422))
    async def snapshot(number: int) -> dict[str, Any]:
        """One snapshot: what was served, by which balancer, and its files without their content."""
        return showing.document(await agent.in_thread(read, number))

    @app.get("/v1/snapshots/{number}/file", responses=_only(404, 422))
    async def snapshot_file(number: int, name: Annotated[str, Query(max_length=500)]) -> dict[str, Any]:
        """One file of a snapshot with its text; a secret one is never shown (403)."""

        def show() -> dict[str, Any]:
            return showing.file(_archive(agent), read(number), name)

        document: dict[str, Any] = await agent.in_thread(show)
        return document

    @app.get("/v1/snapshots/{number}/diff", responses=_only(404, 422))
    async def snapshot_diff(number: int) -> dict[str, Any]:
        """What has changed since, as a unified diff."""

        def compare() -> dict[str, Any]:
            serving = agent.serving
            with serving.mutex:
                served = serving.stand()
                now = list(files_now(served.config, served.balancer, agent.config_path, served.balancer.installed()))
            return showing.diff(_archive(agent), read(number), now, served.intent)

        document: dict[str, Any] = await agent.in_thread(compare)
        return document

    @app.post("/v1/snapshots/{number}/restore", responses=_ANY_PROBLEM)
    async def restore(
        number: int,
        request: Request,
        body: Annotated[RestoreBody, Body(default_factory=RestoreBody)],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Bring back configuration and routes of a snapshot: all of it or nothing."""
        wanted = SwitchRequest(
            Kind.RESTORE,
            (),
            expect=body.expect,
            reason=body.reason,
            actor=_actor(request),
            force=body.force,
            dry_run=body.dry_run,
        )

        async def work() -> tuple[int, dict[str, Any]]:
            try:
                status, document = problems.outcome(await agent.restore(number, wanted), many=True)
            except LbswitchError as error:
                document = problems.problem(error)
                return document["status"], document
            return status, showing.restored(number, document)

        return await answers.once(idempotency_key, request, work)


def _archive(agent: Agent) -> Archive:
    """Raises: UnknownSnapshot."""
    if agent.snapshots is None:
        raise UnknownSnapshot("this agent takes no snapshots")
    return agent.snapshots.archive


def _switch_request(services: tuple[str, ...], body: SwitchBody, actor: str) -> SwitchRequest:
    return SwitchRequest(
        Kind.SWITCH,
        services,
        to=Color(body.to),
        weight=body.weight,
        expect=body.expect,
        reason=body.reason,
        actor=actor,
        force=body.force,
        dry_run=body.dry_run,
    )
