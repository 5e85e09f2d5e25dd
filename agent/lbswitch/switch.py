"""The switch transaction: lock, gates, render and check, INTENT, commit, verify, DONE; or back to where it was.

At every instant the journal, the pointer on disk and the running balancer allow a restarted agent to finish or
revert (`recover`). The steps carry the names in `STEPS`, so that a test can stop the world at each of them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lbswitch.core.decide import PoolState
from lbswitch.core.model import Color, Gate, Kind, Operation, OperationState, Route, ServiceIntent, Timings
from lbswitch.errors import BalancerError, Busy, Conflict, LbswitchError, Refused, StateError, UnknownService
from lbswitch.events import Events
from lbswitch.ports import HealthView, OpenOperation, Rendered, Store
from lbswitch.serving import Serving, Undo

STEPS = (
    "gates", "render", "check", "intent", "prepare", "install", "reload", "commit", "verify", "done", "revert",
)  # fmt: skip
_WAIT_FOR_HEALTH_S = 3.0
_LEVELS = {OperationState.DONE: "info", OperationState.ALREADY: "info", OperationState.REFUSED: "warning"}


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants. `to` is None for a rollback, whose target is what was serving before."""

    kind: Kind
    services: tuple[str, ...]
    to: Color | None = None
    weight: int = 100
    expect: Color | None = None
    reason: str = ""
    actor: str = "unknown"
    force: bool = False
    dry_run: bool = False


@dataclass(slots=True)
class _Move:
    """One service's part of a request on its way through the transaction."""

    operation: Operation
    before: ServiceIntent
    route: Route
    notes: list[str] = field(default_factory=list)

    @property
    def service(self) -> str:
        return self.operation.service


@dataclass(frozen=True, slots=True)
class Recovery:
    """What becomes of one operation that a crash left open: finished, or reverted, and why."""

    open: OpenOperation
    finish: bool
    why: str

    @property
    def service(self) -> str:
        """The service it is about."""
        return self.open.operation.service

    @property
    def serves(self) -> ServiceIntent:
        """What the service serves from now on."""
        return self.open.after if self.finish else self.open.before


class _Stopwatch:
    """Milliseconds per phase."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self._phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._phases[phase] = self._phases.get(phase, 0.0) + (now - self._last) * 1000
        self._last = now

    def timings(self) -> Timings:
        return Timings(**self._phases, total=(time.perf_counter() - self._began) * 1000)


class Switcher:
    """Runs operations, one at a time for a service. Blocks; call it from worker threads."""

    def __init__(
        self,
        serving: Serving,
        store: Store,
        health: HealthView,
        events: Events,
        clock: Callable[[], float] = time.time,
        on_step: Callable[[str], None] | None = None,
    ) -> None:
        """`clock` gives seconds since the epoch; `on_step` is told each step's name before it is taken."""
        self._serving = serving
        self._store = store
        self._health = health
        self._events = events
        self._clock = clock
        self._step = on_step or (lambda _name: None)
        self._holders: dict[str, Request] = {}
        self._holders_lock = threading.Lock()
        self._unrecorded: list[tuple[list[Operation], dict[str, ServiceIntent]]] = []

    def holder(self, service: str) -> Request | None:
        """The request that holds this service now."""
        return self._holders.get(service)

    def run(self, request: Request) -> list[Operation]:
        """Carry out a request; every outcome but the ones raised is an Operation, in the order of the services.

        Raises: UnknownService, Busy, Conflict; then nothing was changed or recorded.
        """
        for service in request.services:
            if service not in self._serving.config.services:
                known = ", ".join(sorted(self._serving.config.services))
                raise UnknownService(f"there is no service {service!r}; known: {known}")
        with self._held(request):
            return self._run(request)

    @contextmanager
    def _held(self, request: Request) -> Iterator[None]:
        with self._holders_lock:
            for service in request.services:
                holder = self._holders.get(service)
                if holder is not None:
                    raise Busy(
                        f"{service}: a {holder.kind} by {holder.actor} is running; nothing was changed, try again"
                    )
            self._holders.update(dict.fromkeys(request.services, request))
        try:
            yield
        finally:
            with self._holders_lock:
                for service in request.services:
                    del self._holders[service]

    def _run(self, request: Request) -> list[Operation]:
        watch = _Stopwatch()
        moves, settled = self._plan(request)
        self._step("gates")
        refusals = {move.service: gate for move in moves if (gate := self._refusal(request, move)) is not None}
        watch.lap("gates")
        if refusals:
            ended = [self._refuse(request, move, refusals, watch) for move in moves]
        elif not moves:
            ended = []
        elif request.dry_run:
            ended = self._rehearse(moves, request, watch)
        else:
            ended = self._transact(moves, request, watch)
        settled = [self._record(replace(done, timings=watch.timings()), request) for done in settled]
        by_service = {operation.service: operation for operation in [*ended, *settled]}
        return [by_service[service] for service in request.services]

    # -- planning and gates ----------------------------------------------------------------------------------

    def _plan(self, request: Request) -> tuple[list[_Move], list[Operation]]:
        """What has to move, and the operations that are over before they began (`already`, refused rollbacks)."""
        moves, settled = [], []
        for service in request.services:
            before = self._serving.intent.services[service]
            draft = self._draft(request, service, before)
            try:
                target = request.to or self._rollback_target(service, before.route)
            except Refused as error:
                settled.append(self._end(draft, OperationState.REFUSED, gate=Gate(error.gate, str(error))))
                continue
            route = before.route.with_share(target, request.weight)
            draft = replace(draft, target=target, kind=_kind(request, before.route, route))
            if route == before.route and self._serving.look(service).verified:
                same = replace(draft, source=before.route.live)
                settled.append(self._end(same, OperationState.ALREADY))
                continue
            if request.expect is not None and before.route.live is not request.expect:
                raise Conflict(
                    f"{service}: expected {request.expect} to be live, but {before.route} is (generation "
                    f"{before.generation}); nothing was changed"
                )
            moves.append(_Move(_directed(draft, before.route, route), before, route))
        return moves, settled

    def _draft(self, request: Request, service: str, before: ServiceIntent) -> Operation:
        live = before.route.live
        return Operation(
            id=0,
            kind=request.kind,
            service=service,
            source=live,
            target=live,
            weight=request.weight,
            state=OperationState.OPEN,
            generation=before.generation,
            reason=request.reason,
            actor=request.actor,
            started_at=self._clock(),
            dry_run=request.dry_run,
        )

    def previous(self, service: str) -> Color | None:
        """The color a rollback would go to, or None when there is none."""
        try:
            return self._rollback_target(service, self._serving.intent.services[service].route)
        except Refused:
            return None

    def _rollback_target(self, service: str, route: Route) -> Color:
        """What was serving before: of a split the live color, else the color that the last switch left."""
        if route.is_split:
            return route.live
        last = self._store.last_move(service)
        if last is None or last.target is not route.live:
            raise Refused("previous", f"nothing was serving before {route.live}, so there is nothing to roll back to")
        if last.kind.is_way_back:
            raise Refused(
                "previous",
                f"{route.live} is live because of {last.kind} {last.id}, which left {last.source}; "
                f"to go forward again say lbswitch {last.source}",
            )
        return last.source

    def _refusal(self, request: Request, move: _Move) -> Gate | None:
        """The first gate that says no; `force` passes freeze and health, and the operation says so."""
        down = self._balancer_gate()
        if down is not None:
            return down
        for gate in (self._freeze_gate(request, move), self._health_gate(move)):
            if gate is None:
                continue
            if not request.force:
                return gate
            move.notes.append(f"forced past {gate.name}: {gate.message}")
        return None

    def _balancer_gate(self) -> Gate | None:
        """Nothing can be seen at a balancer that does not run; no force helps."""
        balancer = self._serving.balancer
        if balancer.is_running():
            return None
        why = balancer.why_not_started() or "the agent is about to start it again"
        return Gate("balancer", f"the balancer is not running: {why}")

    def _freeze_gate(self, request: Request, move: _Move) -> Gate | None:
        reason = self._store.frozen().get(move.service)
        if reason is None or request.kind is Kind.ROLLBACK:
            return None
        return Gate("freeze", f"{move.service} is frozen: {reason}; lbswitch release -s {move.service} ends that")

    def _health_gate(self, move: _Move) -> Gate | None:
        """The color that gains traffic must be healthy; one that is not known yet gets a moment to show it."""
        gaining = _gaining(move.before.route, move.route)
        if gaining is None:
            return None
        deadline = time.monotonic() + _WAIT_FOR_HEALTH_S
        facts = self._health.facts(move.service, gaining)
        while facts.state is PoolState.UNKNOWN and time.monotonic() < deadline:
            time.sleep(0.01)
            facts = self._health.facts(move.service, gaining)
        if facts.state is PoolState.HEALTHY:
            return None
        return Gate("health", f"{gaining} is {facts.state}: {facts.summary}; {move.before.route} is still serving")

    def _refuse(self, request: Request, move: _Move, refusals: Mapping[str, Gate], watch: _Stopwatch) -> Operation:
        """All or nothing: one refused service keeps the others of the same request where they are."""
        gate = refusals.get(move.service)
        if gate is None:
            name, first = next(iter(refusals.items()))
            gate = Gate(first.name, f"not switched because {name} was refused: {first.message}")
        ended = self._end(move.operation, OperationState.REFUSED, gate=gate, timings=watch.timings())
        return self._record(ended, request)

    # -- the transaction -------------------------------------------------------------------------------------

    def _rehearse(self, moves: list[_Move], request: Request, watch: _Stopwatch) -> list[Operation]:
        """--dry-run: everything up to INTENT, and nothing kept."""
        try:
            with self._serving.mutex:
                after = self._after(moves)
                files = self._files(after, moves, request)
            note = "would change rendered files and reload" if files is not None else "would reload nothing"
            state, error = OperationState.DONE, None
        except LbswitchError as failure:
            note, state, error = "would fail", OperationState.REVERTED, str(failure)
        watch.lap("render")
        return [
            self._end(move.operation, state, error=error, notes=(*move.notes, note), timings=watch.timings())
            for move in moves
        ]

    def _after(self, moves: Sequence[_Move]) -> dict[str, ServiceIntent]:
        generation = max(self._store.generation(), self._serving.intent.generation) + 1
        return {
            move.service: ServiceIntent(move.route, generation, move.before.weighted or move.route.is_split)
            for move in moves
        }

    def _files(self, after: Mapping[str, ServiceIntent], moves: Sequence[_Move], request: Request) -> Rendered | None:
        """The files that must change. Broken templates never stand in the way back, if it needs no files."""
        intent = self._serving.intent.with_services(after)
        try:
            return self._serving.changed_files(intent)
        except BalancerError as error:
            rendered_otherwise = any(
                self._serving.needs_files(move.service) or after[move.service].weighted != move.before.weighted
                for move in moves
            )
            if not request.kind.is_way_back or rendered_otherwise:
                raise
            for move in moves:
                move.notes.append(f"the rendered files were left as they are: {error}")
            return None

    def _transact(self, moves: list[_Move], request: Request, watch: _Stopwatch) -> list[Operation]:
        undo: Undo | None = None
        after: dict[str, ServiceIntent] = {}
        try:
            with self._serving.mutex:
                after = self._after(moves)
                files = self._files(after, moves, request)
                watch.lap("render")
                self._begin(moves, after)
                undo = self._serving.undo_for(after, files)
                self._serving.move(self._serving.intent.with_services(after), files)
                watch.lap("commit")
                if files is not None:
                    self._serving.verify(after, reloaded=True)
            if files is None:
                self._serving.verify(after)
            watch.lap("verify")
            self._step("done")
            ended = self._completed(moves, watch)
            self._store.finish(ended, after)
        except LbswitchError as error:
            return self._failed(moves, undo, error, watch, request)
        for operation in ended:
            self._tell(operation)
        return ended

    def _begin(self, moves: list[_Move], after: Mapping[str, ServiceIntent]) -> None:
        """INTENT is on disk before anything moves."""
        self._step("intent")
        drafts = [replace(move.operation, generation=after[move.service].generation) for move in moves]
        before = {move.service: move.before for move in moves}
        for move, operation in zip(moves, self._store.begin(drafts, before, after), strict=True):
            move.operation = operation

    def _completed(self, moves: Sequence[_Move], watch: _Stopwatch) -> list[Operation]:
        timings = watch.timings()
        return [
            self._end(move.operation, OperationState.DONE, timings=timings, notes=tuple(move.notes)) for move in moves
        ]

    def _failed(
        self, moves: list[_Move], undo: Undo | None, error: LbswitchError, watch: _Stopwatch, request: Request
    ) -> list[Operation]:
        """Put everything back and say how that went."""
        serving = " and ".join(sorted({f"{move.service} on {move.before.route}" for move in moves[:3]}))
        state, message = OperationState.REVERTED, f"{error}; still serving: {serving}"
        if undo is not None:
            try:
                self._serving.put_back(undo)
            except LbswitchError as second:
                state = OperationState.FAILED
                message = f"{error}; putting back failed too: {second}; intended is: {serving}"
        watch.lap("verify")
        timings = watch.timings()
        ended = [
            self._end(
                replace(move.operation, generation=move.before.generation),
                state,
                error=message,
                timings=timings,
                notes=tuple(move.notes),
            )
            for move in moves
        ]
        if moves[0].operation.id == 0:
            return [self._record(operation, request) for operation in ended]
        self._finish_or_keep(ended, {move.service: move.before for move in moves})
        for operation in ended:
            self._tell(operation)
        return ended

    # -- recording -------------------------------------------------------------------------------------------

    def _end(self, operation: Operation, state: OperationState, **changes: object) -> Operation:
        return operation.ended(state, now=self._clock(), **changes)

    def _record(self, operation: Operation, request: Request) -> Operation:
        """Into the history, unless it is a rehearsal; a store that fails now must not hide the outcome."""
        if request.dry_run:
            return operation
        try:
            operation = self._store.record(operation)
        except StateError as error:
            self._events.emit("history-not-written", str(error), operation.service, "error")
        self._tell(operation)
        return operation

    def _finish_or_keep(self, ended: list[Operation], services: dict[str, ServiceIntent]) -> None:
        try:
            self._store.finish(ended, services)
        except StateError as error:
            self._unrecorded.append((ended, services))
            self._events.emit("history-not-written", f"{error}; it will be tried again", ended[0].service, "error")

    def record_late(self) -> None:
        """Try again to record what a full disk did not take."""
        while self._unrecorded:
            try:
                self._store.finish(*self._unrecorded[0])
            except StateError:
                return
            del self._unrecorded[0]

    def _tell(self, operation: Operation) -> None:
        self._events.emit(
            str(operation.kind),
            describe(operation),
            operation.service,
            _LEVELS.get(operation.state, "error"),
            operation=operation.to_json(),
        )

    # -- after a crash ---------------------------------------------------------------------------------------

    def recover(self) -> list[Recovery]:
        """What to do about the operations that a crash left open, and what their services serve until then.

        One that had moved the pointer is finished if its target is healthy, all others are reverted: starting the agent
        never moves traffic to a color that did not have it. `Serving.start` acts on the result, and `conclude` ends
        the operations when it was seen; until then they stay open, for the next agent if this one dies too.
        """
        on_disk = self._serving.balancer.committed()
        recoveries = []
        for open_operation in self._store.unfinished():
            service = open_operation.operation.service
            if service not in self._serving.config.services:
                self._close(Recovery(open_operation, finish=False, why="the service is no longer configured"))
                continue
            found = None if on_disk is None else on_disk.services.get(service)
            had_moved = found is not None and found.generation == open_operation.after.generation
            finish, why = self._is_to_be_finished(open_operation, had_moved=had_moved)
            recoveries.append(Recovery(open_operation, finish, why))
        return recoveries

    def conclude(self, recoveries: Sequence[Recovery]) -> None:
        """End recovered operations; one that was to be finished but is not seen at the listener is put back."""
        for recovery in recoveries:
            sight = self._serving.sights.get(recovery.service)
            if recovery.finish and (sight is None or not sight.verified):
                detail = sight.detail if sight is not None else "the balancer is not running"
                why = f"{recovery.why}, but it is not seen: {detail}; back to {recovery.open.before.route}"
                recovery = Recovery(recovery.open, finish=False, why=why)
                with contextlib.suppress(LbswitchError):  # said by `look` and tried again by `settle`
                    self._serving.put_back(Undo({recovery.service: recovery.open.before}, None))
            self._close(recovery)

    def _is_to_be_finished(self, open_operation: OpenOperation, *, had_moved: bool) -> tuple[bool, str]:
        if not had_moved:
            return False, "the agent ended before traffic had moved"
        before, after = open_operation.before.route, open_operation.after.route
        gate = self._health_gate(_Move(open_operation.operation, open_operation.before, after))
        if gate is None:
            return True, f"the agent ended after traffic had moved to {after}, which is healthy"
        return False, f"the agent ended after traffic had moved, and {gate.message}; back to {before}"

    def _close(self, recovery: Recovery) -> None:
        operation = recovery.open.operation
        state = OperationState.DONE if recovery.finish else OperationState.REVERTED
        operation = replace(operation, notes=(*operation.notes, recovery.why))
        if not recovery.finish:
            operation = replace(operation, generation=recovery.open.before.generation, error=recovery.why)
        ended = self._end(operation, state)
        self._store.finish([ended], {operation.service: recovery.serves})
        self._tell(ended)


def describe(operation: Operation) -> str:
    """The one sentence about an operation that log, history and alerts share."""
    what = f"{operation.service}: {operation.kind} {operation.source} -> {operation.target}"
    share = "" if operation.weight == 100 else f" {operation.weight}%"
    why = f" because {operation.reason}" if operation.reason else ""
    if operation.state is OperationState.DONE and operation.timings.total == 0:
        return f"{what}{share} done, {'; '.join(operation.notes)}"
    if operation.state is OperationState.DONE:
        return f"{what}{share} done in {operation.timings.total:.1f} ms, generation {operation.generation}{why}"
    if operation.state is OperationState.ALREADY:
        return f"{operation.service}: {operation.target}{share} already serves, generation {operation.generation}"
    if operation.gate is not None:
        return f"{what}{share} refused by {operation.gate.name}: {operation.gate.message}"
    return f"{what}{share} {operation.state}: {operation.error}"


def _kind(request: Request, before: Route, after: Route) -> Kind:
    if request.kind is not Kind.SWITCH:
        return request.kind
    only_shares = after.is_split or (before.is_split and before.live is after.live)
    return Kind.WEIGHT if only_shares else Kind.SWITCH


def _directed(draft: Operation, before: Route, after: Route) -> Operation:
    """`from`, `to` and `weight` as the traffic moves: `to` gains, and has `weight` percent afterwards."""
    gaining = _gaining(before, after) or after.live
    source = gaining if before == after else gaining.other
    return replace(draft, source=source, target=gaining, weight=after.share(gaining))


def _gaining(before: Route, after: Route) -> Color | None:
    """The color whose share of the traffic grows; the live one when nothing changes."""
    for color in Color:
        if after.share(color) > before.share(color):
            return color
    return None
